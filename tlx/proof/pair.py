"""Two modules of the user's own as the two sides of a comparison: what each is given, and what belongs to what."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tlx import rng
from tlx.backend import Backend, registry
from tlx.backend.module.base import ModuleBackend
from tlx.errors import RecipeError, closest
from tlx.proof import trial
from tlx.proof.matching import Match, match
from tlx.proof.names import Names, names_of
from tlx.proof.own import UNSEEN, batches_of, check_fields, losses_of, with_inputs
from tlx.proof.propose import proposal
from tlx.proof.rename import Renamed, views
from tlx.recipe import Recipe, as_recipe

DATA, IMAGE_SIZE = "digits", 64  # of a comparison that says nothing else; for modules, images are drawn instead
STAGES_OF_INPUTS = ("P1", "P3", "P4", "P5", "P6")  # what needs neither labels nor images


@dataclass(frozen=True, slots=True)
class Pair:
    """Two modules, each with its framework's backend and the recipe by which it is proved."""

    backends: tuple[Any, ...]
    modules: tuple[Any, ...]
    recipe: Recipe  # of the reference
    stages: tuple[str, ...] | None = None  # None: all
    replaces_head: bool = False  # where images of the user's own may have other classes

    def sides(self, rename: object) -> list[tuple[Backend, Recipe]]:
        """Return the backend and the recipe of each side; both have the names and the arrays that both share.

        Raises:
            RecipeError: an array has no partner. The message proposes a map, which was tried.
        """
        reference, candidate = (
            names_of(backend, module, side)
            for backend, module, side in zip(self.backends, self.modules, ("reference", "candidate"), strict=True)
        )
        found = match(reference, candidate, rename)
        if found.missing or found.extra or found.misfits(reference, candidate):
            self._refuse(found, reference, candidate, rename)
        seen, order = trial.seen(self._sides(found, reference, candidate))
        found.layouts = {**seen, **found.layouts}
        return self._sides(found, reference, candidate, order)

    def _sides(
        self, found: Match, reference: Names, candidate: Names, order: tuple[str, ...] = ()
    ) -> list[tuple[Backend, Recipe]]:
        both = views(found, reference, candidate)
        inner = self.backends
        if self.stages is not None:
            layouts = (view.layouts.get("", (None, None)) for view in both)
            inner = tuple(b.like(leaving, order) for b, (_, leaving) in zip(inner, layouts, strict=True))
        inner = tuple(map(_with_norms_as_given, inner, self._norms_as_given(found)))
        backends: list[Any] = [
            Renamed(backend, view, self.replaces_head) for backend, view in zip(inner, both, strict=True)
        ]
        return [(backend, self._recipe(side)) for side, backend in enumerate(backends)]

    def _norms_as_given(self, found: Match) -> tuple[frozenset[str], frozenset[str]]:
        """Return the BatchNorms of each side whose eps and momentum stay: the partner is none of another framework."""
        ours, theirs = (
            {path for path, module in whole.named_modules() if isinstance(module, backend.batch_norms)}
            for backend, whole in zip(self.backends, self.modules, strict=True)
        )
        crossing = self.backends[0].name != self.backends[1].name
        pairs = [(a, b) for a, b in found.modules.items() if crossing and a in ours and b in theirs]
        return frozenset(ours.difference(a for a, _ in pairs)), frozenset(theirs.difference(b for _, b in pairs))

    def _recipe(self, side: int) -> Recipe:
        return replace(self.recipe, model=self.modules[side], backend=self.backends[side].name)

    def _refuse(self, found: Match, reference: Names, candidate: Names, rename: Any) -> None:
        """Raise RecipeError with a map that fits; arrays of another shape, which none fits, are left to the proof."""
        ours, theirs = (
            trial.ordered(names, (backend, self._recipe(side)))
            for side, (names, backend) in enumerate(zip((reference, candidate), self.backends, strict=True))
        )
        advice = proposal(ours, theirs, rename, lambda one: trial.alike(self._sides(one, reference, candidate)))
        if found.missing or found.extra:
            lacking = f"in the reference {_few(found.missing)}; in the candidate {_few(found.extra)}"
            advice = advice or " No map by shape was found; pass rename={reference: candidate}, None for nothing."
            raise RecipeError(f"The modules' names do not match; without a partner: {lacking}.{advice}")
        if advice:
            other = found.misfits(reference, candidate)
            raise RecipeError(f"The modules' arrays have other shapes: {_few(other)}.{advice}")


def _with_norms_as_given(backend: Any, paths: frozenset[str]) -> Any:
    other = copy.copy(backend)
    other.norms_as_given = paths
    return other


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "none"


