"""A finished run, opened again: to evaluate it, to predict with it, or to take its model elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tlx.backend import Backend, Model, Preprocess, registry
from tlx.errors import RunNotFound
from tlx.models.weights import match, read_weights
from tlx.recipe import Recipe
from tlx.runs.folder import read_json
from tlx.training.build import build_model, resolve_placement


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A run's model with its weights, placed on a backend; `recipe` says where and in which precision."""

    run_dir: Path
    card: dict[str, Any]
    recipe: Recipe
    backend: Backend
    model: Model


def read_run(run_dir: Path, **objects: Any) -> tuple[dict[str, Any], Recipe]:
    """Return the card and the recipe of a finished run; `objects` stand for Python objects that the recipe names.

    Raises RunNotFound where there is no run, or it has not finished.
    """
    if (run_dir / "recipe.toml").is_file() and not (run_dir / "result.json").is_file():
        raise RunNotFound(f"{run_dir} is not finished; finish it with: tlx run --resume {run_dir}")
    for name in ("recipe.toml", "result.json", "card.json"):
        if not (run_dir / name).is_file():
            raise RunNotFound(
                f"{run_dir} holds no finished run: {name} is missing. Pass a folder that `tlx run` wrote."
            )
    overrides = {name: value for name, value in objects.items() if value is not None}
    return read_json(run_dir / "card.json"), Recipe.from_toml(run_dir / "recipe.toml", overrides)


def restore(run_dir: str | Path, backend: str | None = None, **objects: Any) -> Finished:
    """Build the model of a finished run and load its weights.

    Args:
        run_dir: a folder that `tlx run` wrote.
        backend: where to build it; default: the backend that trained. On another one, on its best device, in the
            precision of the training where that is native there.
        **objects: `data`, `model` and `head`, where the recipe's were Python objects.
    """
    run_dir = Path(run_dir)
    card, recipe = read_run(run_dir, **objects)
    target = registry.load(backend or recipe.backend)
    recipe = resolve_placement(recipe, target) if backend is None else _moved(recipe, target)
    model, arch = build_model(recipe, target, len(card["classes"]))
    specs = target.param_specs(model)
    weights = match(read_weights(run_dir), specs, head=arch.head, model_name=arch.name, take_head=True)
    target.load_arrays(model, weights)
    return Finished(run_dir, card, recipe, target, model)


def _moved(recipe: Recipe, backend: Backend) -> Recipe:
    placed = resolve_placement(replace(recipe, backend=backend.name, device="auto", precision="auto"), backend)
    if recipe.precision in backend.capabilities().precisions[placed.device]:
        return replace(placed, precision=recipe.precision)
    return placed


def load_model(run_dir: str | Path, backend: str | None = None, *, model: Any = None, head: Any = None) -> Any:
    """Return the model of a finished run as the framework's own module, in eval mode.

    The module has two attributes more: `classes`, the class names in the order of the logits, and `preprocess`, which
    turns uint8 images [N, 3, h, w] into the array [N, 3, size, size] that the module takes, in its dtype::

        model = tlx.load_model("runs/digits-resnet18-full-torch-1")
        logits = model(torch.from_numpy(model.preprocess(images)))

    Its dropout layers draw their masks from tlx's streams, which only `tlx.run` advances. To train on by hand, load
    the module's `state_dict()` into a model of your own.

    Args:
        run_dir: a folder that `tlx run` wrote.
        backend: whose module to build; default: the backend that trained. The same weights serve either.
        model: the module again, where the run's `model` was a Python object; a copy of it is returned.
        head: the module again, where the run's `head` was one.

    Raises:
        RunNotFound: there is no finished run in the folder.
        BackendUnavailable: the backend is not installed.
        WeightsError: the weights are damaged or do not fit.
    """
    finished = restore(
        run_dir, backend, data={}, model=model, head=head
    )  # it reads no data, which may have been Python objects
    module = finished.model.module
    module.classes = tuple(finished.card["classes"])
    dtype = np.float64 if finished.recipe.precision == "float64" else np.float32
    module.preprocess = partial(Preprocess(**finished.card["preprocess"]).apply, dtype=dtype)
    return module
