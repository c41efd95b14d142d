"""The runs below a folder, each read as far as it can be, whatever lies there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

from rich.cells import cell_len

from tlx.errors import DataNotFound, TlxError, printable
from tlx.files import open_regular, read_regular
from tlx.manifest import CARD, HISTORY, MANIFEST, RECIPE, REPORT, Manifest, read_file, read_manifest
from tlx.recipe import Recipe, current_names, read_toml
from tlx.runs.facts import Facts, parse_object, shortened
from tlx.runs.folder import LAST, LOCK, RESULT

LARGEST = 1 << 26  # bytes of a file that is read here; histories of 100,000 epochs have half of that
SHOWN = 32  # characters of a field's value in the table
DEEPEST = 8  # folders within folders
TESTED = ("test_accuracy", "test_balanced_accuracy", "test_macro_f1")
FIXED, RIGHT = 7, (2, 3, 4, 5, 6)  # columns that are always shown, and those that are aligned to the right


class RunEntry(TypedDict):
    """One run. What it does not have, or what cannot be read, is None."""

    run_dir: str
    state: str  # finished, running, interrupted, newer, foreign or damaged
    epoch: int | None  # of one that was interrupted or is running: the epoch under way, counted from 1
    epochs: int | None  # that its recipe asks for
    val_accuracy: float | None  # of the best epoch so far
    val_average_precision: float | None  # likewise: mAP, where several labels may apply to an image
    test_accuracy: float | None
    test_average_precision: float | None
    test_balanced_accuracy: float | None  # None too where an earlier tlx finished the run
    test_macro_f1: float | None
    seconds: float | None  # of the last process that worked on it; of an unfinished run, of training alone
    recipe: dict[str, Any]


def list_runs(folder: str | Path) -> list[RunEntry]:
    """Return the runs below a folder, or the one that it is: the highest validation figure first.

    That is the accuracy, or mAP where several labels may apply to an image.

    Nothing is written, and no weights are read: of these only the size is compared with what the run wrote. Links to
    folders are not followed.

    Raises:
        DataNotFound: there is no such folder.
    """
    top = Path(folder)
    if not os.path.isdir(top):
        raise DataNotFound(f"{top} is no folder", fix="name the folder that holds the runs: `tlx run` writes to runs")
    entries = [entry for path in _below(top, DEEPEST) if (entry := _entry(path)) is not None]
    return sorted(entries, key=_place)


def _place(entry: RunEntry) -> tuple[Any, ...]:
    figures = (_score(entry, "val"), _score(entry, "test"))
    return (*(1.0 if figure is None else -figure for figure in figures), entry["run_dir"])


def _score(entry: RunEntry, part: str) -> float | None:
    """What runs are ordered by: mAP where several labels may apply to an image, otherwise the accuracy."""
    ranked: float | None = entry.get(f"{part}_average_precision")  # type: ignore[assignment]
    return entry[f"{part}_accuracy"] if ranked is None else ranked  # type: ignore[literal-required]


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folders that may be runs; what lies within one is its own."""
    if any(os.path.lexists(folder / name) for name in (MANIFEST, RECIPE)):
        yield folder
        if os.path.lexists(folder / MANIFEST) or _is_earlier(folder):
            return
    if not depth:
        return
    with suppress(OSError):
        with os.scandir(folder) as found:
            names = sorted(e.name for e in found if not e.name.startswith(".") and e.is_dir(follow_symlinks=False))
        for name in names:
            yield from _below(folder / name, depth - 1)


def _is_earlier(folder: Path) -> bool:
    """Whether a folder without a manifest is a run, rather than one that holds a recipe."""
    return any(os.path.lexists(folder / name) for name in (RESULT, LAST))