def pair_of(
    recipe: Any,
    fields: Mapping[str, Any],
    defaults: Mapping[str, Any],
    modules: tuple[Any, Any],
    batch: object,
    loss: object,
) -> Pair:
    """Make a pair of two modules.

    Args:
        recipe: as `tlx.parity` takes it.
        fields: what was given beside it.
        defaults: what a comparison of backends fills in.
        modules: the reference and the candidate.
        batch: None: images that the core draws, or those of `data=`.
        loss: only beside a batch.

    Raises:
        RecipeError: a module is of no framework that has a backend, or something given contradicts another.
    """
    backends: tuple[Any, ...] = tuple(registry.load(backend_of(module)) for module in modules)
    for backend in backends:
        if not isinstance(backend, ModuleBackend):
            raise RecipeError(f"modules are compared by backends made with tlx.backend.module; {backend.name!r} is not")
    unwrapped = tuple(backend.unwrapped(module) for backend, module in zip(backends, modules, strict=True))
    if batch is None:
        if loss is not None:
            raise RecipeError("loss= needs batch=, your own inputs; images are judged by the cross-entropy of labels")
        given: Mapping[str, Any] = fields if recipe is not None else {**defaults, **fields}
        own = as_recipe(recipe, {**given, **image_fields(backends[0], unwrapped[0], given)})
        if own.lora is not None:
            problem = f"strategy {own.strategy_name!r} adds layers to a model, and two modules are compared as they are"
            raise RecipeError(problem, fix="compare two backends by it, or two modules by another strategy")
        theirs = given.get("data", DATA) != DATA
        return Pair(backends, unwrapped, own, replaces_head=theirs)
    own = _input_recipe(recipe, fields, unwrapped[0])
    batches, losses = batches_of(batch), losses_of(loss)
    fed = tuple(with_inputs(backend, batches, one) for backend, one in zip(backends, losses, strict=True))
    return Pair(fed, unwrapped, own, STAGES_OF_INPUTS)


def _input_recipe(recipe: Any, fields: Mapping[str, Any], module: Any) -> Recipe:
    """Return the recipe for inputs of the user's own: everything trains at one rate, for 40 steps."""
    base = None if recipe is None else as_recipe(recipe, {})
    given = {} if base is None else {f.name: getattr(base, f.name) for f in base.changed()}
    given |= fields
    check_fields(given, given.get("strategy"), given.get("schedule"))
    if not any(True for _ in module.parameters()):
        raise RecipeError(f"{type(module).__name__} has no parameter, so nothing to train")
    return as_recipe(None, {"epochs": 4, "schedule": "step", "step_size": 1, **given, **UNSEEN, "model": module})


def image_fields(backend: Any, module: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a comparison by images needs beyond the defaults: the head, and images that the core draws.

    Raises:
        RecipeError: the head is no layer, or the module gives something else than logits.
    """
    matrices = {name: tuple(p.shape) for name, p in module.named_parameters() if len(p.shape) > 1}
    if not matrices:
        raise RecipeError(f"{type(module).__name__} has no layer with a weight matrix, so nothing to compare")
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in matrices))
    extra: dict[str, Any] = {"model": module, "weights": "own", "augment": fields.get("augment", "none")}
    head = fields.get("head")
    if head is not None and head not in layers:
        raise RecipeError(f"head is {head!r}, which is no layer of the reference.{closest(str(head), layers)}")
    if fields.get("data", DATA) != DATA:
        return {**extra, "head": head or layers[-1]}
    size = int(fields.get("image_size") or IMAGE_SIZE)
    classes = trial.classes(backend, module, size)
    fitting = [name.rpartition(".")[0] for name, shape in matrices.items() if classes in (shape[0], shape[-1])]
    head = head or (fitting or layers)[-1] or "outputs"
    return {**extra, "head": head, "data": drawn_images(classes, size)}


def drawn_images(classes: int, size: int) -> dict[str, Any]:
    """Draw random images, uint8 of shape (n, 3, size, size), and labels of which every class occurs, as `data=`."""
    count = max(400, 2 * classes)
    pixels = rng.words(0, "parity/pixels", 0, count, 3 * size * size // 4 + 1).view(np.uint8)
    images = np.ascontiguousarray(pixels[:, : 3 * size * size].reshape(count, size, size, 3))
    labels = np.arange(count) % classes
    names = [str(label) for label in range(classes)]
    part = max(count // 8, classes)
    return {"train": (images, labels), "test": (images[:part], labels[:part]), "classes": names}


def backend_of(module: Any) -> str:
    """Name the backend of a module's framework, by the packages of its base classes.

    Raises:
        RecipeError: it is no module of a framework that has a backend.
    """
    roots = {kind.__module__.partition(".")[0] for kind in type(module).__mro__}
    known = [entry.name for entry in registry.available()]
    if hasattr(module, "named_parameters"):
        for name in known:
            if name in roots:
                return name
    raise RecipeError(f"{type(module).__name__} is no module of a framework that has a backend: {', '.join(known)}")
