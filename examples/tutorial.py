"""What the tutorials share: their options, runs that are done once and resumed, and results that are kept.

Each tutorial has three forms: `check` takes seconds, on scanned digits; `small`, the default, takes minutes and shows
what there is to see; `whole` is the job of the tutorial that it repeats and takes hours. Every run has a folder of its
own below `--out`. What is finished there is not run again, and what was stopped goes on, so the same command may be
repeated until all is done, or be given in parts with `--only`. With `--publish`, what docs/tutorials/ has of the whole
form is not run again either, so its parts may come from several machines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tlx

PAGES = Path(__file__).parents[1] / "docs" / "tutorials"
DATA = Path(os.environ.get("TLX_TEST_DATA") or "~/.cache/tlx/test-data").expanduser()
WITHOUT_DATA = (
    f"There are no real data in {DATA}, so this is done with scanned digits and random weights, and its\n"
    "accuracies say nothing. Put there cifar-10-batches-py/ and hymenoptera_data/, as they are published, and in\n"
    "weights/ resnet18-imagenet-backbone.safetensors and mobilenet_v2-imagenet-backbone.safetensors; or set\n"
    "TLX_TEST_DATA to a folder that holds all this."
)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8a800", "#5b5b5b")


@dataclass
class Tutorial:
    """One form of a tutorial: where its runs are, what is asked of them, and what they have shown so far."""

    name: str
    form: str
    out: Path
    only: Sequence[str] = ()
    listing: bool = False
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    photo: Path | None = None
    failed: list[str] = field(default_factory=list)

    @property
    def real(self) -> bool:
        """Whether the real data are used."""
        return self.form != "check" and (self.listing or (DATA / "weights").is_dir())

    def say(self, text: str = "") -> None:
        """Print a line, and keep it for the page."""
        text = text.replace(str(DATA), "$DATA").replace(str(self.out), "runs")
        self.lines += text.splitlines() or [""]
        print(text, flush=True)

    def accuracies(self, label: str) -> list[float]:
        """The accuracies of a run's seeds that are finished."""
        return [row["accuracy"] for key, row in self.rows.items() if key.partition(".")[0] == label]

    def near(self, one: str, other: str, most: float) -> None:
        """Say whether two runs differ by at most so much."""
        if (first := self.accuracies(one)) and (second := self.accuracies(other)):
            difference = first[0] - second[0]
            self._shown(f"{one} and {other} differ by {difference:+.4f}, at most {most}", abs(difference) <= most)

    def overlap(self, one: str, other: str) -> None:
        """Say whether the seeds of two runs overlap, as they do where both are the same but for chance."""
        if (first := self.accuracies(one)) and (second := self.accuracies(other)):
            ranges = [f"{min(values):.4f} to {max(values):.4f}" for values in (first, second)]
            shown = max(min(first), min(second)) <= min(max(first), max(second))
            self._shown(f"{one} ({ranges[0]}) and {other} ({ranges[1]}) overlap", shown)

    def _shown(self, text: str, holds: bool) -> None:
        if self.form == "whole":  # smaller forms show that the script works and no more
            self.say(f"{'shown' if holds else 'NOT SHOWN'}: {text}")
            self.failed += [] if holds else [text]

    def run(self, label: str, **fields: Any) -> dict[str, Any]:
        """Do a run of tlx, or go on with it, or read what it has shown; empty where `--only` leaves it out."""
        folder = self.out / label
        shown = {**fields, "out": f"runs/{label}"}
        command = command_of(shown).replace(str(self.out), "runs")

        def go() -> dict[str, Any]:
            objects = {name: fields[name] for name in ("data", "model") if not isinstance(fields.get(name, ""), str)}
            if (folder / "recipe.toml").exists():
                result = tlx.run(resume=folder, quiet=True, **objects)
            else:
                result = tlx.run(**fields, out=str(folder), quiet=True)
            return {
                "accuracy": result.val_accuracy if result.test_accuracy is None else result.test_accuracy,
                "tested": result.test_accuracy is not None,
                "epochs": result.epochs_run,
                "best_epoch": result.best_epoch,
                "curve": [epoch["val_accuracy"] for epoch in result.history],
                "train_loss": [epoch["train_loss"] for epoch in result.history],
                "seconds": round(result.wall_seconds, 1),
                "backend": result.backend,
                "parameters": result.trainable_parameters,
                "precision": result.recipe.precision,
                "versions": result.versions,
            }

        return self.once(label, go, command)

    def once(self, label: str, go: Callable[[], dict[str, Any]], command: str = "") -> dict[str, Any]:
        """Do what has no run folder, such as a loop by hand, and keep what it returns."""
        kept = self.out / "results" / f"{label}.json"
        published = self.rows.pop(label, None)
        if self.listing:
            state = "done" if kept.exists() else "to do"
            print(f"{label:36} {state:6} {command or f'python examples/{self.name}.py'}")
        elif kept.exists():
            self.rows[label] = json.loads(kept.read_text(encoding="utf-8"))
        elif published:
            self.rows[label] = published  # the rows keep the script's order, whatever order they were published in
        elif not self.only or any(fnmatch(label, pattern) for pattern in self.only):
            print(f"... {label}", flush=True)
            begun = time.perf_counter()
            row = {"label": label, "command": command, "date": date.today().isoformat(), "machine": machine(), **go()}
            row.setdefault("versions", {name: version(name) for name in ("numpy", "scikit-learn", "tlx", "torch")})
            row.setdefault("seconds", round(time.perf_counter() - begun, 1))
            kept.parent.mkdir(parents=True, exist_ok=True)
            write(kept, row)
            self.rows[label] = row
        return self.rows.get(label, {})

    def folder(self, label: str) -> Path | None:
        """The folder of a run that is finished, where it is on this machine."""
        return self.out / label if label in self.rows and (self.out / label).is_dir() else None

    def picture(self, name: str) -> Path:
        """Where a picture of the page is drawn."""
        self.pictures.append(name)
        target = self.out / "pictures" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def table(self, title: str, prefix: str = "") -> None:
        """Show the accuracies of the finished runs: of several seeds their mean and standard deviation."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for label, row in self.rows.items():
            if label.startswith(prefix) and "accuracy" in row:
                groups.setdefault(label.partition(".")[0], []).append(row)
        if groups:
            width = max(map(len, groups))
            self.say(f"\n{title:{width}}  accuracy  seeds  seconds")
            for label, rows in groups.items():
                values = [row["accuracy"] for row in rows]
                spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
                seconds = statistics.mean(row["seconds"] for row in rows)
                chosen = "" if rows[0].get("tested", True) else "  a choice, no test"
                self.say(f"{label:{width}}  {statistics.mean(values):.4f}{spread}  {len(rows)}  {seconds:.0f}{chosen}")

    def publish(self) -> None:
        """Put what the page shows beside it: results without weights, what was printed, small pictures."""
        kept = results_of(self.name, self.form)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write(kept, {"form": self.form, "real": self.real, "printed": self.lines, "rows": list(self.rows.values())})
        for name in self.pictures:
            if (source := self.out / "pictures" / name).exists():
                target = PAGES / "pictures" / f"{self.name}-{self.form}-{name}"
                target.parent.mkdir(parents=True, exist_ok=True)
                small(source, target)


def main(
    name: str,
    runs: Callable[[Tutorial], None],
    show: Callable[[Tutorial], None],
    arguments: Sequence[str] | None = None,
) -> Tutorial:
    """Read the options of a tutorial, do its runs, and show what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=("check", "small", "whole"), default="small")
    parser.add_argument("--whole", dest="form", action="store_const", const="whole", help="the same as --form whole")
    parser.add_argument("--out", type=Path, help="folder of the runs; default: runs/tutorials/NAME-FORM")
    parser.add_argument("--only", nargs="+", default=(), metavar="PATTERN", help="do these runs only, such as 'full*'")
    parser.add_argument("--photo", type=Path, help="a photo of your own, which ants_and_bees.py classifies")
    parser.add_argument("--list", action="store_true", help="list the runs with their commands, and do none")
    published = "put results and pictures into docs/tutorials/; of the whole form, do what is not there yet"
    parser.add_argument("--publish", action="store_true", help=published)
    given = parser.parse_args(arguments)
    folder = given.out or Path("runs", "tutorials", f"{name}-{given.form}")
    asked = Tutorial(name, given.form, folder, given.only, given.list, photo=given.photo)
    if given.publish and given.form == "whole" and results_of(name, "whole").exists():
        rows = json.loads(results_of(name, "whole").read_text(encoding="utf-8"))["rows"]
        asked.rows = {row["label"]: row for row in rows}
    if given.form != "check" and not asked.real:
        print(WITHOUT_DATA)
        if given.form == "whole":
            raise SystemExit(2)
    try:
        runs(asked)
        if not given.list:
            show(asked)
    except tlx.TlxError as error:
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped; the same command goes on\n")
    if given.publish and not given.list:
        asked.publish()
    if asked.failed:
        parser.exit(1, f"{len(asked.failed)} not shown\n")
    return asked


