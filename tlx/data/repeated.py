"""Photos that stand in two parts of a data set: a model that has seen them in training knows them by heart."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, combinations
from stat import S_ISREG

import numpy as np
from numpy.typing import NDArray

from tlx.data.images import ArrayImages, FileImages, Images

BLOCK = 4096  # bytes at the end of a file, where photos of one size already differ
THREADS = 8  # they wait for the disk
CHUNK = 64  # files that a thread takes at once
SHOWN = 3  # pairs in a note

Sample = tuple[str, int]  # part and index
Groups = list[list[Sample]]  # the same in each group, as far as is known


def repeated(parts: Mapping[str, Images]) -> list[str]:
    """Say how many images of one part are in another part too, pixel by pixel or byte by byte.

    Only photos that share their size with one of another part are read: the end of each, and where that is the same,
    the whole. Images of a sequence are not compared, because reading them all may take as long as an epoch.
    """
    groups = _same_files(parts) + _same_arrays(parts)
    notes = []
    for first, second in combinations([part for part in ("train", "val", "test") if part in parts], 2):
        pairs = []
        for group in groups:
            originals = [index for part, index in group if part == first]
            pairs += [(originals[0], index) for part, index in group if part == second and originals]
        if pairs:
            here, there = parts[first].names, parts[second].names
            shown = ", ".join(f"{there[copy]} = {here[original]}" for original, copy in sorted(pairs)[:SHOWN])
            notes.append(
                f"warning: {len(pairs):,} of {len(there):,} images of the {second} part are in the {first} part too"
                f" (copies or links), which flatters its accuracy: {shown}{', ...' if len(pairs) > SHOWN else ''}"
            )
    return notes


def _same_arrays(parts: Mapping[str, Images]) -> Groups:
    images = {part: images for part, images in parts.items() if isinstance(images, ArrayImages)}
    samples = [(part, index) for part, array in images.items() for index in range(len(array))]
    rows = {part: array.array[:, :, array.size[0] // 2] for part, array in images.items()}  # already differ, mostly
    groups = _split([samples], lambda sample: rows[sample[0]][sample[1]].tobytes(), map)
    return _split(groups, lambda sample: _pixels(images[sample[0]].array[sample[1]]), map)


def _pixels(image: NDArray[np.uint8]) -> Hashable:
    return image.shape, hash(image.tobytes())


def _same_files(parts: Mapping[str, Images]) -> Groups:
    images = {part: images for part, images in parts.items() if isinstance(images, FileImages)}
    paths = {part: [os.path.join(files.root, name) for name in files.names] for part, files in images.items()}
    samples = [(part, index) for part, files in paths.items() for index in range(len(files))]
    with ThreadPoolExecutor(THREADS) as pool:

        def read(key: Callable[[Sample], Hashable], samples: list[Sample]) -> Iterator[Hashable]:
            chunks = [samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK)]
            return chain.from_iterable(pool.map(lambda chunk: [key(sample) for sample in chunk], chunks))

        groups = _split([samples], lambda sample: _size(paths[sample[0]][sample[1]]), map)
        groups = _split(groups, lambda sample: _digest(paths[sample[0]][sample[1]], BLOCK), read)
        return _split(groups, lambda sample: _digest(paths[sample[0]][sample[1]]), read)


def _size(path: str) -> Hashable:
    """The size of a file; what is none, such as a pipe, equals nothing and is never opened."""
    try:
        status = os.stat(path)
    except OSError:
        return object()
    return status.st_size if S_ISREG(status.st_mode) else object()


def _digest(path: str, end: int | None = None) -> Hashable:
    """The hash of a file's content, or of its last bytes; a file that cannot be read equals nothing."""
    try:
        with open(path, "rb") as file:
            if end is not None:
                file.seek(max(0, os.fstat(file.fileno()).st_size - end))
            return hashlib.blake2b(file.read()).digest()
    except OSError:
        return object()


def _split(
    groups: Groups,
    key: Callable[[Sample], Hashable],
    run: Callable[[Callable[[Sample], Hashable], list[Sample]], Iterator[Hashable]],
) -> Groups:
    """Divide groups by a key, which `run` takes of all samples at once; of one part alone, a group is dropped."""
    groups = [group for group in groups if len({part for part, _ in group}) > 1]
    keys = run(key, [sample for group in groups for sample in group])
    result: Groups = []
    for group in groups:
        by_key: dict[Hashable, list[Sample]] = {}
        for sample in group:
            by_key.setdefault(next(keys), []).append(sample)
        result += by_key.values()
    return [group for group in result if len({part for part, _ in group}) > 1]
