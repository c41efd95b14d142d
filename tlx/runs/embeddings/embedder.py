"""What turns images into vectors: a finished run or a model by its name, cut off before its head."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlx.backend import Array, Backend, Batch, Lazy, Model, ParamSpec, Preprocess, registry
from tlx.data.framing import Framing
from tlx.errors import RecipeError, RunNotFound, TlxError, shown
from tlx.models.weights import digest
from tlx.models.zoo import Architecture, architecture, own_architecture
from tlx.recipe import Recipe
from tlx.runs.finished import Finished, restore
from tlx.training.build import build_model, load_initial, resolve_placement, with_pinned_weights

CLASSES = 2  # outputs of a head that is never computed


@dataclass(frozen=True, slots=True, eq=False)
class Embedder:
    """A model on its backend, with the preprocessing that is its own; what enters its head is an image's vector.

    `run_dir` is what it was called: the folder of a run, or the name of a model.
    """

    run_dir: Path
    recipe: Recipe
    backend: Backend
    model: Model
    preprocess: Preprocess
    framing: Framing
    head: tuple[ParamSpec, ...]
    sha256: str  # of the values outside the head
    weights: str  # where they are from, to be shown

    def outputs(self, batch: Batch) -> Lazy:
        """Start a batch on the device."""
        return self.backend.features(self.model, self.backend.put(self.model, batch))

    def logits(self, outputs: Array) -> Array:
        """Return what was fetched as one vector for each image, [N, width]."""
        return one_row_each(outputs, self.head)

    @property
    def width(self) -> int:
        """The length of a vector; it takes one image through the model."""
        size = self.framing.size
        image, zero = np.zeros((1, 3, size, size), np.uint8), np.zeros(1, np.int64)
        (features,) = self.backend.fetch([self.outputs(Batch(image, zero, zero, self.preprocess))])
        return int(self.logits(features).shape[1])

    def identity(self) -> dict[str, Any]:
        """Return what two vectors must have in common to be compared, as plain values."""
        seen = {"size": self.preprocess.size, "mean": list(self.preprocess.mean), "std": list(self.preprocess.std)}
        framed = {"crop_fraction": self.framing.crop_fraction, **self.framing.facts()}
        return {"model": self.recipe.model_name, "sha256": self.sha256, "preprocessing": {**seen, **framed}}


def one_row_each(features: Array, head: Sequence[ParamSpec]) -> Array:
    """Return what enters a head, [N, ...], as one row for each image.

    The positions of a map before a convolution, and tokens before a linear layer, count by their mean, as in
    `tlx.training.fit`. A map that the head flattens is flattened.
    """
    if features.ndim == 2:
        return features
    shapes = [spec.shape for spec in head if spec.role == "weight" and len(spec.shape) in (2, 4)]
    width, inner = (shapes[0][1] if shapes and len(shapes[0]) == 2 else None), features.shape[1:]
    if features.ndim == 1 or width == math.prod(inner):
        return features.reshape(len(features), -1)
    tokens = width == inner[-1] or (width is None and features.ndim == 3)
    axes = tuple(range(1, features.ndim - 1) if tokens else range(2, features.ndim))
    return np.asarray(features.mean(axis=axes, dtype=np.float64).astype(features.dtype))


def open_embedder(
    source: Any, backend: str | None = None, weights: str | None = None, *, model: Any = None, head: Any = None
) -> Embedder:
    """Open what gives vectors.

    Args:
        source: the folder of a finished run, or the name of a model as `tlx models` lists it.
        backend: where it computes; default: the backend that trained, and torch for a model by its name.
        weights: of a model by its name, as in a recipe.
        model: the module again, where the run's was a Python object.
        head: likewise.

    Raises:
        RunNotFound: it is neither a finished run nor the name of a model.
        TlxError: weights are named for a run, which has its own.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TlxError(f"the model is {shown(source)}; expected the folder of a run, or the name of a model")
    text = os.fspath(source)
    try:
        named = architecture(text) if isinstance(source, str) and text and not os.path.isdir(text) else None
    except RecipeError as error:
        if os.path.lexists(text) or "/" in text or text.startswith("."):
            named = None
        else:
            raise RunNotFound(f"there is no run in {text!r}, and no model of that name: {error}") from error
    if named is not None:
        return _of_model(named.name, backend, weights)
    if weights is not None:
        raise TlxError(f"{text} is a run, which has weights of its own", fix="leave weights out")
    return of_run(restore(text, backend, model=model, head=head))


def of_run(run: Finished) -> Embedder:
    """Return what gives the vectors of a finished run."""
    specs = run.backend.param_specs(run.model)
    recipe = run.recipe
    arch = architecture(recipe.model) if isinstance(recipe.model, str) else _own(recipe, specs)
    head, sha256 = _divided(run.backend, run.model, specs, arch)
    where = f"of the run {run.run_dir.name}"
    return Embedder(run.run_dir, run.recipe, run.backend, run.model, run.preprocess, run.framing, head, sha256, where)


def _own(recipe: Recipe, specs: Sequence[ParamSpec]) -> Architecture:
    assert recipe.head_path is not None
    return own_architecture(recipe.model_name, recipe.head_path, specs)


def _of_model(name: str, backend: str | None, weights: str | None) -> Embedder:
    """Build a model as its own recipe says, which sees every image as its weights expect a photo."""
    home = architecture(name).backend or "torch"
    target = registry.load(backend or home)
    # In float32, so that the vectors are the same wherever they are made.
    asked = Recipe(model=name, backend=target.name, weights=weights, precision="float32")
    recipe = with_pinned_weights(resolve_placement(asked.resolved(), target), progress=True)
    model, arch = build_model(recipe, target, CLASSES)
    names = [str(number) for number in range(CLASSES)]
    load_initial(recipe, target, model, arch, names, progress=True)
    head, sha256 = _divided(target, model, target.param_specs(model), arch)
    pixels = recipe.pixels
    preprocess = Preprocess(pixels.size, pixels.mean, pixels.std, pixels.interpolation)
    framing = Framing.from_preprocess(preprocess, pixels.crop_fraction, pixels.aspect, recipe.antialias, enlarges=True)
    return Embedder(Path(name), recipe, target, model, preprocess, framing, head, sha256, str(recipe.weights))


def _divided(
    backend: Backend, model: Model, specs: Sequence[ParamSpec], arch: Architecture
) -> tuple[tuple[ParamSpec, ...], str]:
    """Return the head's parameters, and the digest of all values before it, which does not depend on the precision."""
    head = tuple(spec for spec in specs if arch.stage_of(spec.module) == "head")
    left_out = {spec.name for spec in head}
    values = {name: array for name, array in backend.dump_arrays(model).items() if name not in left_out}
    single = {name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in values.items()}
    counters = {spec.name for spec in specs if spec.role == "statistic" and spec.name.endswith("num_batches_tracked")}
    return head, digest({name: array for name, array in single.items() if name not in counters})


def differs(identity: dict[str, Any], other: dict[str, Any]) -> str:
    """Say in a few words how two identities differ; an empty text where they do not."""
    if identity["model"] != other.get("model"):
        return f"the model {other.get('model')}, not of {identity['model']}"
    if identity["sha256"] != other.get("sha256"):
        return f"other weights ({str(other.get('sha256'))[:12]}, not {identity['sha256'][:12]})"
    if identity["preprocessing"] != other.get("preprocessing"):
        theirs: Any = other.get("preprocessing")
        names = [n for n, v in identity["preprocessing"].items() if not isinstance(theirs, dict) or theirs.get(n) != v]
        return f"other preprocessing ({', '.join(names) or 'more of it'})"
    return ""