def results_of(name: str, form: str) -> Path:
    """The file of what a form of a tutorial has published."""
    return PAGES / "results" / f"{name}-{form}.json"


def cifar10(tutorial: Tutorial, **fields: Any) -> dict[str, Any]:
    """CIFAR-10 and ImageNet weights where there are real data; otherwise scanned digits and random weights."""
    if tutorial.real:
        weights = str(DATA / "weights" / f"{fields.get('model', 'resnet18')}-imagenet-backbone.safetensors")
        return {"data": "cifar10", "data_root": str(DATA), "weights": weights, **fields}
    two = ("3", "8") if "classes" in fields else None
    few = {name: min(fields[name], 120) for name in ("limit_train", "limit_test") if fields.get(name)}
    digits = {"data": "digits", "weights": "none", "image_size": 16, **few, "classes": two}
    return {**fields, **digits, "limit_test": 40}


def command_of(fields: Mapping[str, Any]) -> str:
    """Return the command line of a run; "" where a Python object is part of it."""
    from tlx.comparison.commands import options

    words = options(tlx.Recipe(**fields))
    if words is None:
        return ""
    text = shlex.join(["tlx", "run", *(word.replace(str(DATA), "@DATA") for word in words)])
    return text.replace("@DATA", "$DATA")


def machine() -> str:
    """The processor, and how many of its cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def small(source: Path, target: Path) -> None:
    """Copy a picture, at most 900 pixels wide and in 128 colours, as pages need no more."""
    if source.suffix != ".png":
        shutil.copyfile(source, target)
        return
    from PIL import Image

    with Image.open(source) as image:
        image = image.convert("RGB")
        image.thumbnail((900, 900))
        image.quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


def plot(target: Path, title: str, places: Sequence[Any], lines: Mapping[str, Sequence[float | None]]) -> None:
    """Draw lines over named places as SVG; None leaves a point out."""
    known = [value for values in lines.values() for value in values if value is not None]
    low, high = min(known), max(known)
    low, high = (low, high) if high > low else (low - 0.05, high + 0.05)

    def x(i: int) -> float:
        return 60 + 440 * (i / max(len(places) - 1, 1))

    def y(value: float) -> float:
        return 250 - 200 * (value - low) / (high - low)

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 300" font-family="sans-serif" font-size="13">',
        '<rect width="720" height="300" fill="#fff"/>',
        f'<text x="60" y="26" font-size="15">{title}</text>',
    ]
    for value in (low, (low + high) / 2, high):
        parts.append(f'<path d="M60 {y(value):.1f}H500" stroke="#ddd"/>')
        parts.append(f'<text x="52" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3f}</text>')
    for i, place in enumerate(places):
        if len(places) <= 10 or i % 5 == 4 or i == 0:
            parts.append(f'<text x="{x(i):.1f}" y="272" text-anchor="middle">{place}</text>')
    for number, (name, values) in enumerate(lines.items()):
        colour, top = COLOURS[number % len(COLOURS)], 60 + 22 * number
        points = [f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(values) if value is not None]
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for point in points:
            parts.append('<circle cx="{}" cy="{}" r="3" fill="{}"/>'.format(*point.split(","), colour))
        parts.append(f'<text x="520" y="{top}" fill="{colour}">{name}</text>')
    target.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def write(file: Path, value: Any) -> None:
    """Write JSON in one step, so that a kill leaves no half of it."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(file)
