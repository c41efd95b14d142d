"""Images that look alike, by their hashes and by their features."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from tlx.audit import near
from tlx.audit.near import ALIKE, RADIUS, distances, feature_pairs, groups_of, near_pairs


def test_near_pairs_are_those_that_comparing_all_with_all_finds() -> None:
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 2**63, 400).astype(np.uint64)
    for i in range(0, 200, 2):  # each with a neighbour of 0 to 9 other bits
        bits = draw.choice(64, i % 10, replace=False)
        hashes[i + 1] = hashes[i] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    thumbs = np.repeat(draw.integers(0, 256, (200, 192)), 2, axis=0).astype(np.uint8)
    thumbs[41] = 255 - thumbs[40]  # as near by its hash, and quite another image
    expected = [
        (a, b)
        for a, b in combinations(range(400), 2)
        if bin(int(hashes[a] ^ hashes[b])).count("1") <= RADIUS
        and np.corrcoef(thumbs[a].astype(float), thumbs[b].astype(float))[0, 1] >= ALIKE
    ]
    assert [tuple(pair) for pair in near_pairs(hashes, thumbs).tolist()] == expected and len(expected) > 50
    assert distances(hashes[:1], ~hashes[:1]).tolist() == [64]
    assert [group.tolist() for group in groups_of(np.array([[0, 2], [2, 3]]), 5)] == [[0, 2, 3]]


def test_pairs_by_features_stand_out_from_all_else_and_from_a_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(300, 128))
    rows[10:60:2] = rows[11:60:2] + 0.3 * draw.normal(size=(25, 128))  # pairs
    rows[100:120] = rows[100] + 0.3 * draw.normal(size=(20, 128))  # a crowd, in which nothing stands out
    rows[200:203] = rows[200] + 0.3 * draw.normal(size=(3, 128))
    expected = [[i, i + 1] for i in range(10, 60, 2)] + [[200, 201], [200, 202], [201, 202]]
    features = (rows * draw.uniform(0.1, 9, 128) + 5).astype(np.float32)
    assert feature_pairs(features).tolist() == expected
    monkeypatch.setattr(near, "VALUES", 900)
    assert feature_pairs(features).tolist() == expected
    assert len(feature_pairs(features[:, :3])) == 0  # where any two images have a large cosine
    assert len(feature_pairs(features[:5])) == 0
