"""Where a data set comes from: `load_data` finds it, checks it, takes the subset and carves out the validation part."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tlx.data.images import FileImages, Images
from tlx.data.sources.arrays import from_arrays
from tlx.data.sources.digits import digits
from tlx.data.sources.sequence import is_sequence
from tlx.data.sources.source import Source
from tlx.data.split import hold_out, limit, pick_classes, split
from tlx.errors import DataError, DataNotFound, closest


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """A data set: what is trained on, what chooses the best epoch, and what is read once at the end."""

    name: str
    classes: tuple[str, ...]
    train: Images
    val: Images | None
    test: Images | None
    fingerprint: str  # SHA-256 of names, classes, labels, and pixels (of files: names and sizes)
    notes: tuple[str, ...]  # facts to show, such as files that were left out


def load_data(
    source: str | Path | Mapping[str, Any] | tuple[Any, ...],
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
    test)``, or one part alone, of which the test part is drawn. A part is (images, labels), uint8 NHWC or NHW and
    integers [N]; or a sequence of (image, label), such as a torchvision data set without transforms.

    root: folder that holds the data; where absent, TLX_DATA_ROOT, then the cache.
    classes: names to keep, in the order that numbers their labels.
    limit_train, limit_test: at most so many images, in the classes' proportions, always the same ones. The limit comes
    before the split.
    val_fraction: share of train for validation, drawn by `seed`; unused where the data has its own validation part.
    test_fraction: share for the test where the data is one whole; the same images whatever the seed.
    on_bad_image: "error" lists all photos that cannot be decoded when the first is met; "skip" tries all before
    training, leaves the bad ones out and says which.
    Raises DataError.
    """
    try:
        found = _find(source, None if root is None else Path(root).expanduser())
    except DataError:
        raise
    except OSError as error:  # such as a folder that may not be read
        raise DataError(f"{error.filename or source} cannot be read: {error.strerror}.") from error
    names, parts, notes = found.classes, dict(found.parts), list(found.notes)
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
            f"{found.name} has {len(names)} class to tell apart ({', '.join(names)}); at least 2 are needed."
        )
    if "all" in parts:
        whole = parts.pop("all")
        parts["train"] = whole
        if test_fraction:
            parts["train"], parts["test"] = hold_out(whole, names, test_fraction)
            notes.append(f"{len(parts['test'])} of {len(whole)} images were drawn for the test (test_fraction)")
    for part, images in parts.items():
        present = np.bincount(images.labels, minlength=len(names))
        if part == "train" and not present.all():
            raise DataError(f"{found.name}: no training image of class {names[int(present.argmin())]!r}.")
    for part, count in (("train", limit_train), ("test", limit_test)):
        if count is not None and part in parts:
            if count > len(parts[part]):
                notes.append(f"limit_{part}={count} is more than there are: all {len(parts[part])} are used")
            parts[part] = limit(parts[part], names, count, f"limit_{part}")
    train, val = parts["train"], parts.get("val")
    if val is None:
        train, val = split(train, names, val_fraction, seed)
    test = parts.get("test")
    if test is None:
        notes.append("there is no test part")
    return Data(found.name, names, train, val, test, _fingerprint(found.name, names, train, val, test), tuple(notes))


def _decodable(images: Images, part: str, notes: list[str]) -> Images:
    """The images without those that cannot be decoded, which a note counts and names."""
    if not isinstance(images, FileImages):
        return images
    bad = images.undecodable()
    if not bad:
        return images
    listed = ", ".join(list(bad)[:5]) + (", ..." if len(bad) > 5 else "")
    notes.append(f"left out {len(bad)} of {len(images)} photos that cannot be decoded: {listed}")
    good = np.array([i for i, name in enumerate(images.names) if name not in bad], dtype=np.int64)
    if not len(good):
        raise DataError(f"no photo of {part} can be decoded: {next(iter(bad.values()))}")
    return images.select(good, images.labels[good])


def _fingerprint(name: str, classes: Sequence[str], *parts: Images | None) -> str:
    digest = hashlib.sha256(json.dumps([name, list(classes)]).encode())
    for images in parts:
        if images is None:
            digest.update(b"absent")
        else:
            digest.update(images.labels.astype("<i8").tobytes() + images.digest())
    return digest.hexdigest()


def _find(source: Any, root: Path | None) -> Source:
    if isinstance(source, (Mapping, tuple)) or (is_sequence(source) and not isinstance(source, os.PathLike)):
        return from_arrays(source)
    if isinstance(source, str) and source in SOURCES:
        return SOURCES[source](root)
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(
            f"data must be one of {', '.join(SOURCES)}, a folder, a .csv or .npz file, a sequence of (image, label), or"
            f" arrays as {{'train': (images, labels), 'test': (images, labels)}}; got {type(source).__name__}."
        )
    from tlx.data.sources.folder import from_folder

    folder = Path(source).expanduser()
    for place in [folder] if root is None else [folder, root / folder]:
        if place.is_dir():
            return from_folder(place)
        if place.is_file() and place.suffix.lower() == ".csv":
            from tlx.data.sources.csv_file import from_csv

            return from_csv(place, root)
        if place.is_file() and place.suffix.lower() == ".npz":
            from tlx.data.sources.npz import read_npz

            return replace(from_arrays(read_npz(place)), name=place.stem)
    what = (
        "is a file, but neither .csv nor .npz"
        if folder.exists()
        else "is neither a known data set nor an existing folder"
    )
    raise (DataError if folder.exists() else DataNotFound)(
        f"data={str(source)!r} {what}.{closest(str(source), SOURCES)}"
    )


def _cifar10(root: Path | None) -> Source:
    from tlx.data.sources.cifar10 import cifar10

    return cifar10(root)


SOURCES = {"cifar10": _cifar10, "digits": digits}
