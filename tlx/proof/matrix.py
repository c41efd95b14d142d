"""Every shared model with every strategy on two backends, as whole runs: what `make matrix` runs.

A cell is one model, strategy and backend: a real run on a few real images. Where a strategy freezes a part, the run is
repeated with its features cached, and history, test accuracy and weights must be equal bit for bit. In each cell the
losses are finite, what trains has moved, and what is frozen throughout has not, in any bit. Low-rank adapters are on
convolutions too, so that every model can have some.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.numpy import load_file

from tlx.backend import Arrays, Lora, ParamSpec, registry
from tlx.backend.lora import adapted_weights
from tlx.errors import one_line
from tlx.models.initial_values import initial_values
from tlx.models.weights import digest
from tlx.models.zoo import ARCHITECTURES, Architecture
from tlx.recipe import Recipe
from tlx.recipe_fields import PrecisionName
from tlx.runs.job import run
from tlx.runs.result import Result
from tlx.strategy.built_in import STRATEGIES as NAMED
from tlx.strategy.schedule import Schedule
from tlx.training.build import build_model
from tlx.training.metrics import Event, FeaturesKept, FeaturesNotKept

BACKENDS = ("torch", "oneflow")
# Of those that take steps: what probe and knn do with features is the same for every model.
STRATEGIES = tuple(name for name, strategy in NAMED.items() if not strategy.fits)
FREEZING = ("feature_extract", "partial", "head_then_full", "gradual")  # strategies that freeze a part
SIZE = 32  # pixels, or the smallest that a model takes
LIMITS = {1: 11, 2: 13, 3: 14, 5: 16}  # images that leave a last batch of so many where a fifth is held out
SECONDS = 3600.0  # that one cell may take
CLASSES = 2
BEGUN = "not finished"
BYTES = 40  # of memory for a parameter: the model, gradients, momenta, its first and best values, what is read back
HEAD = """# Every shared model with every strategy

Each cell is a whole run on a few real images, in batches of 8 with a smaller last one: random weights and digits, or in
the first rows pretrained weights and photos of ants and bees. In each, the losses are finite, what trains has moved,
and what is frozen throughout has not, in any bit. Made by `make matrix`, which leaves out what is done already.

- `=`: the run was repeated with the features of the frozen part cached, and history, test accuracy and weights are
  equal, bit for bit
- `ok`: nothing is frozen, or caching was refused because it would have changed bits, and the repeated run is equal
- `-`: not run
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """The outcome of one cell."""

    row: str
    backend: str
    strategy: str
    why: str = ""  # it fails; empty: it holds
    cached: bool = False  # features were cached in the second of two equal runs
    seconds: float = 0.0
    notes: tuple[str, ...] = ()  # what the second run said of its features


@dataclass(frozen=True, slots=True)
class Row:
    """What the cells of a row have in common."""

    name: str
    model: str
    fields: Mapping[str, Any]
    turn: int = 0  # which of the last batch's sizes comes first
    missing: str = ""  # why the row cannot be run here

    def recipe(self, backend: str, strategy: str) -> Recipe:
        """Return the recipe of a cell, without caching."""
        number = self.turn + STRATEGIES.index(strategy)
        # BatchNorm that trains needs two images.
        sizes = (1, 2, 3, 5) if strategy == "feature_extract" else (2, 3, 5)
        fields: dict[str, Any] = {"limit_train": LIMITS[sizes[number % len(sizes)]], **self.fields}
        if strategy == "scratch":
            fields["weights"] = "none"
        fields["epochs"] = 2 if strategy in FREEZING else 1
        if strategy == "lora":
            fields["lora_targets"] = "*"
        if strategy in ("head_then_full", "gradual"):
            fields.update(epochs=3, phase_epochs=2)
        return Recipe(backend=backend, model=self.model, strategy=strategy, feature_cache="off", **fields)


def rows(precision: str = "float32") -> list[Row]:
    """Return all rows, from small models to large ones; those of real weights come first."""
    data = Path(os.environ.get("TLX_TEST_DATA", "~/.cache/tlx/test-data")).expanduser()
    shared = {"batch_size": 8, "val_fraction": 0.2, "save_seconds": 1e9, "precision": precision}
    photos = {"data": "hymenoptera_data", "data_root": str(data), "limit_train": 24, "limit_test": 16}
    photos |= {"image_size": 224, "augment": "hflip", "lr": 0.01}
    listed = []
    for model in ("mobilenet_v2", "resnet18"):
        weights = data / "weights" / f"{model}-imagenet-backbone.safetensors"
        missing = [path.name for path in (weights, data / "hymenoptera_data") if not path.exists()]
        why = f"no {' and no '.join(missing)} below TLX_TEST_DATA" if missing else ""
        fields = {**shared, **photos, "weights": str(weights)}
        listed.append(Row(f"{model}, pretrained", model, fields, missing=why))
    digits = {"data": "digits", "classes": ("0", "1"), "limit_test": 4, "weights": "none", "augment": "none"}
    digits |= {"lr": 1e-3, "clip_norm": 1.0}  # BatchNorm over two images of one pixel each has huge gradients
    models = sorted((arch for arch in ARCHITECTURES.values() if arch.imagenet), key=lambda arch: arch.parameters or 0)
    for turn, arch in enumerate(models):
        fields = {**shared, **digits, "image_size": arch.fitting(SIZE)}
        listed.append(Row(arch.name, arch.name, fields, turn))
    return listed


