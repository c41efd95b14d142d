"""All images of a data set in one row, whatever their part, with what is known of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.audit.facts import Fact, Facts, Place
from tlx.audit.result import Decision, Row
from tlx.data import FileImages, Images
from tlx.data.file_hashes import FileHashes
from tlx.data.fingerprint import hashes_of

RANK = {"train": 0, "all": 0, "val": 1, "test": 2}  # of copies, that in the part with the highest stays


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """The images of all parts, [N], part after part.

    Attributes:
        parts: the parts by their names.
        classes: names of the classes.
        facts: of `FACT`; zeros where an image cannot be read.
        problems: what is wrong with those that cannot be read.
        places: where photos are stored.
        part: the number of each image's part, int64 [N].
        index: its place in the part, int64 [N].
        labels: its class, int64 [N].
        files: hashes of files.
    """

    parts: Mapping[str, Images]
    classes: tuple[str, ...]
    facts: Fact
    problems: Mapping[int, str]
    places: list[Place | None]
    part: NDArray[np.int64]
    index: NDArray[np.int64]
    labels: NDArray[np.int64]
    files: FileHashes

    def __len__(self) -> int:
        return len(self.part)

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Which images can be read, bool [N]."""
        result = np.ones(len(self), np.bool_)
        result[list(self.problems)] = False
        return result

    def part_of(self, place: int) -> str:
        """The name of an image's part."""
        return list(self.parts)[int(self.part[place])]

    def name(self, place: int) -> str:
        """The name of an image within its part."""
        return self.parts[self.part_of(place)].names[int(self.index[place])]

    def rank(self, place: int) -> int:
        """How far an image is held out."""
        return RANK.get(self.part_of(place), 0)

    def row(self, problem: str, place: int, decision: Decision = "keep", **more: Any) -> Row:
        """Return an image as the row of a problem."""
        part, index = self.part_of(place), int(self.index[place])
        number = int(self.labels[place])
        label = self.classes[number] if number >= 0 else ""  # of a sample that is of no use
        content = self.content(place)
        return Row(problem, part, self.name(place), index, label, decision=decision, content=content, **more)

    def content(self, place: int) -> str:
        """Return the hash by which a change of the image is noticed, in hex; "" where it cannot be read."""
        if place in self.problems:
            return ""
        images, index = self.parts[self.part_of(place)], self.index[place : place + 1]
        if isinstance(images, FileImages):
            return str(bytes(self.facts["content"][place]).ljust(16, b"\0").hex())
        return content_of(images.select(index, images.labels[index]), self.files)


def content_of(images: Images, files: FileHashes) -> str:
    """Return the hash of one image, in hex."""
    return bytes(hashes_of(images, files)[0]).ljust(16, b"\0").hex()


def pooled(
    parts: Mapping[str, Images], classes: tuple[str, ...], facts: Mapping[str, Facts], files: FileHashes
) -> Pool:
    """Put the parts into one row."""
    sizes = [len(images) for images in parts.values()]
    starts = np.cumsum([0, *sizes])[:-1].tolist()
    problems = {
        start + index: problem
        for start, name in zip(starts, parts, strict=True)
        for index, problem in facts[name].problems.items()
    }
    return Pool(
        parts=parts,
        classes=classes,
        facts=np.concatenate([facts[name].rows for name in parts]),
        problems=problems,
        places=[place for name in parts for place in facts[name].places],
        part=np.repeat(np.arange(len(parts)), sizes),
        index=np.concatenate([np.arange(size) for size in sizes]),
        labels=np.concatenate([images.labels for images in parts.values()]),
        files=files,
    )
