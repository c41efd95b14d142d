"""How long a comparison of 10,000 cells takes to plan, to look at, and to print as commands.

    python benchmarks/many_cells.py

Two strategies, five learning rates and 1,000 seeds, of which none has run. Seconds of one process, in a new folder.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tlx.comparison.cells import settled
from tlx.comparison.compare import dry_run
from tlx.comparison.plan import make_plan
from tlx.recipe import Recipe

T = TypeVar("T")


def timed(what: str, work: Callable[[], T]) -> T:
    begin = time.perf_counter()
    outcome = work()
    print(f"{what}: {time.perf_counter() - begin:.2f} s", flush=True)
    return outcome


def main() -> None:
    grid = {"lr": [10.0**-power for power in range(1, 6)]}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(data="digits", image_size=32, out=str(Path(folder) / "c"))
        plan = timed("planned", lambda: make_plan(recipe, "full,feature_extract", seeds=1000, grid=grid))
        cells = plan.cells
        timed(f"looked at {len(cells):,} cells", lambda: [settled(plan, cell) for cell in cells])
        timed("their commands", lambda: dry_run(plan))


if __name__ == "__main__":
    main()
