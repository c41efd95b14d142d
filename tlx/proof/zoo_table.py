"""P1 to P6 of every model that two backends share, as one table: what `make parity-zoo` runs, and goes on with.

A cell is one model with one optimizer at one size: two captures, each in a process of its own, as frameworks give no
memory back, and their comparison. What was found is kept as it comes, and what is equal already is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from tlx.errors import TlxError, one_line
from tlx.models.zoo import ARCHITECTURES, architecture
from tlx.proof.artifact import Capture
from tlx.proof.capture import capture
from tlx.proof.compare import compare
from tlx.proof.locked import BUDGET
from tlx.proof.matrix import free_memory, text
from tlx.proof.prove import DEFAULTS
from tlx.proof.report import Report
from tlx.proof.result import Stage, Verdict
from tlx.proof.words import VERDICTS, figure
from tlx.recipe import Recipe

STAGES = ("P1", "P2", "P3", "P4", "P5", "P6")
OPTIMIZERS = ("sgd", "adamw")
EVEN, ODD = 64, 49  # pixels: bilinear and adaptive pooling can be equal at one size and not at another
MEMORY, DISK = 95, 60  # bytes for a parameter, in float64: gradients, slots and copies; ConvNeXt large took 87
HEAD = f"""# Every shared model on two backends

Each model of `tlx models` in float64, with random weights, trained for 40 steps in batches of 8 by SGD and by AdamW, at
{EVEN} and at {ODD} pixels or the nearest that it takes: the head alone first, then everything, and the rate drops with
each epoch. Shown are how many of its arrays differ in any bit after loading (P1), and of its batches (P2); the largest
relative L2 distance of a module's output in eval mode (P3), of outputs, loss, buffers and gradients of one training
step (P4, as P3 at most 1e-10), and of updates from NumPy's (P5, at most 1e-12).

Of the trajectory (P6) the figure is the largest distance as a multiple of the reference's own scatter, or of ten times
that in the free run, at most 100. Then come the number of steps that were taken from the reference's own state; the
largest part of any array's update that could have changed there unseen; and the step from which on the free run shows
nothing, as the reference's own runs part.

Made by `make parity-zoo`, which leaves out what is done already. Of models that are not measured here, most have been
compared in [one training step](parity-zoo-step.md).

| model | parameters | optimizer | pixels | P1 | P2 | P3 | P4 | P5 | P6 | steps | unseen | free run to | |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """The outcome of one cell."""

    model: str
    optimizer: str
    size: int
    parameters: int = 0
    verdict: str = ""  # of the comparison; empty: there is none
    figures: Mapping[str, float] = field(default_factory=dict)  # of each stage
    locked: int = 0  # steps from the reference's own state
    unseen: float | None = None  # the largest part of an array's update that could change unseen there
    silent: int | None = None  # the step from which on the free run shows nothing
    why: str = ""  # the first difference, or why there is no comparison
    seconds: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether the two backends compute the same."""
        return self.verdict == Verdict.EQUAL.name

    def __str__(self) -> str:
        """Return the cell's line of the table, in Markdown."""
        head = f"| {self.model} | {self.parameters / 1e6:.1f} M | {self.optimizer} | {self.size} |"
        if not self.verdict:
            return f"{head} {'- | ' * 9}not measured: {self.why} |"
        figures = " | ".join(figure(self.figures.get(name)) for name in STAGES)
        steps = f"{self.locked} | {figure(self.unseen)} | {'end' if self.silent is None else self.silent}"
        return f"{head} {figures} | {steps} | {'equal' if self.equal else self.why} |"


def sizes(model: str) -> tuple[int, int]:
    """Return an even and an odd size that a model takes, in pixels; of a model of patches, in its patches."""
    arch = architecture(model)
    if arch.patch:
        return arch.fitting(EVEN), 3 * arch.patch
    return max(EVEN, arch.min_size + 5 & ~1), max(ODD, arch.min_size | 1)


def measured(model: str, optimizer: str, size: int, reference: str = "torch", candidate: str = "oneflow") -> Cell:
    """Compare one model on two backends with one optimizer at one size; what is not equal, again and in whole."""
    cell = _measured(model, optimizer, size, reference, candidate, whole=False)
    if not cell.verdict or cell.equal:
        return cell
    again = _measured(model, optimizer, size, reference, candidate, whole=True)
    return again if again.verdict and not again.equal else cell  # what differed once is never called equal


