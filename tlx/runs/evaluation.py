"""Evaluate a finished run on its test part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tlx.backend import registry
from tlx.errors import RunNotFound, TlxError
from tlx.models.weights import match, read_weights
from tlx.recipe import Recipe
from tlx.runs.display import Display, follow
from tlx.runs.folder import read_json
from tlx.training.build import build, make_loader, open_data, place
from tlx.training.loop import evaluate


def evaluate_run(
    run_dir: str | Path, backend: str | None = None, *, quiet: bool = False, **objects: Any
) -> dict[str, Any]:
    """Evaluate a finished run's model on its test part, on the same backend or on another.

    Where `data` or `model` were Python objects, they are given again, as `objects`.
    Returns backend, test_accuracy, test_loss, images, recorded_accuracy (of the run itself) and run_dir.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "card.json").is_file():
        raise RunNotFound(f"{run_dir} holds no finished run: card.json is missing. Pass a folder that `tlx run` wrote.")
    recipe = Recipe.from_toml(run_dir / "recipe.toml", objects)
    recipe = recipe if backend is None else replace(recipe, backend=backend, device="auto", precision="auto")
    stack = registry.load(recipe.backend)
    recipe = place(recipe, stack)
    data = open_data(recipe)
    recorded = read_json(run_dir / "card.json")
    if list(data.classes) != recorded["classes"]:
        raise TlxError(f"{run_dir} was trained on classes {recorded['classes']}; the data has {list(data.classes)}")
    if data.test is None:
        raise TlxError(f"{data.name} has no test part")
    model, arch = build(recipe, stack, len(data.classes))
    arrays = read_weights(run_dir)
    specs = stack.param_specs(model)
    stack.load_arrays(model, match(arrays, specs, head=arch.head, model_name=arch.name, take_head=True))
    display = Display(quiet)
    with display.live(recipe):
        metrics = follow(evaluate(stack, model, make_loader(recipe, data.test), "test"), display, lambda event: None)
    return {
        "backend": recipe.backend,
        "test_accuracy": metrics.accuracy,
        "test_loss": metrics.loss,
        "images": metrics.images,
        "recorded_accuracy": read_json(run_dir / "result.json")["test_accuracy"],
        "run_dir": str(run_dir),
    }
