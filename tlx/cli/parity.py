"""Prove: `tlx parity` and its commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, TypedDict

from cyclopts import App, Parameter

from tlx.cli.options import PROVE, Fields, Json, RecipeFile, print_json
from tlx.errors import printable

parity = App(
    name="parity", group=PROVE, help="Prove that two backends train alike, and say where they differ if they do not."
)


class Shown(TypedDict, total=False):
    """How `tlx parity` reports."""

    json: Json
    html: Annotated[Path, Parameter(help="Write the whole comparison as one self-contained page.")]


@parity.default
def prove(
    recipe: RecipeFile = None,
    /,
    *,
    reference: str = "torch",
    candidate: str = "oneflow",
    quick: bool = False,
    seeds: int = 0,
    margin: float = 0.005,
    keep: Path | None = None,
    processes: int | None = None,
    overrides: Annotated[Fields | None, Parameter(name="*")] = None,
    shown: Annotated[Shown | None, Parameter(name="*")] = None,
) -> int:
    """Compare two backends on one recipe: exit code 0 equal, 1 different, 2 not comparable, 3 too few seeds to tell.

    The recipe is shortened to at least 40 small steps that cross each boundary of its strategy. Without a recipe and
    options: ResNet-18 on scanned digits, the head first, then everything.

    Parameters
    ----------
    reference:
        The backend that counts as right.
    candidate:
        The backend that is compared with it.
    quick:
        Smaller images, and without the stage that is advisory (P9).
    seeds:
        Train this many times on each by the whole recipe, and test whether their accuracies are equivalent.
    margin:
        The difference in accuracy that would matter.
    keep:
        Folder for the two captures, which are otherwise deleted.
    processes:
        Compare the reference in one process with itself in so many of this machine.
    """
    import tlx

    options: Any = {**(overrides or {})}
    options.update(quick=quick, seeds=seeds, margin=margin, keep=keep)
    if processes is not None:
        options.update(processes=processes)
        candidate = reference
    return _report(tlx.parity(recipe, reference=reference, candidate=candidate, **options), shown)


@parity.command
def capture(
    recipe: RecipeFile = None,
    /,
    *,
    out: Annotated[Path, Parameter(name=["--output", "-o"])],
    reference: Path | None = None,
    quick: bool = False,
    overrides: Annotated[Fields | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Write down what one backend (--backend) does with a recipe, for `tlx parity compare`, here or elsewhere.

    Parameters
    ----------
    out:
        A new folder for the capture: a manifest, JSON lines and .npy files.
    reference:
        The capture of the other backend. With no recipe and no option but --backend, recipe, weights and batches come
        from it.
    quick:
        Smaller images, and without the stage that is advisory (P9).
    """
    from tlx.processes import connected
    from tlx.proof.prove import capture_recipe

    with connected() as channel:
        folder = capture_recipe(recipe, out, reference, quick, overrides or {}, channel)
    if channel.world.rank > 0:
        return
    if json:
        print_json({"capture": str(folder)})
    else:
        print(printable(str(folder)))


@parity.command(name="compare")
def compare_captures(
    reference: Path, candidate: Path, /, *, shown: Annotated[Shown | None, Parameter(name="*")] = None
) -> int:
    """Compare two captures; needs no framework.

    Parameters
    ----------
    reference:
        The capture that counts as right.
    candidate:
        The capture that is compared with it.
    """
    from tlx.proof.compare import compare

    return _report(compare(reference, candidate), shown)


@parity.command(name="selftest")
def check_the_checker(*, backend: str = "torch", json: Json = False) -> int:
    """Plant faults in a backend and find them all, and none where there is none: exit code 1 where that fails.

    Parameters
    ----------
    backend:
        The backend: torch, oneflow or, without any framework, loopback.
    """
    from tlx.backend import registry
    from tlx.proof.selftest import show

    return show(registry.load(backend), json=json)


def _report(report: Any, shown: Shown | None) -> int:
    from tlx.proof.report import to_html, to_json

    options = shown or {}
    if "html" in options:
        from tlx.atomic import write_atomic

        write_atomic(os.path.realpath(options["html"]), to_html(report).encode(errors="backslashreplace"))
    print(to_json(report) if options.get("json") else report)
    return int(report.verdict)
