"""Pairs of images that look alike: by perceptual hashes, and by the features of a model.

Hashes find them without comparing every image with every other.

The hash is `phash` of imagehash (64 bits; the signs of an image's lowest frequencies: Zauner 2010, "Implementation and
benchmarking of perceptual image hash functions", section 3.2.1). Two images are a pair where at most `RADIUS` bits
differ and their thumbnails of 8 x 8 pixels are alike. Hashes within that radius are found by multi-index hashing
(Norouzi, Punjani and Fleet 2012, "Fast search in Hamming space with multi-index hashing"): cut into `RADIUS` + 1
pieces, two of them must share a piece, so that only hashes with an equal piece are compared. The hash of the mirrored
image finds mirrored copies.

Features find crops, turned and recoloured copies. Each feature is centred and scaled to its deviation, and two images
are a pair where the cosine of theirs is `SIMILAR` or more, and where they are by far nearer to each other than to what
else is like them: `CLOSER` as far as the `CROWD`-th nearest image. Without that, all birds in a blue sky are pairs. The
cosines of any two images deviate by 0.13 with ResNet-18; where they deviate by more, as in few dimensions, the cosine
must be `DEVIATIONS` as large. The numbers were chosen on the training part of the ants and bees and on images 10,000 to
13,000 of CIFAR-10; benchmarks/planted_copies.py measures on others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

RADIUS = 6  # bits of 64
ALIKE = 0.98  # correlation of two thumbnails
SIMILAR, DEVIATIONS, CLOSER, CROWD = 0.7, 5.0, 0.6, 5  # see the module
VALUES = 2**25  # cosines that are computed at once
BLOCK = 2048  # hashes compared with as many at once
PIECES = RADIUS + 1

Indices = NDArray[np.int64]


def near_pairs(hashes: NDArray[np.uint64], thumbs: NDArray[np.uint8]) -> Indices:
    """Return the pairs of images that look alike, int64 [P, 2].

    Of images with equal hashes, each is compared with the first of them alone; a group needs no more.

    Args:
        hashes: uint64 [N].
        thumbs: the images in a few pixels, uint8 [N, values].
    """
    order = np.argsort(hashes, kind="stable")
    unique, first, number = np.unique(hashes, return_index=True, return_inverse=True)
    same = np.stack([first[number[order]], order], axis=1)
    same = same[same[:, 0] != same[:, 1]]
    pairs = [same, *(first[pair] for pair in _within_radius(unique))]
    found = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0) if len(hashes) else np.zeros((0, 2), np.int64)
    return found[_alike(thumbs, found)]


def _within_radius(unique: NDArray[np.uint64]) -> Iterator[Indices]:
    """Yield pairs of places of different hashes that differ in at most `RADIUS` bits; some come twice."""
    edges = np.linspace(0, 64, PIECES + 1).astype(np.int64).tolist()
    for low, high in itertools.pairwise(edges):
        piece = (unique >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(piece, kind="stable")
        ends = np.flatnonzero(np.diff(piece[order])) + 1
        for bucket in np.split(order, ends):
            for start in range(0, len(bucket) if len(bucket) > 1 else 0, BLOCK):
                rows = bucket[start : start + BLOCK]
                for other in range(start, len(bucket), BLOCK):
                    columns = bucket[other : other + BLOCK]
                    a, b = np.nonzero(distances(unique[rows][:, None], unique[columns][None]) <= RADIUS)
                    keep = rows[a] < columns[b] if start == other else np.ones(len(a), np.bool_)
                    if keep.any():
                        yield np.stack([rows[a[keep]], columns[b[keep]]], axis=1)


def distances(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return in how many bits hashes differ (Warren, Hacker's Delight, section 5-1)."""
    x = a ^ b
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)


def _alike(thumbs: NDArray[np.uint8], pairs: Indices) -> NDArray[np.bool_]:
    """Whether the thumbnails of pairs correlate, bool [P]."""
    result = np.zeros(len(pairs), np.bool_)
    for start in range(0, len(pairs), BLOCK):
        x, y = (thumbs[column].astype(np.float64) for column in pairs[start : start + BLOCK].T)
        x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
        scale = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
        result[start : start + BLOCK] = (x * y).sum(axis=1) >= ALIKE * np.maximum(scale, 1e-9)
    return result


def mirror_pairs(hashes: NDArray[np.uint64], mirrored: NDArray[np.uint64], thumbs: NDArray[np.uint8]) -> Indices:
    """Return the pairs of images of which one looks like the other mirrored, int64 [P, 2].

    Args:
        hashes: uint64 [N].
        mirrored: those of the mirrored images, uint64 [N].
        thumbs: the images in 8 x 8 pixels, RGB, uint8 [N, 192].
    """
    flipped = thumbs.reshape(-1, 8, 8, 3)[:, :, ::-1].reshape(-1, 192)
    both = near_pairs(np.concatenate([hashes, mirrored]), np.concatenate([thumbs, flipped]))
    crossed = both[(both < len(hashes)).sum(axis=1) == 1] % max(1, len(hashes))
    pairs: Indices = np.unique(np.sort(crossed[crossed[:, 0] != crossed[:, 1]], axis=1), axis=0)
    return pairs


def feature_pairs(features: NDArray[np.float32]) -> Indices:
    """Return the pairs of images that a model takes for nearly the same, int64 [P, 2]; see the module.

    Args:
        features: float32 [N, features].
    """
    count = len(features)
    if count <= CROWD:  # there is no crowd to stand out from
        return np.zeros((0, 2), np.int64)
    rows = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    rows = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)).astype(np.float32)
    squares = float(np.square(rows.T @ rows, dtype=np.float64).sum()) - count  # of the cosines of all pairs
    deviation = (max(squares, 0.0) / (count * (count - 1))) ** 0.5
    similar = max(SIMILAR, DEVIATIONS * deviation)
    crowd, found, step = np.full(count, -1.0, np.float32), [np.zeros((0, 2), np.int64)], max(1, VALUES // count)
    for start in range(0, count, step):
        cosines = rows[start : start + step] @ rows.T
        np.fill_diagonal(cosines[:, start:], -1.0)
        near = np.flatnonzero((cosines >= similar).any(axis=1))
        close = cosines[near]
        crowd[start + near] = np.partition(close, -CROWD, axis=1)[:, -CROWD]
        least = np.maximum(similar, 1 - CLOSER * (1 - crowd[start + near]))
        a, b = np.nonzero(close >= least[:, None])
        found.append(np.stack([start + near[a], b], axis=1))
    # Each must be by far the nearer to the other: such a pair was found from both sides.
    pairs, times = np.unique(np.sort(np.concatenate(found), axis=1), axis=0, return_counts=True)
    mutual: Indices = pairs[times == 2]
    return mutual


def groups_of(pairs: Indices, count: int) -> list[Indices]:
    """Join pairs to groups of places, each ascending, the first by its first place; places alone are left out."""
    from scipy.sparse import coo_array  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    graph = coo_array((np.ones(len(pairs), np.bool_), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, number = connected_components(graph, directed=False)
    order = np.argsort(number, kind="stable")
    joined = np.split(order, np.flatnonzero(np.diff(number[order])) + 1) if count else []
    return sorted((group for group in joined if len(group) > 1), key=lambda group: int(group[0]))
