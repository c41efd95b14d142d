"""Photos in a folder: ``train/<class>/*`` and ``test/<class>/*`` or ``val/<class>/*``; or ``<class>/*`` alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tlx.data.images import EXTENSIONS, FileImages, Images
from tlx.data.sources.source import Kind, Source
from tlx.errors import DataError

SHOWN = 5  # names of left-out files in a note


def from_folder(folder: Path, root: Path | None = None) -> Source:
    """A data set of photos; their classes are the names of the folders that hold them.

    The test part is ``test/``, or where there is none ``val/`` or ``valid/``; with ``test/``, these are for validation.
    A folder that holds only folders of photos is one whole, and the test part is drawn from it. Files and classes are
    in the order of their names' code points. Hidden files are ignored; other files that are not photos by their
    extension are listed in the notes.

    Raises:
        DataError: the folder does not have that layout; the text says what it holds.
    """
    reserved = [name for name in ("train", "test", "val", "valid") if (folder / name).is_dir()]
    if not reserved and any(entry.is_dir() for entry in _visible(folder)):
        notes: list[str] = []
        names = _classes(folder)
        return Source(folder.resolve().name, tuple(names), {"all": _part(folder, "", names, notes)}, notes)
    if "train" not in reserved:
        inside = ", ".join(sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{folder} has no train/ folder: expected train/<class>/*.jpg and test/ or val/ beside it, or <class>/*.jpg"
            f" alone; found {inside}."
        )
    validation = [name for name in ("val", "valid") if (folder / name).is_dir()]
    if len(validation) > 1:
        raise DataError(f"{folder} has both val/ and valid/", fix="remove or rename one of them")
    folders = {"test": "test"} if (folder / "test").is_dir() else {}
    if validation:
        folders["val" if folders else "test"] = validation[0]

    classes = _classes(folder / "train")
    notes = []
    parts: dict[str, Images] = {"train": _part(folder, "train", classes, notes)}
    for part, name in folders.items():
        other = _classes(folder / name)
        if other != classes:
            missing, extra = _list(set(classes) - set(other)), _list(set(other) - set(classes))
            raise DataError(
                f"{folder}: train/ and {name}/ have different classes."
                f" Only in train/: {missing}. Only in {name}/: {extra}."
            )
        parts[part] = _part(folder, name, classes, notes)
    return Source(folder.resolve().name, tuple(classes), parts, notes)


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """The files and folders in a folder that are not hidden."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _classes(part: Path) -> list[str]:
    names = sorted(entry.name for entry in _visible(part) if entry.is_dir())
    if not names:
        raise DataError(f"{part} holds no class folders: expected {part.name}/<class>/*.jpg.")
    return names


def _part(folder: Path, part: str, classes: list[str], notes: list[str]) -> FileImages:
    names: list[str] = []
    labels: list[int] = []
    skipped = [f"{part}/{entry.name}".lstrip("/") for entry in _visible(folder / part) if entry.is_file()]
    for label, name in enumerate(classes):
        files = _files(folder / part / name, f"{part}/{name}".lstrip("/"))
        photos = [file for file in files if os.path.splitext(file)[1].lower() in EXTENSIONS]
        if not photos:
            raise DataError(f"{folder / part / name} holds no photo ({', '.join(sorted(EXTENSIONS))}).")
        skipped += set(files).difference(photos)
        names += photos
        labels += [label] * len(photos)
    if skipped:
        shown = ", ".join(sorted(skipped)[:SHOWN]) + (", ..." if len(skipped) > SHOWN else "")
        plural = "1 file that is not an image" if len(skipped) == 1 else f"{len(skipped)} files that are not images"
        notes.append(f"skipped {plural} by name: {shown}")
    return FileImages(folder, np.array(labels, dtype=np.int64), names)


def _files(folder: Path, prefix: str) -> list[str]:
    """All visible files below a folder, as sorted paths that start with `prefix`."""
    names: list[str] = []
    seen: set[str] = set()

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error

    for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            raise DataError(f"{place} is a link to {real}, which is read already", fix="remove the link")
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        inner = Path(place).relative_to(folder).as_posix()
        start = prefix if inner == "." else f"{prefix}/{inner}"
        names += [f"{start}/{name}" for name in files if not name.startswith(".")]
    return sorted(names)


FOLDER = Kind(
    name="folder",
    help="a folder of photos",
    read=from_folder,
    recognises=lambda candidate: isinstance(candidate, Path) and candidate.is_dir(),
)
