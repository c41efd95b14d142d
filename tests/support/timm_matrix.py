"""The smallest model of each of timm's families, trained with a frozen part: what `make matrix-timm` runs.

A cell is a whole run on a few digits, at the smallest size of images that the model takes. What is frozen has not
moved, in any bit, and what trains has; the run is repeated with the features of the frozen part cached, and history,
test accuracy and weights must be equal, bit for bit. A second table says which of timm's models tlx refuses, and why.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.numpy import load_file

import tlx
from support.features import outcome
from tlx.backend import registry
from tlx.errors import TlxError, one_line
from tlx.strategy.schedule import Schedule
from tlx.training.build import build_model, resolve_placement, start_of
from tlx.training.metrics import Event, FeaturesKept, FeaturesNotKept

STRATEGIES = ("feature_extract", "partial")
SIZES = (32, 48, 56, 64, 96, 112, 128, 160, 192, 224, 256)  # tried from the smallest on, then the model's own
FIELDS: dict[str, Any] = {
    **{"data": "digits", "classes": ("0", "1"), "limit_train": 13, "limit_test": 4, "val_fraction": 0.2, "epochs": 2},
    **{"batch_size": 4, "weights": "none", "augment": "none", "lr": 1e-3, "clip_norm": 1.0, "save_seconds": 1e9},
    **{"precision": "float32"},
}
OWN_DRAWS = "features are not cached: its code drops what enters the head in training, which a note says"
HEAD = """# The models of timm

The smallest model of each of timm's families, as whole runs on a few digits with random weights, on PyTorch {torch} and
timm {timm}. In each, the losses are finite, what trains has moved, and what is frozen has not, in any bit; and the run
was repeated with the features of the frozen part cached. Made by `make matrix-timm`, which leaves out what is done
already.

- `=`: features were cached, and history, test accuracy and weights are equal, bit for bit
- `ok`: the repeated run is equal, but caching was refused, because it would have changed bits
- **refused**: tlx says before the run why it cannot train the model; the line is below the table
- **fails**: anything else
- `-`: not run

A family that is not in the table has not been run yet; timm 1.0.31 has 98, with 1,371 models.

"""


@dataclass(frozen=True, slots=True)
class Cell:
    """The outcome of one family with one strategy."""

    family: str
    model: str
    parameters: int
    size: int
    head: str
    stages: int
    strategy: str
    mark: str  # "=", "ok", "refused" or "fails"
    why: str = ""
    seconds: float = 0.0


Listed = tuple[str, str, int | str]  # family, model, and its parameters or the line that refuses it


def models(file: Path) -> list[Listed]:
    """Return all of timm's models; `file` holds those that are looked at already."""
    from timm.models import list_models, model_entrypoint
    from tlx_torch import timm_models

    known = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    listed: dict[str, Listed] = {name: (family, name, found) for family, name, found in known}
    for name in list_models():
        if name in listed:
            continue
        found: int | str
        try:
            arch = timm_models.layout(f"timm:{name}").arch
            stages = [stage for stage, _ in arch.stages]
            assert stages and "head" not in stages and len({*stages}) == len(stages), f"{name}: stages {stages}"
            found = arch.parameters or 0
        except TlxError as error:
            found = str(error)
        listed[name] = (model_entrypoint(name).__module__.rpartition(".")[2], name, found)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(listed[name]) + "\n")
        timm_models.layout.cache_clear()
    return list(listed.values())


def smallest(listed: Sequence[Listed]) -> Iterator[Listed]:
    """Yield the smallest model of each family that tlx takes, or one that it refuses where it takes none."""
    for family in dict.fromkeys(family for family, _, _ in listed):
        of_family = [entry for entry in listed if entry[0] == family and not entry[1].startswith("test_")]
        taken = [entry for entry in of_family if isinstance(entry[2], int)]
        yield min(taken, key=lambda entry: entry[2]) if taken else of_family[0]


def size_of(name: str) -> int:
    """Return the smallest size of images that a model takes."""
    from tlx_torch import timm_models

    arch = timm_models.layout(name).arch
    tried = (size for size in SIZES if arch.min_size <= size <= arch.pixels.size)
    return next((size for size in tried if not timm_models._refusal(name, size)), arch.pixels.size)


def examine(family: str, model: str, strategy: str, size: int = 0) -> Cell:
    """Run a cell, and say why it fails where it does."""
    from tlx_torch import timm_models

    began, name, events = time.perf_counter(), f"timm:{model}", list[Event]()
    try:
        arch = timm_models.layout(name).arch
        size = size or size_of(name)
    except TlxError as error:
        return Cell(family, model, 0, 0, "", 0, strategy, "refused", str(error))
    mark = why = ""
    try:
        recipe = tlx.Recipe(model=name, strategy=strategy, image_size=size, **FIELDS)
        with TemporaryDirectory(prefix="tlx-timm-") as folder:
            off = tlx.run(recipe, feature_cache="off", quiet=True, out=f"{folder}/off")
            why = unsound(off)
            again = tlx.run(recipe, feature_cache="run", quiet=True, out=f"{folder}/run", on_event=events.append)
            if outcome(off) != outcome(again):
                why = why or "differs where features are cached"
        cached = any(isinstance(event, FeaturesKept) for event in events)
        mark = "fails" if why else "=" if cached else "ok"
        if not cached and not why:
            why = "; ".join(str(event) for event in events if isinstance(event, FeaturesNotKept)) or OWN_DRAWS
    except Exception as error:
        known = isinstance(error, tlx.TlxError)
        mark, why = (
            "refused" if known else "fails",
            one_line(str(error) if known else f"{type(error).__name__}: {error}"),
        )
    seconds = round(time.perf_counter() - began, 1)
    return Cell(family, model, arch.parameters or 0, size, arch.head, len(arch.stages), strategy, mark, why, seconds)


