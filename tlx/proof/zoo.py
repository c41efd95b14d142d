"""P1, P3 and P4 of every model that two stacks share, as one table: what `make parity-zoo` runs."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from tlx import registry
from tlx.proof.artifact import Capture
from tlx.proof.capture import capture
from tlx.proof.compare import compare
from tlx.proof.report import figure
from tlx.proof.result import Report
from tlx.recipe import Recipe
from tlx.zoo import ARCHITECTURES, architecture

STAGES = ("P1", "P3", "P4")
SIZE = 64  # pixels; the last maps of most models are then 2 x 2
HEAD = """# Every shared model on two stacks

Each model of `tlx models` in float64, with random weights, everything training, on 8 images (Inception 3 at its least
size): how many of its arrays differ in any bit after loading (P1), the largest relative L2 distance of a module's
output in eval mode (P3), and of outputs, loss, buffers and gradients of one training step (P4). The limit of P3 and P4
is 1e-10. An array whose norm is below a thousandth of the largest of its kind is measured against that thousandth.

Made by `make parity-zoo`.

| model | parameters | pixels | P1 arrays | P3 forward | P4 backward | |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One model's figures."""

    name: str
    parameters: int
    size: int
    report: Report

    def __str__(self) -> str:
        stages = {stage.id: stage for stage in self.report.stages}
        cells = [figure(stages[name].figure) if name in stages else "-" for name in STAGES]
        said = "equal" if not self.report.first else self.report.first
        return f"| {self.name} | {self.parameters / 1e6:.1f} M | {self.size} | {' | '.join(cells)} | {said} |"


def measured(name: str, reference: str = "torch", candidate: str = "oneflow") -> Line:
    """Compare one model on two stacks."""
    size = max(SIZE, architecture(name).min_size)
    recipe = Recipe(model=name, data="digits", weights="none", image_size=size, epochs=1, limit_train=400)
    with TemporaryDirectory(prefix="tlx-zoo-") as scratch:
        home = Path(scratch)
        a = capture(recipe, registry.load(reference), home / "A", stages=STAGES)
        b = capture(recipe, registry.load(candidate), home / "B", a, stages=STAGES)
        report = compare(a, b)
        specs = Capture(a).records["P1"].facts["specs"]
    shapes = [shape for _, shape, _, role, _ in specs if role != "statistic"]
    return Line(name, sum(map(math.prod, shapes)), size, report)


def alone(name: str) -> tuple[str, bool]:
    """A model's line, and whether it is equal, from a process of its own, whose memory is given back."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            line = pool.submit(measured, name).result()
        except BrokenProcessPool:
            return (
                f"| {name} | - | - | - | - | - | not measured: its process was killed, as by a lack of memory |",
                False,
            )
        return str(line), not line.report.first


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of the named models, or write the one of all into a file; 1 where one is not equal."""
    parser = argparse.ArgumentParser(prog="python -m tlx.proof.zoo", description=__doc__)
    parser.add_argument("models", nargs="*", help="default: all")
    parser.add_argument("-o", "--output", type=Path, help="write the table into this file")
    options = parser.parse_args(arguments)
    names = options.models or [arch.name for arch in ARCHITECTURES.values() if arch.imagenet]
    lines, equal = [], True
    for name in names:
        started = time.perf_counter()
        line, same = alone(name)
        lines.append(line)
        equal &= same
        print(f"{line} {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    table = HEAD + "\n".join(lines) + "\n"
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(table, encoding="utf-8")
    else:
        print(table)
    return int(not equal)


if __name__ == "__main__":
    sys.exit(main())
