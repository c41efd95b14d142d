"""Prove that two backends, or two modules, do the same: capture both, compare, say where they first differ."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tlx.backend import Backend, registry
from tlx.errors import Interrupted, RecipeError, TlxError
from tlx.processes import Alone, Channel
from tlx.proof.beside import capture_both
from tlx.proof.capture import capture
from tlx.proof.compare import compare
from tlx.proof.pair import DATA, IMAGE_SIZE, backend_of, image_fields, pair_of
from tlx.proof.report import Report
from tlx.proof.result import Difference, Verdict
from tlx.proof.spread import capture_spread
from tlx.proof.statistics import equivalence, verdict_of
from tlx.recipe import Recipe, RecipeFields, as_recipe, takes_fields

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Where nothing else is asked for: no network, and each kind of boundary is crossed.
DEFAULTS: Mapping[str, Any] = {
    "data": DATA,
    "weights": "none",
    "image_size": IMAGE_SIZE,
    "strategy": "head_then_full",
    "phase_epochs": 2,
    "schedule": "step",
    "step_size": 1,
    "epochs": 4,
}
MARGIN = 0.005


@takes_fields
def parity(
    recipe: Recipe | RecipeFields | Mapping[str, Any] | str | Path | None = None,
    *,
    reference: Any = "torch",
    candidate: Any = "oneflow",
    rename: Mapping[Any, Any] | None = None,
    batch: Any = None,
    loss: Any = None,
    copy_weights: bool = False,
    quick: bool = False,
    seeds: int = 0,
    margin: float = MARGIN,
    keep: str | Path | None = None,
    processes: int | None = None,
    **fields: Unpack[RecipeFields],
) -> Report:
    """Compare how two backends train by one recipe, or how two modules of your own compute.

    Args:
        recipe: a Recipe, its fields, or a TOML file. It is shortened to at least 40 small steps that cross each
            boundary of its strategy. Default: ResNet-18 on scanned digits, the head first, then everything.
        reference: the backend that counts as right, by name or itself; or a module of any framework that has a backend.
        candidate: the backend, or the module, that is compared with it.
        rename: for modules, what each path or array of the reference is in the candidate, where that is another: a
            path, with stars for what varies, or a transform of `tlx.mapping`.
        batch: for modules, inputs of your own instead of images: a NumPy array, a tuple of them (positional), a
            dictionary (by keyword), or a list of such batches, which the steps take in turn. Floating-point numbers are
            cast to the model's dtype. Everything trains at one rate; there are no labels, so P2, P7 and P8 are not run.
        loss: with `batch`, ``(outputs, batch) -> scalar tensor``, or one for each side as a pair. It is given the
            batch as tensors; a key of a dictionary that `forward` does not take is for the loss alone. Default: the
            mean of each floating-point output times numbers that the core draws.
        copy_weights: give the candidate's module, on a copy, the reference's values first, where the question is only
            whether it computes the same.
        quick: smaller images, and without P9, which is no gate.
        seeds: also train this many times on each backend by the whole recipe, and test whether the accuracies are
            equivalent.
        margin: the difference in accuracy that would matter.
        keep: a folder for the two captures, which are thrown away otherwise.
        processes: compare the reference, a backend, in one process with itself in so many of this machine.
        **fields: recipe fields, which replace those of `recipe`; for modules also `head`, the last layer's path. Not
            `backend` and `out`, for which a comparison has `reference`, `candidate` and `keep`.

    Returns:
        The report: print it, or read `verdict` and `first`.

    Raises:
        TlxError: the input is not as it must be. A difference is no error.
    """
    started = time.perf_counter()
    for name, instead in (("backend", "reference and candidate"), ("out", "keep")):
        if name in fields:
            raise RecipeError(f"parity has no {name}; use {instead}")
    if fields.get("log"):
        raise RecipeError("parity logs nothing; leave log out")
    if processes is not None:
        candidate = _spread(reference, processes, seeds)
    modules = [side for side in (reference, candidate) if not isinstance(side, (str, Backend))]
    stages = None
    sides: Sequence[tuple[Backend | str, Recipe]]
    if not modules:
        for name, given in (("rename", rename), ("batch", batch), ("loss", loss)):
            if given is not None:
                raise RecipeError(f"{name} is for two modules; reference and candidate are backends")
        shared = as_recipe(recipe, fields if recipe is not None else defaults(fields))
        sides = [(side if _is_installed(side) else _loaded(side), shared) for side in (reference, candidate)]
    elif len(modules) == 1:
        raise RecipeError("parity compares two backends, or two modules; one side is a backend and one a module")
    else:
        if seeds:
            raise RecipeError("seeds needs two backends; two modules are compared step by step only")
        pair = pair_of(recipe, fields, defaults(fields), (reference, candidate), batch, loss)
        sides, stages = pair.sides({} if rename is None else rename), pair.stages
    with TemporaryDirectory(prefix="tlx-parity-") as scratch:
        home = Path(scratch if keep is None else keep)
        (side, own), (other_side, other) = sides
        serves = keep is not None or processes is not None
        if quick and not modules and processes is None:
            first, second = capture_both(own, side, other_side, home, copy_weights=copy_weights, serves=serves)
        else:
            first = capture(own, side, home / "reference", quick=quick, stages=stages, serves=serves)
            if processes is not None:
                second = capture_spread(reference, home / "candidate", first, processes, quick)
            else:
                second = capture(
                    other, other_side, home / "candidate", first, quick=quick, copy_weights=copy_weights, stages=stages
                )
        report = compare(first, second)
    if seeds and report.verdict != Verdict.NOT_COMPARABLE:
        names = [(side if isinstance(side, str) else side.name, recipe) for side, recipe in sides]
        report = _with_seeds(report, names, seeds, margin)
    return replace(report, seconds=time.perf_counter() - started)


def _is_installed(side: Any) -> bool:
    return any(entry.name == side and entry.state == "installed" for entry in registry.available())


def _loaded(side: Any) -> Backend:
    return registry.load(side) if isinstance(side, str) else side


def _spread(reference: Any, processes: int, seeds: int) -> str:
    """Return the backend that is compared with itself in several processes; RecipeError where that cannot be."""
    if not isinstance(reference, str):
        raise RecipeError("processes compares a backend with itself; name one as the reference")
    if seeds:
        raise RecipeError("processes has no whole runs to compare; leave seeds out")
    if processes < 2:
        raise RecipeError(f"processes is {processes}; expected 2 or more")
    return reference


def defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with `DEFAULTS` filled in, except what belongs to a strategy that was not chosen."""
    filled = {**DEFAULTS, **fields}
    if filled["strategy"] != DEFAULTS["strategy"] and "phase_epochs" not in fields:
        del filled["phase_epochs"]
    return filled