def _entry(path: Path) -> RunEntry | None:
    """Return what can be said of a folder; None where it is no run."""
    while True:
        entry: RunEntry = {
            "run_dir": str(path),
            "state": "damaged",
            "epoch": None,
            "epochs": None,
            "val_accuracy": None,
            "val_average_precision": None,
            "test_accuracy": None,
            "test_average_precision": None,
            "test_balanced_accuracy": None,
            "test_macro_f1": None,
            "seconds": None,
            "recipe": {},
        }
        manifest = None
        try:
            for name in (MANIFEST, CARD, RECIPE, RESULT, HISTORY):
                if os.path.lexists(path / name) and os.stat(path / name).st_size > LARGEST:
                    return entry
            manifest = read_manifest(path)
            if manifest is None and not _is_earlier(path):
                return None
            _read(path, manifest, entry)
        except (TlxError, OSError, ValueError, RecursionError) as error:
            if manifest is not None and _is_replaced(path, manifest):
                continue  # the run goes on meanwhile
            entry["state"] = "newer" if "newer tlx" in str(error) else "damaged"
        return entry


def _is_replaced(path: Path, manifest: Manifest) -> bool:
    try:
        return read_manifest(path) != manifest
    except TlxError:
        return False


def _read(path: Path, manifest: Manifest | None, entry: RunEntry) -> None:
    """Fill in an entry; raises where a file is damaged, with all before it filled in."""
    content = _contents(path, manifest, RECIPE)
    try:
        entry["recipe"] = recipe = _recipe(path, content)
    except TlxError:
        if manifest is not None:
            raise
        entry["state"] = "foreign"  # a recipe of something else
        return
    entry["epochs"] = recipe.get("epochs", Recipe.__dataclass_fields__["epochs"].default)
    history = _history(path, manifest)
    ranked = "val_average_precision"
    if vals := [epoch for epoch in history if epoch["val_accuracy"] is not None]:
        score = ranked if vals[0][ranked] is not None else "val_accuracy"
        best = max(vals, key=lambda epoch: (epoch[score], -epoch["val_loss"]))
        entry["val_accuracy"], entry["val_average_precision"] = best["val_accuracy"], best[ranked]
    entry["seconds"] = sum(epoch["seconds"] for epoch in history) if history else None
    finished = RESULT in manifest.files if manifest else os.path.lexists(path / RESULT)
    if finished:
        result = Facts(str(path), parse_object(_contents(path, manifest, RESULT), str(path)), "")
        for name in ("val_accuracy", *TESTED, "wall_seconds"):
            high = 1e12 if name == "wall_seconds" else 1
            value = result.real(name, 0, high) if result.has(name) else None
            entry[name.removeprefix("wall_")] = value  # type: ignore[literal-required]
        if result.has("multilabel") and (several := result.inner("multilabel")).has("test"):
            test = several.inner("test")
            known = test.has("average_precision")
            entry["test_average_precision"] = test.real("average_precision", 0, 1) if known else None
    _check_sizes(path, manifest)
    if not finished:
        entry["epoch"] = min(len(history) + 1, max(entry["epochs"] or 1, 1))
    entry["state"] = "running" if _is_held(path) else "finished" if finished else "interrupted"


def _contents(path: Path, manifest: Manifest | None, name: str) -> bytes:
    """Return what the run wrote into a small file."""
    if manifest is None:
        return read_regular(path / name, LARGEST)
    if name not in manifest.files:
        raise ValueError(f"{MANIFEST} does not name {name}")
    return read_file(path, name, manifest.files[name])


def _recipe(path: Path, content: bytes) -> dict[str, Any]:
    values = read_toml(path / RECIPE, content)
    values.pop("recipe_version", None)
    values = current_names(values, str(path))
    epochs = values.get("epochs", 1)
    if type(epochs) is not int or not 1 <= epochs <= 2**53:
        raise TlxError(f"{path}: epochs is {shortened(epochs)}")
    # As JSON has them: neither dates nor numbers that are not finite stand in a recipe.
    try:
        plain: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
    except TypeError:
        raise TlxError(f"{path}: the recipe holds a date or a time") from None
    return {name: value for name, value in plain.items() if name != "out"}


