"""Distances between arrays, the sketches that stand for large ones, and what is derived from the float32 distances."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tlx.proof.measure import bundle, distances, relative, sketch, unbundle
from tlx.proof.result import Distances


@pytest.mark.parametrize("size", [1, 1024, 1025, 5000, 300_000])
def test_a_sketch_keeps_distances(size: int) -> None:
    drawn = np.random.default_rng(size)
    a, noise = drawn.normal(size=size), drawn.normal(size=size)
    for scale in (1e-12, 1e-3, 1.0):
        estimate, exact = relative(sketch(a), sketch(a + scale * noise)), relative(a, a + scale * noise)
        assert estimate == pytest.approx(exact, rel=0.2)
    one = a.copy()
    one[size // 2] += 1e-6
    moved = np.linalg.norm(sketch(a) - sketch(one))
    assert moved == pytest.approx(1e-6, rel=1e-3)


def test_what_cannot_be_compared_is_infinitely_far_apart() -> None:
    a = np.array([1.0, np.nan, 2.0])
    assert relative(a, a) == 0
    assert relative(a, np.array([1.0, 1.0, 2.0])) == np.inf
    assert relative(np.zeros(0), np.zeros(0)) == np.inf
    assert relative(None, a) == relative(a, a[:2]) == np.inf


def test_infinities_of_a_mask_hide_nothing() -> None:
    mask, weight = np.triu(np.full((300, 300), -np.inf), 1), np.ones((2, 3))
    assert relative(mask, mask) == relative(sketch(mask), sketch(mask)) == 0 == relative(mask[0, 1:], mask[0, 1:])
    assert relative(mask, -mask) == relative(mask, mask.T) == np.inf
    assert not np.isnan(sketch(np.full(1500, -np.inf))).any()  # of which two may meet with different signs
    both = np.where(np.eye(300), np.inf, mask)
    assert not np.isnan(sketch(both)).any() and np.isnan(sketch(np.where(np.eye(300), np.nan, mask))).any()
    pair = [dict([("mask", (mask.shape, sketch(mask))), ("weight", (weight.shape, w))]) for w in (weight, weight + 1)]
    assert distances(*pair) == {"mask": 0, "weight": 1}


def test_arrays_whose_numbers_were_not_kept_are_infinitely_far_apart() -> None:
    layout, numbers = bundle({"weight": np.ones((2, 3)), "bias": np.ones(2)})
    whole, empty = unbundle(layout, numbers), unbundle(layout, None)
    assert distances(whole, whole) == {"weight": 0, "bias": 0}
    assert set(distances(whole, empty).values()) == set(distances(empty, empty).values()) == {math.inf}


def float32(d32: float, d64: float, nudged: float = 0.0, rounded: float = 0.0) -> Distances:
    return Distances(d32, d64, nudged, rounded, 0, 5, 10.0)


def test_the_float32_distance_is_held_to_the_larger_scatter_of_the_reference() -> None:
    assert float32(1e-6, 1e-15, nudged=2e-7, rounded=1e-8).over_scatter == pytest.approx(5)
    assert float32(1e-6, 1e-15, nudged=1e-8, rounded=2e-7).inside
    assert not float32(1e-6, 1e-15, nudged=1e-8, rounded=1e-9).inside
    assert float32(1e-6, 1e-15).over_scatter == 1 and not float32(1e-6, 1e-15).inside
    assert float32(0, 0).over_scatter == 0 and float32(0, 0).inside


def test_the_ratio_takes_a_unit_of_rounding_where_float64_is_equal() -> None:
    assert float32(1e-6, 1e-15).ratio == pytest.approx(1e9)
    assert float32(1e-6, 0).ratio == pytest.approx(1e-6 * 2.0**53)
    assert float32(0, 0).ratio == math.inf
