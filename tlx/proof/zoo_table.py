"""P1, P3 and P4 of every model that two backends share, as one table: what `make parity-zoo` runs."""

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

from tlx.models.zoo import ARCHITECTURES, architecture
from tlx.proof.artifact import Capture
from tlx.proof.capture import capture
from tlx.proof.compare import compare
from tlx.proof.report import Report
from tlx.proof.result import Verdict
from tlx.proof.words import figure
from tlx.recipe import Recipe

STAGES = ("P1", "P3", "P4")
SIZE = 64  # pixels; the last maps of most models are then 2 x 2
HEAD = """# Every shared model on two backends

Each model of `tlx models` in float64, with random weights, everything training, on 8 images (Inception 3 at its
smallest size): how many of its arrays differ in any bit after loading (P1), the largest relative L2 distance of a
module's output in eval mode (P3), and of outputs, loss, buffers and gradients of one training step (P4). The limit of
P3 and P4 is 1e-10. An array whose norm is below a thousandth of the largest of its kind is measured against that
thousandth.

Made by `make parity-zoo`. The largest, regnet_y_128gf, takes 22 GB of memory to itself.

| model | parameters | pixels | P1 arrays | P3 forward | P4 backward | |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One model's figures; without a report where there was not enough memory."""

    name: str
    size: int
    parameters: int = 0
    report: Report | None = None

    @property
    def equal(self) -> bool:
        """Whether the two backends compute the same."""
        return self.report is not None and self.report.verdict == Verdict.EQUAL

    def __str__(self) -> str:
        """Return the model's line of the table, in Markdown."""
        if self.report is None:
            return f"| {self.name} | - | {self.size} | - | - | - | not measured: killed, as by a lack of memory |"
        stages = {stage.id: stage for stage in self.report.stages}
        cells = [figure(stages[name].figure) if name in stages else "-" for name in STAGES]
        verdict = self.report.first or "equal"
        return f"| {self.name} | {self.parameters / 1e6:.1f} M | {self.size} | {' | '.join(cells)} | {verdict} |"


def measured(name: str, reference: str = "torch", candidate: str = "oneflow") -> Line:
    """Compare one model on two backends, each in a process of its own, as frameworks give no memory back."""
    size = max(SIZE, architecture(name).min_size)
    recipe = Recipe(model=name, data="digits", weights="none", image_size=size, epochs=1, limit_train=400)
    with TemporaryDirectory(prefix="tlx-zoo-") as scratch:
        a, b = Path(scratch) / "A", Path(scratch) / "B"
        try:
            for backend, out, other in ((reference, a, None), (candidate, b, a)):
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    pool.submit(capture, recipe, backend, out, other, stages=STAGES).result()
        except BrokenProcessPool:
            return Line(name, size)
        report = compare(a, b)
        specs = Capture(a).records["P1"].facts["specs"]
    shapes = [shape for _, shape, _, role, _ in specs if role != "statistic"]
    return Line(name, size, sum(map(math.prod, shapes)), report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of the named models, or of all, or write it to a file; return 1 where one is not equal."""
    parser = argparse.ArgumentParser(prog="python -m tlx.proof.zoo_table", description=__doc__)
    parser.add_argument("models", nargs="*", help="default: all")
    parser.add_argument("-o", "--output", type=Path, help="write the table to this file")
    options = parser.parse_args(arguments)
    names = options.models or [arch.name for arch in ARCHITECTURES.values() if arch.imagenet]
    lines = []
    for name in names:
        started = time.perf_counter()
        lines.append(measured(name))
        print(f"{lines[-1]} {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    table = HEAD + "\n".join(map(str, lines)) + "\n"
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(table, encoding="utf-8")
    else:
        print(table)
    return int(not all(line.equal for line in lines))


if __name__ == "__main__":
    sys.exit(main())