def _history(path: Path, manifest: Manifest | None) -> list[dict[str, Any]]:
    if manifest is None and not os.path.lexists(path / HISTORY):
        return []
    if manifest is not None and HISTORY not in manifest.files:
        return []
    epochs, ranked = [], "val_average_precision"
    for line in _contents(path, manifest, HISTORY).splitlines():
        values = Facts(str(path), parse_object(line, str(path)), "")
        known = values.has("val_accuracy")
        epochs.append(
            {
                "val_accuracy": values.real("val_accuracy", 0, 1) if known else None,
                "val_loss": values.real("val_loss") if known else None,
                ranked: values.real(ranked, 0, 1) if values.has(ranked) else None,
                "seconds": values.real("seconds", 0, 1e12),
            }
        )
    return epochs


def _check_sizes(path: Path, manifest: Manifest | None) -> None:
    for name, entry in manifest.files.items() if manifest else ():
        if name == REPORT:  # whoever deletes or edits it loses nothing
            continue
        places = [path / entry.at, path / name] if entry.at else [path / name]
        sizes = [os.stat(place).st_size for place in places if os.path.isfile(place)]
        if not sizes or (sizes[0] < entry.size if name == HISTORY else sizes[0] != entry.size):
            raise ValueError(f"{name} is missing, or has another size")


def _is_held(path: Path) -> bool:
    """Whether a process works on a run. The lock is asked for, never made, and given back at once."""
    try:
        import fcntl
    except ImportError:  # on Windows
        return False
    try:
        with open_regular(path / LOCK) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except OSError:
        pass
    return False


def differing(entries: Sequence[RunEntry]) -> list[str]:
    """Return the recipe fields in which the runs whose recipe can be read differ, in the order of the recipe."""
    recipes = [entry["recipe"] for entry in entries if entry["recipe"]]
    fields = Recipe.__dataclass_fields__
    return [name for name in fields if len({_text(recipe, name) for recipe in recipes}) > 1]


def rows(entries: Sequence[RunEntry]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the cells of a table of runs: what is said of each run, then the fields that differ."""
    names = differing(entries)
    heads = ["run", "state", "val", "test", "balanced", "macro F1", "seconds", *names]
    cells = [
        [
            printable(entry["run_dir"]),
            entry["state"] + (f" at epoch {entry['epoch']}" if entry["state"] == "interrupted" else ""),
            *(_shown(entry, part) for part in ("val", "test")),
            *("-" if figure is None else f"{figure:.4f}" for figure in (entry[name] for name in TESTED[1:])),  # type: ignore[literal-required]
            "-" if entry["seconds"] is None else f"{entry['seconds']:.1f}",
            *(_short(entry["recipe"], name) for name in names),
        ]
        for entry in entries
    ]
    return heads, cells


def _shown(entry: RunEntry, part: str) -> str:
    score = _score(entry, part)
    if score is None:
        return "-"
    return f"{score:.4f}" if entry.get(f"{part}_average_precision") is None else f"mAP {score:.4f}"


def table(entries: Sequence[RunEntry], width: int | None = None) -> str:
    """Return a table of runs as text, none of it cut; the fields that find no room in `width` are named below it."""
    heads, cells = rows(entries)
    lines = [heads, *cells]
    widths = [max(cell_len(line[place]) for line in lines) for place in range(len(heads))]
    shown = len(heads)
    while width is not None and shown > FIXED and sum(widths[:shown]) + 2 * (shown - 1) > width:
        shown -= 1
    text = "\n".join(
        "  ".join(_padded(line[i], widths[i], i in RIGHT) for i in range(shown)).rstrip() for line in lines
    )
    if shown < len(heads):
        text += f"\nThey differ in {', '.join(heads[shown:])} too: use a wider terminal, or --json."
    return text


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - cell_len(text))
    return space + text if right else text + space


def _text(recipe: Mapping[str, Any], name: str) -> str:
    """A field's value as it compares with others; "" where it has none."""
    default = Recipe.__dataclass_fields__[name].default
    value = recipe.get(name, default)
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, default=str)


def _short(recipe: Mapping[str, Any], name: str) -> str:
    if not recipe:
        return "-"
    text = printable(_text(recipe, name)) or "-"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
