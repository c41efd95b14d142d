"""From whatever names a data set to its parts: it is found, checked, limited, and a validation part is held out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from tlx.data.images import FileImages, Images
from tlx.data.sources.arrays import ARRAYS
from tlx.data.sources.cifar10 import CIFAR10
from tlx.data.sources.csv_file import CSV
from tlx.data.sources.digits import DIGITS
from tlx.data.sources.folder import FOLDER
from tlx.data.sources.npz import NPZ
from tlx.data.sources.source import DataLike, Kind, Source
from tlx.data.split import hold_out, limit, pick_classes
from tlx.errors import DataError, DataNotFound, closest

KINDS: dict[str, Kind] = {kind.name: kind for kind in (CIFAR10, DIGITS, FOLDER, CSV, NPZ, ARRAYS)}
LISTED_CLASSES = 10  # in a notebook's table


def register(kind: Kind) -> None:
    """Add a kind of data source to the table. It is asked before those that are there, so it may take their files.

    Raises:
        DataError: a kind has that name already.
    """
    if kind.name in KINDS:
        raise DataError(f"data source {kind.name!r} is registered already", fix="give the kind another name")
    KINDS[kind.name] = kind


def describe_sources() -> str:
    """Say in one line what `data` may be, for the help of the recipe's field."""
    *helps, last = [kind.help for kind in KINDS.values()]
    return f"{', '.join(helps)}, or {last}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Data:
    """A data set: what is trained on, what chooses the best epoch, and what is read once at the end."""

    name: str
    classes: tuple[str, ...]
    train: Images
    val: Images | None
    test: Images | None
    fingerprint: str  # SHA-256 of names, classes, labels, and pixels (of files: names and sizes)
    notes: tuple[str, ...]  # facts to show, such as files that were left out
    drawn: frozenset[str] = frozenset()  # parts, val or test, that were held out by a fraction

    @property
    def parts(self) -> dict[str, Images]:
        """The parts that there are, under the names train, val and test."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: images for name, images in parts.items() if images is not None}

    @property
    def of_photos(self) -> bool:
        """Whether evaluation sees photos of many sizes, each cropped and resized, or images of one size as they are."""
        return (self.train if self.test is None else self.test).size is None

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(images):,} {name}" for name, images in self.parts.items())
        return f"<Data {self.name}: {len(self.classes)} classes; images: {counts}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td>{len(images):,}</td><td>{escape(self._class_counts(images))}</td></tr>"
            for name, images in self.parts.items()
        )
        head = "<tr><th>part</th><th>images</th><th>of each class</th></tr>"
        return f"<table><caption>{escape(self.name)}: {len(self.classes)} classes</caption>{head}{rows}</table>"

    def _class_counts(self, images: Images) -> str:
        counts = np.bincount(images.labels, minlength=len(self.classes))
        listed = [f"{name} {count:,}" for name, count in zip(self.classes, counts, strict=True)]
        more = len(listed) - LISTED_CLASSES
        return ", ".join([*listed[:LISTED_CLASSES], *([f"and {more} more classes"] if more > 0 else [])])


def load_data(
    source: DataLike,
    *,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    on_bad_image: str = "error",
    seed: int = 0,
) -> Data:
    """Load a data set by name ("cifar10", "digits"), by folder, from a .csv or .npz file, or from Python objects.

    In Python: ``{"train": part, "test": part, "val": part, "classes": names}`` (all but train optional), ``(train,
    test)``, or one part alone, from which the test part is drawn. A part is (images, labels), uint8 NHWC or NHW and
    integers [N]; or a sequence of (image, label), such as a torchvision data set without transforms.

    Args:
        source: one of these; `tlx.data.load.KINDS` is the table of them.
        root: folder that holds the data. Default: TLX_DATA_ROOT, then the cache.
        classes: names of the classes to use, in the order that numbers their labels.
        limit_train: at most this many training images, in the classes' proportions, always the same ones. The limit
            comes before the split.
        limit_test: at most this many test images, chosen in the same way.
        val_fraction: fraction of the training images held out for validation, drawn by `seed`; unused where the data
            has a validation part.
        test_fraction: fraction held out for the test where the data has no parts; the same images whatever the seed.
        on_bad_image: "error" lists all photos that cannot be decoded when the first is met; "skip" tries all before
            training, leaves the bad ones out and says which.
        seed: of the validation part.

    Raises:
        DataNotFound: there is no such data set, file or folder.
        DataError: the data is damaged, has another layout, or cannot be divided as asked.
    """
    try:
        origin = _open(source, None if root is None else Path(root).expanduser())
    except DataError:
        raise
    except OSError as error:  # such as a folder that may not be read
        raise DataError(f"{error.filename or source} cannot be read: {error.strerror}.") from error
    names, parts, notes = origin.classes, dict(origin.parts), list(origin.notes)
    drawn = {part for part in ("val", "test") if part not in parts and (part == "val" or "all" in parts)}
    if on_bad_image == "skip":
        parts = {part: _decodable(images, part, notes) for part, images in parts.items()}
    elif on_bad_image != "error":
        raise DataError(f"on_bad_image is {on_bad_image!r}; expected error or skip.")
    if classes is not None:
        wanted = (classes,) if isinstance(classes, str) else tuple(classes)
        parts = {part: pick_classes(images, names, wanted) for part, images in parts.items()}
        names = wanted
    if len(names) < 2:
        raise DataError(
            f"{origin.name} has {len(names)} class to tell apart ({', '.join(names)}); at least 2 are needed."
        )
    if "all" in parts:
        whole = parts.pop("all")
        parts["train"], test = hold_out(whole, names, test_fraction, "test")
        if test is not None:
            parts["test"] = test
            notes.append(f"{len(test)} of {len(whole)} images were drawn for the test (test_fraction)")
    present = np.bincount(parts["train"].labels, minlength=len(names))
    if not present.all():
        raise DataError(f"{origin.name}: no training image of class {names[int(present.argmin())]!r}.")
    for part, count in (("train", limit_train), ("test", limit_test)):
        if count is not None and part in parts:
            if count > len(parts[part]):
                notes.append(f"limit_{part}={count} is more than there are: all {len(parts[part])} are used")
            parts[part] = limit(parts[part], names, count, f"limit_{part}")
    train, val, test = parts["train"], parts.get("val"), parts.get("test")
    if val is None:
        train, val = hold_out(train, names, val_fraction, "val", seed)
    if test is None:
        notes.append("there is no test part")
    fingerprint = _fingerprint(origin.name, names, train, val, test)
    return Data(origin.name, names, train, val, test, fingerprint, tuple(notes), frozenset(drawn))


def _decodable(images: Images, part: str, notes: list[str]) -> Images:
    """Leave out the photos that cannot be decoded, which a note counts and names."""
    if not isinstance(images, FileImages):
        return images
    bad = images.undecodable()
    if not bad:
        return images
    listed = ", ".join(list(bad)[:5]) + (", ..." if len(bad) > 5 else "")
    notes.append(f"left out {len(bad)} of {len(images)} photos that cannot be decoded: {listed}")
    good = np.array([i for i, name in enumerate(images.names) if name not in bad], dtype=np.int64)
    if not len(good):
        raise DataError(f"no photo of {part} can be decoded: {next(iter(bad.values()))}", fix="replace or remove them")
    return images.select(good, images.labels[good])


def _fingerprint(name: str, classes: Sequence[str], *parts: Images | None) -> str:
    digest = hashlib.sha256(json.dumps([name, list(classes)]).encode())
    for images in parts:
        if images is None:
            digest.update(b"absent")
        else:
            digest.update(images.labels.astype("<i8").tobytes() + images.digest())
    return digest.hexdigest()


def _open(source: Any, root: Path | None) -> Source:
    """Find out which kind of source it is, and read it."""
    published = [kind.name for kind in KINDS.values() if kind.named]
    if isinstance(source, str) and source in published:
        return KINDS[source].read(source, root)
    is_path = isinstance(source, (str, os.PathLike))
    candidates = [source]
    if is_path:
        path = Path(source).expanduser()
        candidates = [path] if root is None else [path, root / path]
    for candidate in candidates:
        for kind in reversed(KINDS.values()):  # what was registered later comes first
            if kind.matches(candidate):
                return kind.read(candidate, root)
    if not is_path:
        raise DataError(
            f"data must be one of {describe_sources()}; got {type(source).__name__}."
            " Arrays are passed as {'train': (images, labels), 'test': (images, labels)}."
        )
    suffixes = " nor ".join(kind.suffix for kind in KINDS.values() if kind.suffix)
    nearest = closest(str(source), published)
    if path.exists():
        raise DataError(f"data={str(source)!r} is a file, but neither {suffixes}.{nearest}")
    raise DataNotFound(f"data={str(source)!r} is neither a known data set nor an existing folder or file.{nearest}")
