"""Two modules run once, before any proof: whether a map is right, and in which order and layout they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, TypeAlias

import numpy as np

from tlx import rng
from tlx.backend import Array, Batch, ModelSpec, Preprocess, Visit
from tlx.errors import RecipeError, TlxError
from tlx.proof.measure import relative
from tlx.proof.names import Axes, Layout, Names
from tlx.proof.own import tensors_in
from tlx.recipe import Recipe
from tlx.training import build

LIMIT = 1e-9  # of outputs that are called equal
# From channels first to last, and back; of tokens likewise. Tried first, as shapes alone may fit several.
USUAL: tuple[Axes, ...] = ((0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 1))
Side: TypeAlias = tuple[Any, Recipe]  # a backend, and the recipe with the module


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What one side gave: its outputs, the calls of its modules, and the names of outputs that are the user's own."""

    outputs: Array
    visits: tuple[Visit, ...]
    names: tuple[str, ...]


def alike(sides: Sequence[Side]) -> bool | None:
    """Whether both give the same outputs from the same values, in eval mode and float64; None: one cannot be run."""
    try:
        reference, candidate = _run(sides)
    except TlxError:
        return None
    return relative(reference.outputs, candidate.outputs) <= LIMIT


def seen(sides: Sequence[Side]) -> tuple[dict[str, Layout], tuple[str, ...]]:
    """Return what the candidate does in another way: the layouts of modules; and the names of the reference's outputs.

    A module is listed where its activations have another order of axes than those of its partner.

    Raises:
        RecipeError: both sides name their outputs, and not alike.
    """
    try:
        ours, theirs = _run(sides)
    except TlxError:  # which the proof then meets too
        return {}, ()
    named = not any(name[:1].isdigit() for name in (*ours.names, *theirs.names))  # else they go by their order
    if named and set(ours.names) != set(theirs.names):
        given = [", ".join(names) for names in (ours.names, theirs.names)]
        raise RecipeError(f"The outputs have other names: in the reference {given[0]}; in the candidate {given[1]}")
    found = {}
    other = _first(theirs.visits)
    for path, visit in _first(ours.visits).items():
        if path in other:
            entering, leaving = (
                _axes(_tensor(visit, what), _tensor(other[path], what)) for what in ("input", "output")
            )
            if entering or leaving:
                found[path] = entering, leaving
    return found, ours.names


def classes(backend: Any, module: Any, size: int) -> int:
    """Return the number of logits that a module gives for images of that size.

    Raises:
        RecipeError: it cannot be run on images, or gives something else.
    """
    spec = ModelSpec(type(module).__name__, 1, head="", module=module)
    model = backend.build(spec, "cpu", "float64")
    pixels = rng.words(0, "parity/trial", 0, 2, 3 * size * size // 4 + 1).view(np.uint8)
    images = pixels[:, : 3 * size * size].reshape(2, 3, size, size)
    ready = backend.put(model, Batch(images, np.zeros(2, np.int64), np.arange(2), Preprocess(size)))
    name, fix = type(module).__name__, "for other inputs and outputs pass batch="
    try:
        with backend.fw.no_grad():
            output = backend.outputs(model, ready)
    except Exception as error:
        problem = f"{name}: {backend.failure(model, ready, error)}".rstrip(".")
        raise RecipeError(problem, fix=fix) from error
    shapes = [tuple(tensor.shape) for _, tensor in tensors_in(output)]
    logits = [shape[1] for shape in shapes if len(shape) == 2 and shape[0] == 2]
    if not logits:
        found = " and ".join(str(list(shape)) for shape in shapes) or f"a {type(output).__name__}"
        raise RecipeError(f"{name} gives {found} for two images, no logits [images, classes]", fix=fix)
    return int(logits[0])


def ordered(names: Names, side: Side) -> Names:
    """Add the order in which a module calls its children, where it can be run as it is."""
    backend, recipe = side
    try:
        model, batch = _built(backend, recipe)
        ready = backend.put(model, batch)
        visits = backend.probe(model).record(lambda: backend.logits(model, ready))
    except TlxError:
        return names
    calls: dict[str, int] = {}
    for number, visit in enumerate(visits):
        calls.setdefault(visit.path, number)
    return replace(names, calls=calls)


def _run(sides: Sequence[Side]) -> list[Run]:
    """Return each side's outputs and visits, from values that the reference's are moved to.

    Those of a fresh module would not tell one normalisation layer from another.
    """
    values: dict[str, Array] = {}
    results = []
    for backend, recipe in sides:
        model, batch = _built(backend, recipe)
        if not values:
            values = {name: _moved(name, array) for name, array in backend.dump_arrays(model).items()}
        dtypes = {spec.name: spec.dtype for spec in backend.param_specs(model)}
        backend.load_arrays(model, {name: np.asarray(array, dtypes[name]) for name, array in values.items()})
        results.append(_recorded(backend, model, batch))
    return results


def _recorded(backend: Any, model: Any, batch: Any) -> Run:
    ready, lazies = backend.put(model, batch), []
    visits = backend.probe(model).record(lambda: lazies.append(backend.logits(model, ready)))
    names = backend.listed(model, ready) if hasattr(backend, "listed") else ()
    return Run(backend.fetch(lazies)[0], visits, names)


def _built(backend: Any, recipe: Recipe) -> tuple[Any, Any]:
    """Build a module in float64; return it with a small batch."""
    plain = replace(recipe.resolved(), batch_size=2)
    data = build.open_data(plain)
    spec = ModelSpec(plain.model_name, len(data.classes), head="", module=plain.model)
    model = backend.build(spec, "cpu" if recipe.device == "auto" else recipe.device, "float64")
    return model, next(iter(build.make_loader(plain, data.train).epoch(0)))


def _moved(name: str, array: Array) -> Array:
    """Move numbers by up to 0.2: upwards, as a variance stays positive."""
    if array.dtype.kind != "f":
        return array
    return np.asarray(array + 0.2 * rng.uniform(0, f"parity/trial/{name}", array.shape))


def _first(visits: Sequence[Visit]) -> Mapping[str, Visit]:
    return {visit.path: visit for visit in reversed(visits)}


def _tensor(visit: Visit, what: str) -> Any:
    """Return the first tensor that entered or left."""
    several = getattr(visit, f"{what}s", None)
    return getattr(visit, what, None) if several is None else next(iter(several), None)


def _axes(ours: Any, theirs: Any) -> Axes | None:
    """Return how one activation becomes the other by another order of axes: by numbers, or else by shapes."""
    if not isinstance(ours, np.ndarray) or not isinstance(theirs, np.ndarray) or ours.ndim != theirs.ndim:
        return None
    if not 3 <= ours.ndim <= 5 or relative(ours, theirs) <= LIMIT:
        return None
    orders = (*(axes for axes in USUAL if len(axes) == ours.ndim), *permutations(range(ours.ndim)))
    fitting = [axes for axes in orders if tuple(ours.shape[axis] for axis in axes) == theirs.shape]
    for axes in fitting:
        if relative(ours.transpose(axes), theirs) <= LIMIT:
            return axes
    return fitting[0] if fitting and ours.shape != theirs.shape else None
