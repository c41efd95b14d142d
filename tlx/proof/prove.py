"""Prove that two stacks, or two modules, do the same: capture both, compare, say where they part."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tlx import rng
from tlx.backend import Backend, registry
from tlx.errors import RecipeError, TlxError, closest
from tlx.proof.capture import capture
from tlx.proof.compare import compare
from tlx.proof.rename import Renamed, partners
from tlx.proof.result import Report, Verdict
from tlx.recipe import Recipe

# Where nothing else is asked for: no network, and each kind of boundary is crossed.
DEFAULTS: Mapping[str, Any] = {
    "data": "digits",
    "weights": "none",
    "image_size": 64,
    "strategy": "head_then_full",
    "phase_epochs": 2,
    "schedule": "step",
    "step_size": 1,
    "epochs": 4,
}
MARGIN = 0.005


def parity(
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    *,
    reference: Any = "torch",
    candidate: Any = "oneflow",
    rename: Mapping[str, str] | None = None,
    copy_weights: bool = False,
    quick: bool = False,
    seeds: int = 0,
    margin: float = MARGIN,
    keep: str | Path | None = None,
    **fields: Any,
) -> Report:
    """Compare how two stacks train by one recipe, or how two modules of your own compute.

    Args:
        recipe: a Recipe, its fields, or a TOML file. It is shortened to at least 40 small steps that cross each
            boundary of its strategy. Default: ResNet-18 on scanned digits, the head first, then everything.
        reference, candidate: two backends, by name or themselves; or two modules, each of any framework that has one.
        rename: for modules, the reference's paths or names of parameters -> the candidate's.
        copy_weights: give the candidate's module the reference's values first (on a copy), where the question is only
            whether it computes the same.
        quick: smaller images, and without P9, which is no gate.
        seeds: also train so many times on each stack by the whole recipe, and test whether accuracies are equivalent.
        margin: the difference in accuracy that would matter.
        keep: a folder for the two captures, which are else thrown away.
        **fields: recipe fields, which replace those of `recipe`; for modules also `head`, the last layer's path.

    Raises:
        TlxError: the input is not as it must be. A difference is no error: see `Report.verdict` and `Report.first`.
    """
    from tlx.recipe import as_recipe

    started = time.perf_counter()
    for name, instead in (("backend", "reference and candidate"), ("out", "keep")):
        if name in fields:
            raise RecipeError(f"parity has no {name}; use {instead}")
    if recipe is None:
        fields = defaults(fields)
    modules = [side for side in (reference, candidate) if not isinstance(side, (str, Backend))]
    sides: list[tuple[Backend, Recipe]]
    if not modules:
        made = as_recipe(recipe, fields)
        stacks = [registry.load(side) if isinstance(side, str) else side for side in (reference, candidate)]
        sides = [(stack, made) for stack in stacks]
    elif len(modules) == 1:
        raise RecipeError("parity compares two backends, or two modules; one side is a backend and one a module")
    else:
        if seeds:
            raise RecipeError("seeds needs two backends; two modules are compared step by step only")
        sides = _pair(
            as_recipe(recipe, {**fields, **_pair_fields(reference, fields)}), reference, candidate, rename or {}
        )
    with TemporaryDirectory(prefix="tlx-parity-") as scratch:
        home = Path(scratch if keep is None else keep)
        first = capture(sides[0][1], sides[0][0], home / "reference", quick=quick)
        backend, other = sides[1]
        second = capture(other, backend, home / "candidate", first, quick=quick, copy_weights=copy_weights)
        report = compare(first, second)
    if seeds and report.verdict != Verdict.NOT_COMPARABLE:
        report = _with_seeds(report, [(backend.name, r) for backend, r in sides], seeds, margin)
    return replace(report, seconds=time.perf_counter() - started)


def defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in `DEFAULTS`, but for what belongs to a strategy that was not chosen."""
    chosen = {**DEFAULTS, **fields}
    if chosen["strategy"] != DEFAULTS["strategy"] and "phase_epochs" not in fields:
        del chosen["phase_epochs"]
    return chosen