def examine(row: Row, backend: str, strategy: str) -> Cell:
    """Run a cell, and say why it fails where it does."""
    began, notes = time.perf_counter(), list[FeaturesKept | FeaturesNotKept]()

    def listen(event: Event) -> None:
        if isinstance(event, (FeaturesKept, FeaturesNotKept)):
            notes.append(event)

    try:
        recipe = row.recipe(backend, strategy)
        with TemporaryDirectory(prefix="tlx-matrix-") as folder:
            result = run(recipe, out=f"{folder}/off", quiet=True)
            why = unsound(result)
            if strategy in FREEZING and not why:
                again = run(recipe, feature_cache="run", out=f"{folder}/run", quiet=True, on_event=listen)
                differing = [what for what in outcome(result) if outcome(result)[what] != outcome(again)[what]]
                why = f"differ where features are cached: {', '.join(differing)}" if differing else ""
    except Exception as error:
        why = one_line(f"{type(error).__name__}: {error}")
    cached = any(isinstance(note, FeaturesKept) for note in notes)
    return Cell(row.name, backend, strategy, why, cached, round(time.perf_counter() - began, 1), tuple(map(str, notes)))


def outcome(result: Result) -> dict[str, Any]:
    """What may not change where features are cached."""
    history = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in result.history]
    card = json.loads((result.run_dir / "card.json").read_text(encoding="utf-8"))
    return {"history": history, "test accuracy": result.test_accuracy, "weights": card["sha256"]}


def unsound(result: Result) -> str:
    """Say what is wrong with a run by itself, or nothing."""
    losses = [epoch[part] for epoch in result.history for part in ("train_loss", "val_loss")]
    if not all(loss is not None and math.isfinite(loss) for loss in losses):
        return f"losses are {losses}"
    recipe = result.recipe
    assert recipe.weights is not None
    size = recipe.pixels.size
    arch, specs, start = beginning(
        recipe.backend, recipe.model_name, recipe.precision, recipe.weights, size, recipe.lora
    )
    plan = recipe.bound_strategy(arch).bind(specs, arch, Schedule("constant", recipe.epochs, 1), recipe.weight_decay)
    frozen = plan.frozen_at(recipe.epochs - 1)  # phases only add to what trains
    if recipe.lora is not None:  # what trained is merged into what was frozen
        card = json.loads((result.run_dir / "card.json").read_text(encoding="utf-8"))
        if card["lora"]["base_sha256"] != digest({name: start[name] for name in frozen}):
            return "the base of the adapters moved"
        frozen -= {*adapted_weights(specs)}
    after = load_file(result.run_dir / "model.safetensors")
    moved = {name for name in after if after[name].tobytes() != start[name].tobytes()}
    if wrong := sorted(moved & frozen):
        return f"{len(wrong)} arrays are frozen and moved, first {wrong[0]}"
    return "" if moved else "nothing moved"


@lru_cache(maxsize=1)
def beginning(
    backend: str, model: str, precision: PrecisionName, weights: str, image_size: int, lora: Lora | None
) -> tuple[Architecture, Sequence[ParamSpec], Arrays]:
    """Return a model's layout, and the values that its runs start from."""
    framework = registry.load(backend)
    recipe = Recipe(
        backend=backend, model=model, precision=precision, weights=weights, image_size=image_size, device="cpu"
    )
    if lora is not None:
        recipe = replace(recipe, strategy="lora", rank=lora.rank, alpha=lora.alpha, lora_targets=lora.targets)
    built, arch = build_model(recipe, framework, CLASSES)
    specs = framework.param_specs(built)
    return arch, specs, initial_values(specs, arch, weights, recipe.seed)[0]


def examine_each(row: Row, backend: str, strategies: Sequence[str], file: Path) -> None:
    """Run some cells of a row in this process, and write down that each begins, and its outcome."""
    with file.with_suffix(".log").open("wb") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())  # what a framework writes as it ends the process
    for strategy in strategies:
        append(file, Cell(row.name, backend, strategy, BEGUN))
        append(file, examine(row, backend, strategy))


def complete(row: Row, backend: str, folder: Path) -> dict[str, Cell]:
    """Return the cells of a row on a backend. Those that are not known to hold are run, in a process of their own."""
    file = folder / f"{row.name.replace(' ', '-').replace(',', '')}-{backend}.jsonl"
    holding = [cell for cell in read(file).values() if not cell.why]
    file.unlink(missing_ok=True)
    for cell in holding:
        append(file, cell)
    while lacking := [strategy for strategy in STRATEGIES if mark(read(file).get(strategy)) == "-"]:
        process = get_context("spawn").Process(target=examine_each, args=(row, backend, lacking, file))
        process.start()
        lines = -1
        while process.is_alive() and lines < (lines := len(text(file).splitlines())):
            process.join(SECONDS)
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
        if process.exitcode != 0:
            begun = [cell.strategy for cell in read(file).values() if cell.why == BEGUN]
            end = ended(process.exitcode, text(file.with_suffix(".log")))
            why = f"it took more than {SECONDS:.0f} s" if late else end
            append(file, Cell(row.name, backend, (begun or lacking)[0], why))
    return read(file)


