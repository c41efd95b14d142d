"""Decisions on single images of a data set, which `tlx check` proposes and a person has looked through.

The file is a CSV with the columns part, path and decision, and suggested where something is relabelled; the others that
`tlx check` writes say why. Decisions are `keep`, `drop` and `relabel`. A label is changed before classes are chosen and
parts are divided, an image is dropped after that: so the other images stay in the parts in which they were.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tlx.data.file_hashes import FileHashes
from tlx.data.fingerprint import hashes_of
from tlx.data.images import Images
from tlx.errors import DataError, DataNotFound, closest, shown
from tlx.files import read_regular

COLUMNS = ("part", "path", "problem", "label", "suggested", "decision", "sure", "group", "content")
NEEDED = ("part", "path", "decision")
DECISIONS = ("keep", "drop", "relabel")
PIN = "#sha256="  # between the path and the hash of a file whose content is laid down
LARGEST = 2**30  # bytes of the file
SHOWN = 3  # rows that an error names

Key = tuple[str, str]  # part and name of an image


@dataclass(frozen=True, slots=True)
class Fixes:
    """What becomes of images, by part and name, and what tells the file from others.

    `contents` holds the hash that an image had when it was checked, in hex, where the file says one.
    """

    path: str
    sha256: str
    text: bytes = field(repr=False)
    drops: frozenset[Key] = frozenset()
    labels: Mapping[Key, str] = field(default_factory=dict)
    contents: Mapping[Key, str] = field(default_factory=dict)
    kept: int = 0

    @property
    def pinned(self) -> str:
        """The path with the hash of the content."""
        return f"{self.path}{PIN}{self.sha256}"


def read_fixes(source: str) -> Fixes:
    """Read a file of decisions; a hash after its path must be that of its content.

    Raises:
        DataNotFound: there is no such file.
        DataError: it is no such table, says something that is no decision, or has changed.
    """
    path, _, pin = source.partition(PIN)
    try:
        text = read_regular(path, LARGEST)
    except FileNotFoundError as error:
        raise DataNotFound(
            f"fixes: there is no file {path}", fix="write it with: tlx check DATA --decisions"
        ) from error
    except OSError as error:
        raise DataError(f"fixes: {path} cannot be read: {error.strerror}") from error
    sha256 = hashlib.sha256(text).hexdigest()
    if pin and pin != sha256:
        problem = f"fixes: {path} has changed: its SHA-256 is {sha256[:12]}..., and the recipe says {pin[:12]}..."
        raise DataError(problem, fix="bring the file back, or start a new run with it")
    return _parsed(path, sha256, text)


def _parsed(path: str, sha256: str, text: bytes) -> Fixes:
    try:
        lines = text.decode("utf-8-sig", "surrogateescape")
        reader = csv.DictReader(io.StringIO(lines, newline=""), strict=True)
        rows = list(reader)
    except csv.Error as error:
        raise DataError(f"fixes: {path} is no CSV file: {error}") from error
    names = [name for name in reader.fieldnames or () if name is not None]
    if missing := [name for name in NEEDED if name not in names]:
        raise DataError(
            f"fixes: {path} has no column {' and '.join(missing)}; it has {', '.join(names) or 'none'}",
            fix="write it with: tlx check DATA --decisions",
        )
    drops: set[Key] = set()
    labels: dict[Key, str] = {}
    contents: dict[Key, str] = {}
    kept = 0
    for number, row in enumerate(rows, 2):
        where = f"fixes: {path}, row {number}"
        values = {name: (row.get(name) or "") for name in COLUMNS}
        key, decision = (values["part"], values["path"]), values["decision"].strip().lower()
        if decision not in DECISIONS:
            raise DataError(f"{where}: unknown decision {shown(values['decision'])}.{closest(decision, DECISIONS)}")
        if decision == "drop":
            drops.add(key)
        elif decision == "relabel":
            label = values["suggested"]
            if not label:
                raise DataError(f"{where}: relabel, but the column suggested is empty", fix="write the new label there")
            if labels.setdefault(key, label) != label:
                problem = f"{where}: {values['path']} is relabelled to {label!r} and to {labels[key]!r}"
                raise DataError(problem, fix="decide for one of them")
        else:
            kept += 1
        if decision != "keep" and values["content"]:
            contents[key] = values["content"]
    return Fixes(path, sha256, text, frozenset(drops), labels, contents, kept)


def relabelled(
    fixes: Fixes, parts: Mapping[str, Images], classes: Sequence[str], files: FileHashes
) -> dict[str, Images]:
    """Check every decision against the data, and return the parts with the new labels.

    Raises:
        DataError: a row names no image of the data or no class, or an image is no longer what was checked.
    """
    places = _places(fixes, parts)
    _check_contents(fixes, parts, places, files)
    numbers = {name: number for number, name in enumerate(classes)}
    changed: dict[str, Images] = {}
    for part, images in parts.items():
        labels = images.labels.copy()
        for key, label in fixes.labels.items():
            if key[0] == part and key not in fixes.drops:
                if label not in numbers:
                    raise DataError(
                        f"fixes: {fixes.path}: {key[1]} is relabelled {label!r}, which is no class of the data."
                        f"{closest(label, classes)}"
                    )
                labels[places[key]] = numbers[label]
        same = (labels == images.labels).all()
        changed[part] = images if same else images.select(np.arange(len(images)), labels)
    return changed


def _places(fixes: Fixes, parts: Mapping[str, Images]) -> dict[Key, int]:
    wanted = fixes.drops | fixes.labels.keys()
    names = {part for part, _ in wanted}
    for name in names:
        if name not in parts:
            problem = f"fixes: {fixes.path} names the part {name!r}, which the data has not"
            raise DataError(f"{problem}.{closest(name, parts)}")
    places = {
        (part, name): index
        for part, images in parts.items()
        if part in names
        for index, name in enumerate(images.names)
        if (part, name) in wanted
    }
    if missing := sorted(wanted - places.keys()):
        listed = ", ".join(f"{part} {name}" for part, name in missing[:SHOWN])
        more = ", ..." if len(missing) > SHOWN else ""
        raise DataError(
            f"fixes: {fixes.path}: {len(missing)} rows name no image of the data: {listed}{more}",
            fix="take these rows out, or check the data again",
        )
    return places


def _check_contents(fixes: Fixes, parts: Mapping[str, Images], places: Mapping[Key, int], files: FileHashes) -> None:
    """Raise DataError where an image that is to be changed is no longer the one that was looked at."""
    for part, images in parts.items():
        keys = [key for key in fixes.contents if key[0] == part and key in places]
        if not keys:
            continue
        which = np.array([places[key] for key in keys], np.int64)
        hashes = hashes_of(images.select(which, images.labels[which]), files)
        changed = [
            key[1]
            for key, content in zip(keys, hashes.tolist(), strict=True)
            if bytes(content).ljust(16, b"\0").hex() != fixes.contents[key]
        ]
        if changed:
            listed = ", ".join(changed[:SHOWN]) + (", ..." if len(changed) > SHOWN else "")
            raise DataError(
                f"fixes: {fixes.path}: {len(changed)} images have changed since they were checked: {listed}",
                fix="check the data again",
            )


def without_drops(fixes: Fixes, part: str, images: Images) -> Images:
    """Return the images of a part without those that are dropped; `part` is where they came from."""
    stay = [index for index, name in enumerate(images.names) if (part, name) not in fixes.drops]
    if len(stay) == len(images):
        return images
    which = np.array(stay, np.int64)
    return images.select(which, images.labels[which])


def note(fixes: Fixes, dropped: int, classes: Iterable[str]) -> str:
    """Say what was done."""
    used = sum(key not in fixes.drops and label in set(classes) for key, label in fixes.labels.items())
    done = f"{used:,} images relabelled, {dropped:,} dropped, {fixes.kept:,} kept as they are"
    return f"fixes of {fixes.path}: {done} (SHA-256 {fixes.sha256[:12]})"
