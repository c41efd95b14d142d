"""The manifest of a run's folder: the size and digest of each of its files, checked by whoever reads the folder.

``manifest.json`` is replaced in one step, after all that it names has been written. What it does not name is not part
of the run, so a kill at any moment leaves the old files or the new ones, never some of each. A file that takes the
place of another is written beside it, which the manifest says as `at`; then it is renamed, and readers look in both.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tlx.atomic import write_atomic
from tlx.errors import RunDamaged, TlxError
from tlx.files import read_regular

MANIFEST, RECIPE, HISTORY, CARD = "manifest.json", "recipe.toml", "history.jsonl", "card.json"
BANK = "neighbors.safetensors"  # of strategy knn
REPORT = "report.html"  # a view of the others: a run does without it
FIXES = "fixes.csv"  # the decisions on single images that the run applied
# What was predicted for the images of a part, and by which logits.
PART_TABLES = {part: f"predictions-{part}.csv" for part in ("val", "test")}
PART_LOGITS = {part: f"logits-{part}.npy" for part in ("val", "test")}
FORMAT = 1
OWN = re.compile(
    r"(?:manifest|card|result)\.json|recipe\.toml|fixes\.csv|history\.jsonl|(?:model|adapters|neighbors)\.safetensors|"
    r"report\.html|predictions-(?:val|test)\.csv|logits-(?:val|test)\.npy|"
    r"last/(?:state|best)-\d+\.safetensors|last/logits-\d+\.npy"
)
STATE, BEST = re.compile(r"last/state-(\d+)\.safetensors"), re.compile(r"last/best-(\d+)\.safetensors")
LOGITS = re.compile(r"last/logits-\d+\.npy")  # of the validation part, at the best epoch


@dataclass(frozen=True, slots=True)
class Entry:
    """A file's size in bytes and SHA-256 in hex. Of the history, to which lines are appended, they are those so far."""

    size: int
    sha256: str
    at: str = ""  # where it lies until it is renamed


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a run by their paths in its folder, and the text of its recipe, to tell what was changed in it."""

    files: Mapping[str, Entry]
    recipe: str = ""

    def write(self, folder: Path) -> None:
        """Replace the folder's manifest in one step; raises TlxError, and leaves the old one, where it cannot."""
        files = {name: {k: v for k, v in asdict(entry).items() if v != ""} for name, entry in self.files.items()}
        body = {"format": FORMAT, "files": files, "recipe": self.recipe}
        write_atomic(folder / MANIFEST, json.dumps({**body, "sha256": _digest(body)}, indent=1).encode() + b"\n")

    def states(self) -> list[str]:
        """Return the names of the saved states: one, or none."""
        return [name for name in self.files if STATE.fullmatch(name)]


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a run's folder; None in one of tlx 0.1.0, of no run, or of one killed as it began.

    Raises RunDamaged where the manifest is damaged, or missing where there must be one.
    """
    path = folder / MANIFEST
    try:
        value = json.loads(read_regular(path))
        body = {name: value[name] for name in ("format", "files", "recipe")}
        if value["sha256"] != _digest(body):
            raise ValueError("its content does not match its own digest")
        files = {name: _entry(**entry) for name, entry in body["files"].items()}
        if type(body["format"]) is not int:
            raise ValueError("its format is no number")
        if strange := [name for name, entry in files.items() if not (OWN.fullmatch(name) and "/" not in entry.at)]:
            raise ValueError(f"it names {strange[0]!r}")
    except FileNotFoundError:
        if _needs_manifest(folder):
            raise _lost(folder, "is missing") from None
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if not any(os.path.exists(folder / name) for name in (RECIPE, CARD)):
            return None  # the folder of a model of others, say, who have a manifest too
        raise _lost(folder, f"is damaged ({' '.join(str(error).split())})") from error
    if body["format"] > FORMAT:
        raise TlxError(f"{folder} was written by a newer tlx; upgrade tlx to read it")
    return Manifest(files, str(body["recipe"]))


def _entry(size: Any, sha256: Any, at: Any = "") -> Entry:
    """Check what a manifest says of a file."""
    if type(size) is not int or size < 0 or not isinstance(sha256, str) or not isinstance(at, str) or "\0" in at:
        raise ValueError("it names a file without its size and digest")
    return Entry(size, sha256, at)


def read_file(folder: Path, name: str, entry: Entry) -> bytes:
    """Return what a file of the manifest holds; raises ValueError, which says why, where it is not what was written."""
    data = _content(folder / entry.at, None) if entry.at else None
    if data is None:  # it is renamed by now
        data = _content(folder / name, entry.size if name == HISTORY else None)
    if data is None:
        raise ValueError("is missing")
    if len(data) != entry.size:
        raise ValueError(f"is damaged: it has {len(data)} bytes, and {entry.size} were written")
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise ValueError("is damaged: its bytes are not those that were written")
    return data


def _content(path: Path, size: int | None) -> bytes | None:
    """Return a file's first `size` bytes, or all; None where there is nothing at the path."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("is no file")
        with path.open("rb") as file:
            return file.read(size)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error


