"""Images that are there more than once: by link, byte for byte, pixel for pixel, or nearly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tlx.audit.facts import HASHED, PLAIN
from tlx.audit.near import feature_pairs, groups_of, mirror_pairs, near_pairs
from tlx.audit.pool import Pool
from tlx.audit.result import Decision, Row

LEAST = 24  # pixels of the shorter side, below which almost everything looks alike


def exact_groups(pool: Pool) -> list[NDArray[np.int64]]:
    """Return the groups of places whose decoded pixels are the same."""
    places = np.flatnonzero(pool.readable)
    _, number = np.unique(pool.facts["pixels"][places], return_inverse=True)
    order = np.argsort(number, kind="stable")
    groups = np.split(places[order], np.flatnonzero(np.diff(number[order])) + 1) if len(places) else []
    return sorted((group for group in groups if len(group) > 1), key=lambda group: int(group[0]))


def pairs_by_hash(pool: Pool, exact: Sequence[NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    """Return the pairs of places that look alike, [P, 2], by how they do; one image stands for those that are the same.

    Args:
        pool: the images.
        exact: the groups of those that are the same.
    """
    facts = pool.facts
    places = np.flatnonzero(_compared(pool, exact) & (facts["flags"] & HASHED > 0))
    hashes, mirrored, thumbs = (facts[name][places] for name in ("phash", "mirrored", "thumb"))
    return {
        "look alike": places[near_pairs(hashes, thumbs)],
        "look alike, mirrored": places[mirror_pairs(hashes, mirrored, thumbs)],
    }


def pairs_by_features(
    pool: Pool, exact: Sequence[NDArray[np.int64]], places: NDArray[np.int64], features: NDArray[np.float32]
) -> dict[str, NDArray[np.int64]]:
    """Return the pairs of places that a model takes for nearly the same, likewise; `places` are those of `features`."""
    chosen = _compared(pool, exact)[places]
    return {"nearly the same to the model": places[chosen][feature_pairs(features[chosen])]}


def _compared(pool: Pool, exact: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
    """Which images may look like others, bool [N]."""
    facts = pool.facts
    chosen: NDArray[np.bool_] = pool.readable & (facts["flags"] & PLAIN == 0)
    chosen &= np.minimum(facts["width"], facts["height"]) >= LEAST
    for group in exact:
        chosen[group[1:]] = False
    return chosen


def near_groups(pool: Pool, pairs: Mapping[str, NDArray[np.int64]]) -> dict[str, list[NDArray[np.int64]]]:
    """Join pairs to groups of places, by how the images of a group are alike: the first way that makes it."""
    done, groups = np.zeros((0, 2), np.int64), dict[str, list[NDArray[np.int64]]]()
    for how, more in pairs.items():
        done = np.concatenate([done, more])
        joined = {group.tobytes(): group for group in groups_of(done, len(pool))}
        groups = {
            earlier: [group for group in known if joined.pop(group.tobytes(), None) is not None]
            for earlier, known in groups.items()
        }
        groups[how] = list(joined.values())
    return groups


def rows_of_exact(pool: Pool, groups: Sequence[NDArray[np.int64]]) -> list[Row]:
    """Say of each group whether it is a leak, has two labels, or only repeats itself, and what may go."""
    rows = []
    for number, group in enumerate(groups):
        parts, labels = pool.part[group], pool.labels[group]
        kinds = [kind for kind, there in (("two_labels", labels), ("leak", parts)) if len(np.unique(there)) > 1]
        alike = "two_labels" not in kinds
        decisions: list[Decision] = _decisions(pool, group) if alike else ["keep"] * len(group)
        how = _how(pool, group)
        for kind in kinds or ["duplicate"]:
            rows += [
                pool.row(kind, place, decision, group=number, detail=how)
                for place, decision in zip(group.tolist(), decisions, strict=True)
            ]
    return rows


def _decisions(pool: Pool, group: NDArray[np.int64]) -> list[Decision]:
    """Keep the copy that is held out furthest, so that a test part stays what it was; of several the first."""
    stays = max(group.tolist(), key=lambda place: (pool.rank(place), -place))
    return ["keep" if place == stays else "drop" for place in group.tolist()]


def _how(pool: Pool, group: NDArray[np.int64]) -> str:
    stored = [pool.places[place] for place in group.tolist()]
    if None not in stored and len(set(stored)) == 1:
        return "links to one file"
    contents = np.unique(pool.facts["content"][group])
    return "the same bytes" if len(contents) == 1 and contents[0] != b"" else "the same pixels"


def rows_of_near(pool: Pool, groups: Mapping[str, Sequence[NDArray[np.int64]]], first: int) -> list[Row]:
    """Say of each group of images that look alike what that means; what becomes of them is for a person to decide."""
    rows = []
    ways = sorted(((group, how) for how, some in groups.items() for group in some), key=lambda way: int(way[0][0]))
    for number, (group, how) in enumerate(ways, first):
        parts, labels = len(np.unique(pool.part[group])), len(np.unique(pool.labels[group]))
        kind = "near_leak" if parts > 1 else "near_two_labels" if labels > 1 else "near_duplicate"
        rows += [pool.row(kind, place, group=number, detail=how) for place in group.tolist()]
    return rows
