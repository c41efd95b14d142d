"""Photos that stand in two parts of a data set: a model that has seen them in training knows them by heart."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping
from heapq import nsmallest
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.data.file_hashes import HASH, FileHashes, Hashes, as_hashes, hash_of, in_threads
from tlx.data.images import ArrayImages, FileImages, Images
from tlx.errors import DataError

BLOCK = 4096  # bytes at the end of a file, where photos of one size already differ
SHOWN = 3  # pairs in a note

Sample = tuple[str, int]  # part and index
Groups = list[list[Sample]]  # the same in each group, as far as is known


def repeated(parts: Mapping[str, Images], files: FileHashes) -> list[str]:
    """Say how many images of one part are in another part too, pixel by pixel or byte by byte.

    Only photos that share their size with one of another part are read: the end of each, and where that is the same,
    the whole, unless `files` knows it. Images of a sequence are not compared, because reading them all may take as
    long as an epoch.
    """
    groups = _same_files(parts, files) + _same_arrays(parts)
    notes = []
    for first, second in combinations([part for part in ("train", "val", "test") if part in parts], 2):
        pairs = []
        for group in groups:
            originals = [index for part, index in group if part == first]
            pairs += [(originals[0], index) for part, index in group if part == second and originals]
        if pairs:
            here, there = parts[first].names, parts[second].names
            shown = ", ".join(f"{there[copy]} = {here[original]}" for original, copy in nsmallest(SHOWN, pairs))
            notes.append(
                f"warning: {len(pairs):,} of {len(there):,} images of the {second} part are in the {first} part too"
                f" (copies or links), which flatters its accuracy: {shown}{', ...' if len(pairs) > SHOWN else ''}"
            )
    return notes


def _same_arrays(parts: Mapping[str, Images]) -> Groups:
    images = {part: images for part, images in parts.items() if isinstance(images, ArrayImages)}
    samples = [(part, index) for part, array in images.items() for index in range(len(array))]
    rows = {part: array.array[:, :, array.size[0] // 2] for part, array in images.items()}  # already differ, mostly
    groups = _split([samples], lambda sample: rows[sample[0]][sample[1]].tobytes())
    return _split(groups, lambda sample: _pixels(images[sample[0]].array[sample[1]]))


def _pixels(image: NDArray[np.uint8]) -> Hashable:
    return image.shape, hash(image.tobytes())


def _same_files(parts: Mapping[str, Images], files: FileHashes) -> Groups:
    photos = {part: images for part, images in parts.items() if isinstance(images, FileImages)}
    if len(photos) < 2:
        for images in photos.values():
            images.sizes()  # so that a photo which is not there is named here
        return []
    part = np.repeat(np.arange(len(photos)), [len(images) for images in photos.values()])
    index = np.concatenate([np.arange(len(images)) for images in photos.values()])
    chosen = np.ones(len(part), dtype=np.bool_)
    keys = np.zeros(len(part), HASH)

    def each(hashes: Callable[[FileImages, list[int]], Hashes]) -> None:
        """Narrow the choice to those whose hash one of another part has too."""
        nonlocal chosen
        for i, images in enumerate(photos.values()):
            where = np.flatnonzero(chosen & (part == i))
            keys[where] = hashes(images, index[where].tolist())
        chosen = _shared(keys, part, chosen)

    known = [files.known(images.root, images.spans(range(len(images)))) for images in photos.values()]
    if all(hashes is not None for hashes in known):
        keys = np.concatenate([hashes for hashes in known if hashes is not None])
        chosen = _shared(keys, part, keys != hash_of())
    else:
        sizes = np.concatenate([images.sizes() for images in photos.values()])
        chosen = _shared(sizes, part, sizes > 0)
        each(_ends)
        each(lambda images, some: files.of(images.root, images.spans(some)))
    groups: dict[bytes, list[Sample]] = {}
    names = list(photos)
    for i in np.flatnonzero(chosen).tolist():
        groups.setdefault(keys[i], []).append((names[part[i]], int(index[i])))
    return list(groups.values())


def _shared(keys: NDArray[Any], part: NDArray[np.int64], chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the chosen samples have a key that one of another part has too, bool [N]."""
    where = np.flatnonzero(chosen)
    _, group = np.unique(keys[where], return_inverse=True)
    pairs = np.unique(np.stack([group, part[where]]), axis=1)
    result = np.zeros_like(chosen)
    result[where] = np.bincount(pairs[0], minlength=1)[group] > 1 if len(where) else False
    return result


def _ends(images: FileImages, indices: list[int]) -> Hashes:
    """The hashes of the last bytes of some photos; of one that cannot be read, something that equals nothing."""

    def end(index: int) -> bytes:
        try:
            return hash_of(images.content(index, BLOCK))
        except (OSError, DataError):
            return os.urandom(16)

    return as_hashes(list(in_threads(end, indices)))


def _split(groups: Groups, key: Callable[[Sample], Hashable]) -> Groups:
    """Divide groups by a key; of one part alone, a group is dropped."""
    result: Groups = []
    for group in groups:
        by_key: dict[Hashable, list[Sample]] = {}
        if len({part for part, _ in group}) > 1:
            for sample in group:
                by_key.setdefault(key(sample), []).append(sample)
        result += by_key.values()
    return [group for group in result if len({part for part, _ in group}) > 1]