def unsound(result: tlx.Result) -> str:
    """Say what is wrong with a run by itself, or nothing."""
    losses = [epoch[part] for epoch in result.history for part in ("train_loss", "val_loss")]
    if not all(loss is not None and math.isfinite(loss) for loss in losses):
        return f"losses are {losses}"
    backend = registry.load("torch")
    recipe = resolve_placement(result.recipe.resolved(), backend)
    built, arch = build_model(recipe, backend, 2)
    specs = backend.param_specs(built)
    start, _ = start_of(recipe, backend, built, arch, ("0", "1"))
    plan = recipe.bound_strategy(arch).bind(specs, arch, Schedule("constant", recipe.epochs, 1), recipe.weight_decay)
    after = load_file(result.run_dir / "model.safetensors")
    moved = {name for name in after if after[name].tobytes() != start[name].tobytes()}
    if wrong := sorted(moved & plan.frozen_at(0)):
        return f"{len(wrong)} arrays are frozen and moved, first {wrong[0]}"
    return "" if moved else "nothing moved"


def table(cells: Mapping[tuple[str, str], Cell], listed: Sequence[Listed]) -> str:
    """Return the tables in Markdown."""
    versions = registry.installed(["torch", "timm"])
    parts = [HEAD.format(**versions).rstrip("\n"), ""]
    families = sorted({family for family, _ in cells})
    parts += [f"| family | smallest model | parameters | px | head | stages | {' | '.join(STRATEGIES)} |"]
    parts.append("|---" * (6 + len(STRATEGIES)) + "|")
    for family in families:
        of_family = [cells.get((family, strategy)) for strategy in STRATEGIES]
        marks = [_shown(cell) for cell in of_family]
        first = next(cell for cell in of_family if cell is not None)
        facts = (f"{first.parameters / 1e6:.1f} M", str(first.size), f"`{first.head}`", str(first.stages))
        shown = facts if first.head else ("-",) * 4
        parts.append(f"| {family} | {first.model} | {' | '.join((*shown, *marks))} |")
    counts = Counter(cell.mark for cell in cells.values())
    parts += [
        "",
        f"{len(families)} families, {len(cells)} cells: " + ", ".join(f"{n} {m}" for m, n in counts.most_common()),
    ]
    parts += ["", "## What is refused, fails, or is not cached", ""]
    lines = dict.fromkeys(f"- {c.family} ({c.model}), {c.mark}: {c.why}" for c in cells.values() if c.why)
    parts += [*lines] or ["Nothing."]
    refused = [(name, line) for _, name, line in listed if isinstance(line, str)]
    parts += ["", "## Which of all models are taken", ""]
    parts.append(
        f"Of the {len(listed)} models that were looked at so far, tlx finds head and stages of "
        f"{len(listed) - len(refused)}. It refuses {len(refused)}:"
    )
    reasons: dict[str, list[str]] = {}
    for name, line in refused:
        reasons.setdefault(line.replace(f"timm:{name}", "...").partition(" (")[0], []).append(name)
    parts += ["", *(f"- {reason}: {', '.join(names)}" for reason, names in reasons.items())]
    return "\n".join(parts) + "\n"


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"**{cell.mark}**" if cell.mark in ("refused", "fails") else f"`{cell.mark}`"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is lacking of the named families, or of all, and write the table; return 1 where a cell fails."""
    parser = argparse.ArgumentParser(prog="python -m support.timm_matrix", description=__doc__)
    parser.add_argument("families", nargs="*", help="default: all")
    parser.add_argument("-o", "--output", type=Path, help="write the table to this file, anew after each family")
    parser.add_argument("--results", type=Path, default=Path("docs/matrix/timm.jsonl"), help="what is done already")
    options = parser.parse_args(arguments)
    results: Path = options.results
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    done = [Cell(**json.loads(line)) for line in lines]
    cells = {(cell.family, cell.strategy): cell for cell in done if cell.mark != "fails"}
    listed = models(results.with_name("timm-models.jsonl"))
    for family, model, _ in smallest(listed):
        if options.families and family not in options.families:
            continue
        for strategy in STRATEGIES:
            if (family, strategy) in cells:
                continue
            cell = examine(family, model, strategy)
            cells[family, strategy] = cell
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(cell)) + "\n")
            print(f"{family} {model} {strategy}: {cell.mark} {cell.why} {cell.seconds} s", file=sys.stderr, flush=True)
        if options.output:
            options.output.write_text(table(cells, listed), encoding="utf-8")
    if not options.output:
        print(table(cells, listed))
    return int(any(cell.mark == "fails" for cell in cells.values()))


if __name__ == "__main__":
    sys.exit(main())