def read_files(folder: Path, names: Collection[str]) -> dict[str, bytes]:
    """Return the content of files of a run's folder, all of one moment, though a run may replace them meanwhile.

    Raises RunDamaged, which says what is lost and what is not, where one is missing or not what was written.
    """
    while (manifest := read_manifest(folder)) is not None and all(name in manifest.files for name in names):
        contents: dict[str, bytes] = {}
        for name in names:
            try:
                contents[name] = read_file(folder, name, manifest.files[name])
            except ValueError as error:
                if read_manifest(folder) == manifest:
                    raise damaged(folder, manifest, name, str(error)) from None
                break  # they were replaced meanwhile
        else:
            return contents
    raise RunDamaged(f"{folder / MANIFEST} does not name {' and '.join(names)}")


def owner_of(file: Path) -> tuple[Path, str] | None:
    """Return the run's folder that a file belongs to, and its name in there; None where it belongs to no run."""
    for folder, name in ((file.parent, file.name), (file.parent.parent, f"{file.parent.name}/{file.name}")):
        try:
            manifest = read_manifest(folder)
        except TlxError:
            return None  # what is passed by itself is read by itself
        if manifest is not None and name in manifest.files:
            return folder, name
    return None


def damaged(folder: Path, manifest: Manifest, name: str, reason: str) -> RunDamaged:
    """Return the error that says what is wrong with the file `name`, what else is, what is whole, and how to go on."""
    whole, others = [], []
    for other, entry in manifest.files.items():
        try:
            read_file(folder, other, entry)
            whole.append(other)
        except ValueError as error:
            others += [f"{other} {error}"] if other != name else []
    edited = _changes(folder, manifest) if name == RECIPE else ""
    if edited:
        reason = f"was changed since tlx wrote it: {edited}"
    problem = f"{folder / name} {reason}"
    if others:
        problem += f"; {'; '.join(others)}"
    problem += f". Whole: {', '.join(whole)}" if whole else f". Nothing is what {MANIFEST} says, which may be another's"
    way = f"start a new run with it, with: tlx run {folder / RECIPE}" if edited else _way_on(folder, manifest, whole)
    return RunDamaged(problem, fix=f"put back what was there, or {way}")


def _way_on(folder: Path, manifest: Manifest, whole: Collection[str]) -> str:
    """Say how to go on from the files that are whole."""
    best = () if "\nrank = " in manifest.recipe else filter(BEST.fullmatch, whole)  # adapters are not merged there
    weights = [file for file in ("model.safetensors", *best) if file in whole]
    recipe = f" {folder / RECIPE}" if RECIPE in whole else ""
    if weights:
        # The strategy "scratch" takes no weights.
        scratch = " --strategy full" if recipe and 'strategy = "scratch"' in manifest.recipe else ""
        return f"start a new run from the best weights, with: tlx run{recipe}{scratch} --weights {folder / weights[0]}"
    return f"start it again, with: tlx run{recipe or ' and the options that it had'}"


def _changes(folder: Path, manifest: Manifest) -> str:
    """Say which lines of recipe.toml are not as they were written; "" where that is no text or says nothing."""
    try:
        now = read_regular(folder / RECIPE).decode().splitlines()
    except (OSError, ValueError):
        return ""
    before = manifest.recipe.splitlines()
    added, gone = ([line for line in a if line not in b] for a, b in ((now, before), (before, now)))
    if not added + gone or len(added + gone) > 6:
        return ""
    return f"it says {' and '.join(added) or 'nothing'} where it said {' and '.join(gone) or 'nothing'}"


def _needs_manifest(folder: Path) -> bool:
    """Whether a folder without a manifest is of a tlx that writes one."""
    try:
        card = json.loads(read_regular(folder / CARD))
        if isinstance(card, dict) and card.get("format") != 1 and "sha256" in card:
            return True
    except (OSError, ValueError, RecursionError):
        pass
    return any(STATE.fullmatch(f"last/{path.name}") for path in (folder / "last").glob("state-*"))


def _lost(folder: Path, reason: str) -> RunDamaged:
    fix = f"put it back, or start again, with: tlx run {folder / RECIPE}"
    return RunDamaged(f"{folder / MANIFEST} {reason}, so nothing says whether the other files are whole", fix=fix)


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