def ended(code: int | None, log: str) -> str:
    """Say in one line how a process ended, and the last that it wrote."""
    signal_or_code = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    fatal = [line for line in log.splitlines() if "Check failed" in line or "Error" in line]
    return one_line(f"the process ended with {signal_or_code}" + (f": {fatal[-1]}" if fatal else ""))


def append(file: Path, cell: Cell) -> None:
    """Write a cell at the end of a file, as one line."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(cell)) + "\n")


def text(file: Path) -> str:
    """Return what a file holds, if there is one."""
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def read(file: Path) -> dict[str, Cell]:
    """Return the last that was written down of each cell, by strategy."""
    cells = (Cell(**json.loads(line)) for line in text(file).splitlines())
    return {cell.strategy: cell for cell in cells}


def free_memory() -> int:
    """Return the bytes of memory that processes may still take; all of it where that cannot be told."""
    for line in text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def obstacle(row: Row) -> str:
    """Say why a row cannot be run here, or nothing."""
    needed = BYTES * (ARCHITECTURES[row.model].parameters or 0)
    if needed > (free := free_memory()):
        return f"it takes about {needed / 1e9:.0f} GB of memory, and {free / 1e9:.0f} GB were free"
    return row.missing


def table(listed: Sequence[Row], cells: Mapping[tuple[str, str], Mapping[str, Cell]], kept: Mapping[str, str]) -> str:
    """Return the tables of all backends, and what fails or was not run, in Markdown.

    Args:
        listed: the rows.
        cells: of each row and backend, its cells by strategy.
        kept: of a row that cannot be run, why.
    """
    parts = [HEAD]
    for backend in BACKENDS:
        parts.append(f"## {backend}\n\n| model | parameters | pixels | {' | '.join(STRATEGIES)} |")
        parts.append("|---" * (3 + len(STRATEGIES)) + "|")
        for row in listed:
            of_row = cells.get((row.name, backend), {})
            marks = [mark(of_row.get(strategy)) for strategy in STRATEGIES]
            millions = f"{(ARCHITECTURES[row.model].parameters or 0) / 1e6:.1f} M"
            parts.append(f"| {row.name} | {millions} | {row.fields['image_size']} | {' | '.join(marks)} |")
        parts.append("")
    failing = [cell for of_row in cells.values() for cell in of_row.values() if cell.why not in ("", BEGUN)]
    parts += ["## What fails\n", *(f"- {c.row}, {c.strategy}, {c.backend}: {c.why}" for c in failing)]
    parts += [] if failing else ["Nothing."]
    if kept:
        parts += ["\n## What was not run\n", *(f"- {name}: {why}" for name, why in kept.items())]
    return "\n".join(parts) + "\n"


def mark(cell: Cell | None) -> str:
    """Return a cell of the table."""
    if cell is None or cell.why == BEGUN:
        return "-"
    return "**fails**" if cell.why else "=" if cell.cached else "ok"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is lacking of the named rows, or of all, and write the table of all; return 1 where a cell fails."""
    parser = argparse.ArgumentParser(prog="python -m tlx.proof.matrix", description=__doc__)
    parser.add_argument("rows", nargs="*", help="default: all")
    parser.add_argument("-o", "--output", type=Path, help="write the table to this file, anew after each row")
    parser.add_argument("--results", type=Path, default=Path("docs/matrix"), help="folder of what is done already")
    parser.add_argument("--precision", default="float32", choices=("float32", "float64"))
    options = parser.parse_args(arguments)
    folder: Path = options.results / options.precision
    folder.mkdir(parents=True, exist_ok=True)
    listed, cells, kept = rows(options.precision), dict[tuple[str, str], dict[str, Cell]](), dict[str, str]()
    for row in listed if not options.rows else [row for row in listed if row.name in options.rows]:
        if why := obstacle(row):
            kept[row.name] = why
            continue
        for backend in BACKENDS:
            cells[row.name, backend] = complete(row, backend, folder)
            shown = " ".join(f"{name}:{mark(cell)}" for name, cell in cells[row.name, backend].items())
            seconds = sum(cell.seconds for cell in cells[row.name, backend].values())
            print(f"{row.name} on {backend}: {shown} {seconds:.0f} s", file=sys.stderr, flush=True)
            if options.output:
                options.output.write_text(table(listed, cells, kept), encoding="utf-8")
    if not options.output:
        print(table(listed, cells, kept))
    return int(any(cell.why for of_row in cells.values() for cell in of_row.values()))


if __name__ == "__main__":
    sys.exit(main())
