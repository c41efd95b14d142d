"""The fingerprint of a data set, by which a run that goes on knows whether the data are those that it has seen.

It is a text such as ``2:train=90 val=10:...:...``: the counts, then a hash each of the classes, the names, the labels,
the contents and the order, so that what differs can be named. That of tlx 0.1.0 saw names and sizes of photos, and has
no number in front.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tlx.data.file_hashes import Advance, FileHashes, Hashes, hash_of
from tlx.data.images import ArrayImages, FileImages, Images
from tlx.data.sources.sequence import SequenceImages

if TYPE_CHECKING:
    from tlx.data.load import Data

VERSION = "2"
FIELDS = {
    "counts": "the number of images",
    "classes": "the classes",
    "names": "the names of images",
    "labels": "the labels of images",
    "contents": "the contents of images",
    "order": "the order of the images, or their division into parts",
}


def fingerprint(
    classes: Sequence[str], parts: Mapping[str, Images], files: FileHashes, advance: Advance | None = None
) -> str:
    """Return what tells a data set from others, wherever it lies: see the module."""
    total = sum(map(len, parts.values()))
    found: list[Hashes] = []
    for images in parts.values():
        before = sum(map(len, found))
        found.append(hashes_of(images, files, advance and partial(_advance, advance, before, total)))
    hashes = np.concatenate(found)
    labels = np.concatenate([images.labels for images in parts.values()]).astype("<i8")
    names = [name for images in parts.values() for name in images.names]
    lines = [f"{name}\n".encode("utf-8", "surrogateescape") for name in names]
    # By name, so that another division into parts, which follows from a label, changes only what is said of the order.
    by_name = np.array(sorted(range(total), key=names.__getitem__), dtype=np.int64)
    transforms = [images.digest() for images in parts.values() if not isinstance(images, (ArrayImages, FileImages))]
    values = (
        json.dumps(list(classes)).encode(),
        b"".join([lines[i] for i in by_name.tolist()]),
        labels[by_name].tobytes(),
        hashes[by_name].tobytes() + b"".join(transforms),
        b"".join(lines) + labels.tobytes() + hashes.tobytes(),
    )
    counts = " ".join(f"{part}={len(images)}" for part, images in parts.items())
    return ":".join([VERSION, counts, *(hash_of(value).hex() for value in values)])


def _advance(advance: Advance, before: int, total: int, done: int, _: int) -> None:
    advance(before + done, total)


def hashes_of(images: Images, files: FileHashes, advance: Advance | None = None) -> Hashes:
    """Return a hash of what decides the pixels of each image."""
    if isinstance(images, FileImages):
        return files.of(images.root, images.spans(range(len(images))), advance)
    if isinstance(images, ArrayImages):
        return images.hashes()
    if isinstance(images, SequenceImages):
        return images.hashes(files, advance)
    return np.full(len(images), images.digest()[:16])


def first_fingerprint(name: str, classes: Sequence[str], parts: Mapping[str, Images]) -> str:
    """Return the fingerprint that tlx 0.1.0 made, which runs and captures of that time hold."""
    digest = hashlib.sha256(json.dumps([name, list(classes)]).encode())
    for part in ("train", "val", "test"):
        if part not in parts:
            digest.update(b"absent")
        else:
            digest.update(parts[part].labels.astype("<i8").tobytes() + parts[part].digest())
    return digest.hexdigest()


def is_first(saved: Any) -> bool:
    """Whether a fingerprint is one of tlx 0.1.0."""
    return ":" not in str(saved)


def difference(saved: str, data: Data, advance: Advance | None = None) -> str:
    """Say in what data differ from those of a fingerprint; "" where they are the same."""
    if is_first(saved):
        return "" if saved == data.first_fingerprint() else "names, labels or sizes differ"
    now = data.take_fingerprint(advance)
    if saved == now:
        return ""
    before, after = (dict(zip(("version", *FIELDS), text.split(":"), strict=False)) for text in (saved, now))
    if before["version"] != after["version"]:
        return "another tlx described them"
    if before["counts"] != after["counts"]:
        return f"there were {_counted(before['counts'])} images, and there are {_counted(after['counts'])}"
    changed = [what for field, what in FIELDS.items() if before.get(field) != after[field]]
    *others, last = changed[:-1] if len(changed) > 1 else changed  # the order follows from the rest
    return f"{', '.join(others)}{' and ' * bool(others)}{last} changed"


def _counted(counts: str) -> str:
    return ", ".join(" ".join(reversed(count.split("="))) for count in counts.split(" "))