def _measured(model: str, optimizer: str, size: int, reference: str, candidate: str, *, whole: bool) -> Cell:
    started = time.perf_counter()
    parameters = architecture(model).parameters or 0
    if why := obstacle(parameters):
        return Cell(model, optimizer, size, parameters, why=why)
    recipe = Recipe(**{**DEFAULTS, "model": model, "optimizer": optimizer, "image_size": size})
    side = partial(capture, recipe, quick=True, largest=size, stages=STAGES, serves=False, whole=whole)
    with TemporaryDirectory(prefix="tlx-zoo-") as scratch:
        a, b = Path(scratch) / "A", Path(scratch) / "B"
        try:
            for backend, out, other in ((reference, a, None), (candidate, b, a)):
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    pool.submit(side, backend, out, other).result()
            report = compare(a, b)
            specs = Capture(a).records["P1"].facts["specs"]
        except BrokenProcessPool:
            return Cell(model, optimizer, size, parameters, why="killed, as by a lack of memory")
        except TlxError as error:
            return Cell(model, optimizer, size, parameters, why=one_line(str(error)))
    shapes = [shape for _, shape, _, role, _ in specs if role != "statistic"]
    return _cell(report, model, optimizer, size, sum(map(math.prod, shapes)), time.perf_counter() - started)


def _cell(report: Report, model: str, optimizer: str, size: int, parameters: int, seconds: float) -> Cell:
    stages: dict[str, Stage] = {stage.id: stage for stage in report.stages}
    facts: Mapping[str, Any] = stages["P6"].facts if "P6" in stages else {}
    return Cell(
        model,
        optimizer,
        size,
        parameters,
        verdict=report.verdict.name,
        figures={name: stage.figure for name, stage in stages.items() if stage.figure is not None},
        locked=facts.get("locked", 0),
        unseen=facts.get("shown"),
        silent=facts.get("silent"),
        why=report.first or ("" if report.verdict is Verdict.EQUAL else VERDICTS[report.verdict]),
        seconds=round(seconds, 1),
    )


def obstacle(parameters: int) -> str:
    """Say why a model of so many parameters cannot be measured here, or nothing."""
    needs = ("memory", MEMORY * parameters, free_memory()), ("disk", DISK * parameters + 2 * BUDGET, free_disk())
    for what, needed, free in needs:
        if needed > free:
            return f"it takes about {needed / 1e9:.0f} GB of {what}, and {free / 1e9:.0f} GB were free"
    return ""


def free_disk() -> int:
    """Return the bytes that are free where the captures go."""
    return shutil.disk_usage(gettempdir()).free


def complete(model: str, folder: Path, wanted: Sequence[tuple[str, int]]) -> list[Cell]:
    """Return the cells of a model by optimizer and size. Those that are not known to be equal are run."""
    file = folder / f"{model}.jsonl"
    known = read(file)
    for optimizer, size in wanted:
        if (optimizer, size) in known and known[optimizer, size].equal:
            continue
        cell = measured(model, optimizer, size)
        if cell != known.get((optimizer, size)):
            append(file, cell)
        known[optimizer, size] = cell
        print(f"{cell} {cell.seconds:.0f} s", file=sys.stderr, flush=True)
    return [known[key] for key in wanted]


def append(file: Path, cell: Cell) -> None:
    """Write a cell at the end of a file, as one line."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(cell)) + "\n")


def read(file: Path) -> dict[tuple[str, int], Cell]:
    """Return the last that was written down of each cell, by optimizer and size."""
    cells = (Cell(**json.loads(line)) for line in text(file).splitlines())
    return {(cell.optimizer, cell.size): cell for cell in cells}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is lacking of the named models, or of all, and write the table; return 1 where one is not equal."""
    parser = argparse.ArgumentParser(prog="python -m tlx.proof.zoo_table", description=__doc__)
    parser.add_argument("models", nargs="*", help="default: all")
    parser.add_argument("-o", "--output", type=Path, help="write the table to this file, anew after each model")
    parser.add_argument("--results", type=Path, default=Path("docs/parity-zoo"), help="folder of what is done already")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="this one alone")
    parser.add_argument("--odd", action="store_true", help="the odd size alone")
    options = parser.parse_args(arguments)
    options.results.mkdir(parents=True, exist_ok=True)
    listed = [arch.name for arch in ARCHITECTURES.values() if arch.imagenet]
    asked = [architecture(name).name for name in options.models] or listed
    optimizers = [options.optimizer] if options.optimizer else OPTIMIZERS
    done: dict[str, list[Cell]] = {}
    for name in asked:
        wanted = [(optimizer, size) for optimizer in optimizers for size in sizes(name)[options.odd :]]
        done[name] = complete(name, options.results, wanted)
        if options.output:
            options.output.write_text(table(options.results, listed), encoding="utf-8")
    if not options.output:
        print(table(options.results, asked))
    return int(not all(cell.equal for cells in done.values() for cell in cells))


def table(folder: Path, models: Sequence[str]) -> str:
    """Return the table of all that was measured of some models, in Markdown."""
    cells = []
    for name in models:
        known = sorted(read(folder / f"{name}.jsonl").items(), reverse=True)
        unknown = Cell(name, "-", 0, architecture(name).parameters or 0, why="not run yet")
        cells += [cell for _, cell in known] or [unknown]
    return HEAD + "\n".join(map(str, cells)) + "\n"


if __name__ == "__main__":
    sys.exit(main())