def capture_recipe(
    recipe: str | Path | None,
    out: Path,
    reference: Path | None,
    quick: bool,
    fields: Mapping[str, Any],
    channel: Channel = Alone(),  # noqa: B008 (frozen)
) -> Path:
    """Capture one backend: what `tlx parity capture` runs.

    With a reference and no field but the backend, recipe, weights and batches come from the reference. Where a launcher
    has started several processes, these compute together, and the first one's capture is kept.
    """
    backend = fields.get("backend", "torch")
    if reference is not None and recipe is None and set(fields) <= {"backend"}:
        return capture(None, backend, out, reference, quick=quick, channel=channel)
    whole = as_recipe(recipe, fields if recipe is not None else defaults(fields))
    return capture(whole, whole.backend, out, reference, quick=quick, channel=channel)


def capture_module(module: Any, folder: str | Path, *, quick: bool = False, **fields: Unpack[RecipeFields]) -> Path:
    """Capture a module of your own, as the reference of an engine outside tlx or of a loop by hand.

    Args:
        module: of any framework that has a backend.
        folder: where it goes, new or empty.
        quick: smaller images, and without P9, which is no gate.
        **fields: recipe fields, as for `parity`.

    Raises:
        TlxError: the input is not as it must be.
    """
    backend, asked = registry.load(backend_of(module)), defaults(fields)
    recipe = as_recipe(None, {**asked, **image_fields(backend, module, asked)})
    return capture(replace(recipe, backend=backend.name), backend, folder, quick=quick)


def _with_seeds(report: Report, sides: list[tuple[str, Recipe]], seeds: int, margin: float) -> Report:
    """Add P10: train the whole recipe on both sides with each seed, and compare the final accuracies."""
    accuracies: tuple[list[float], list[float]] = ([], [])
    for seed in range(seeds):
        for of_side, (name, recipe) in zip(accuracies, sides, strict=True):
            of_side.append(final_accuracy(replace(recipe, backend=name, seed=seed)))
    stage = equivalence(accuracies[0], accuracies[1], margin)
    verdict = report.verdict if report.verdict != Verdict.EQUAL else verdict_of(stage)
    difference = report.difference
    if difference is None and stage.passed is False:
        difference = Difference(stage, stage.rows[-1])
    stages = (*(s for s in report.stages if s.id != stage.id), stage)
    return replace(report, verdict=verdict, stages=stages, difference=difference)


def final_accuracy(recipe: Recipe) -> float:
    """Train by a recipe, in float32 unless it says otherwise, and return the test accuracy."""
    from tlx.runs.display import Display
    from tlx.runs.job import execute

    precision = "float32" if recipe.precision == "auto" else recipe.precision
    with TemporaryDirectory(prefix="tlx-parity-") as scratch:
        try:
            result = execute(replace(recipe, precision=precision, out=f"{scratch}/run"), Display(quiet=True))
        except Interrupted as stop:  # which names a folder that goes away here
            raise Interrupted("stopped; nothing was kept of the comparison", stop.signum) from None
    if result.test_accuracy is None:
        raise TlxError("seeds compares test accuracies, but the data has no test part")
    return result.test_accuracy