def capture_recipe(
    recipe: str | Path | None, out: Path, plan: Path | None, quick: bool, fields: Mapping[str, Any]
) -> Path:
    """Capture one stack; with a plan and no field but the backend, everything comes from the plan."""
    from tlx.recipe import as_recipe

    backend = fields.get("backend", "torch")
    if plan is not None and recipe is None and set(fields) <= {"backend"}:
        return capture(None, backend, out, plan, quick=quick)
    made = as_recipe(recipe, fields if recipe is not None else defaults(fields))
    return capture(made, made.backend, out, plan, quick=quick)


def _with_seeds(report: Report, sides: list[tuple[str, Recipe]], seeds: int, margin: float) -> Report:
    from tlx.proof.statistics import equivalence, verdict_of

    accuracies: tuple[list[float], list[float]] = ([], [])
    for seed in range(seeds):
        for found, (name, recipe) in zip(accuracies, sides, strict=True):
            found.append(final_accuracy(replace(recipe, backend=name, seed=seed)))
    stage = equivalence(accuracies[0], accuracies[1], margin)
    verdict = report.verdict if report.verdict != Verdict.EQUAL else verdict_of(stage)
    return replace(report, verdict=verdict, stages=(*(s for s in report.stages if s.id != stage.id), stage))


def final_accuracy(recipe: Recipe) -> float:
    """Train by a recipe, in float32 unless it says otherwise, and return the test accuracy."""
    from tlx.runs.display import Display
    from tlx.runs.job import execute

    precision = "float32" if recipe.precision == "auto" else recipe.precision
    with TemporaryDirectory(prefix="tlx-parity-") as scratch:
        result = execute(replace(recipe, precision=precision, out=f"{scratch}/run"), Display(quiet=True))
    if result.test_accuracy is None:
        raise TlxError("seeds compares test accuracies, but the data has no test part")
    return result.test_accuracy


def _pair_fields(module: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison of modules needs beyond the defaults: the head, and images that the core draws."""
    weights = {name: p for name, p in module.named_parameters() if len(p.shape) > 1}
    if not weights:
        raise RecipeError(f"{type(module).__name__} has no layer with a weight matrix, so nothing to compare")
    head = fields.get("head") or list(weights)[-1].rpartition(".")[0]
    if f"{head}.weight" not in weights:
        layers = [name.rpartition(".")[0] for name in weights]
        raise RecipeError(f"head is {head!r}, which is no layer of the reference.{closest(str(head), layers)}")
    found: dict[str, Any] = {"head": head, "model": module, "weights": "own", "augment": fields.get("augment", "none")}
    if fields.get("data", DEFAULTS["data"]) == DEFAULTS["data"]:
        classes = int(weights[f"{head}.weight"].shape[0])
        found["data"] = drawn_images(classes, int(fields.get("image_size", DEFAULTS["image_size"])))
    return found


def drawn_images(classes: int, size: int) -> dict[str, Any]:
    """Random images and labels; every class occurs."""
    count = max(400, 2 * classes)
    pixels = rng.words(0, "parity/pixels", 0, count, 3 * size * size // 4 + 1).view(np.uint8)
    images = np.ascontiguousarray(pixels[:, : 3 * size * size].reshape(count, size, size, 3))
    labels = np.arange(count) % classes
    names = [str(label) for label in range(classes)]
    part = max(count // 8, classes)
    return {"train": (images, labels), "test": (images[:part], labels[:part]), "classes": names}


def _pair(recipe: Recipe, reference: Any, candidate: Any, rename: Mapping[str, str]) -> list[tuple[Backend, Recipe]]:
    stacks = [registry.load(stack_of(module)) for module in (reference, candidate)]
    other: Any = Renamed(stacks[1], partners(reference, candidate, rename))
    recipes = [replace(recipe, model=m, backend=s.name) for m, s in zip((reference, candidate), stacks, strict=True)]
    return [(stacks[0], recipes[0]), (other, recipes[1])]


def stack_of(module: Any) -> str:
    """Name the backend of a module's framework, by the packages of its base classes."""
    roots = {kind.__module__.partition(".")[0] for kind in type(module).__mro__}
    known = [entry.name for entry in registry.available()]
    if hasattr(module, "named_parameters"):
        for name in known:
            if name in roots:
                return name
    raise RecipeError(f"{type(module).__name__} is no module of a framework that has a backend: {', '.join(known)}")
