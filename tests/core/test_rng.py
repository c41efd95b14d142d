"""Random streams: the same bits everywhere, for good."""

from __future__ import annotations

import numpy as np
import pytest

from tlx import rng

GOLDEN_WORDS = [[2417226772, 4122157431], [2811696674, 4184979729]]
GOLDEN_ORDER = [4, 0, 3, 7, 6, 2, 1, 5]
GOLDEN_UNIFORM = [0.2592271927074562, 0.7693604305463099]
GOLDEN_MASK = [131, 135, 137, 225]


def test_golden_values() -> None:
    # Frozen: if these change, no earlier run can be repeated.
    assert rng.words(0, "augment/hflip", 0, 2, 2).tolist() == GOLDEN_WORDS
    assert rng.permutation(0, 1, 8).tolist() == GOLDEN_ORDER
    assert rng.uniform(1, "init/fc.weight", (2,)).tolist() == GOLDEN_UNIFORM
    assert np.packbits(rng.keep_mask(0, 3, 0, 1, (4, 8), 0.5)).tolist() == GOLDEN_MASK


@pytest.mark.parametrize("per_sample", [1, 3, 16])
def test_a_sample_s_words_do_not_depend_on_how_many_there_are(per_sample: int) -> None:
    few, many = (rng.words(4, "x", 2, n, per_sample) for n in (5, 1000))
    assert np.array_equal(few, many[:5])


def test_streams_differ_by_seed_purpose_and_counter() -> None:
    streams = [rng.words(*key, 4, 4).tobytes() for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))]
    assert len(set(streams)) == 4


def test_a_permutation_holds_each_index_once() -> None:
    for n in (1, 2, 1000):
        assert np.array_equal(np.sort(rng.permutation(3, 0, n)), np.arange(n))
    assert not np.array_equal(rng.permutation(3, 0, 1000), rng.permutation(3, 1, 1000))


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_dropout_keeps_the_right_share(p: float) -> None:
    mask = rng.keep_mask(0, 5, 0, 0, (100, 1000), p)
    # Five standard deviations of 100,000 draws, and the 1/65536 to which p is rounded.
    assert abs(mask.mean() - (1 - p)) <= 5 * np.sqrt(p * (1 - p) / 1e5) + 1 / 65536
    assert p in (0.0, 1.0) or not np.array_equal(mask, rng.keep_mask(0, 6, 0, 0, (100, 1000), p))


def test_uniform_fills_the_unit_interval() -> None:
    values = rng.uniform(0, "u", (10_000,))
    assert 0 <= values.min() < 0.001 and 0.999 < values.max() < 1 and abs(values.mean() - 0.5) < 0.02


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 5), (rng.SLICE,), (rng.SLICE + 1, 3)])
def test_values_drawn_in_slices_are_those_of_the_formula(shape: tuple[int, ...]) -> None:
    expected = ((2 * rng.uniform(3, "w", shape) - 1) * 0.3).astype(np.float32)
    drawn = rng.within(3, "w", shape, 0.3)
    assert (drawn.shape, drawn.tobytes()) == (shape, expected.tobytes())


@pytest.mark.parametrize("row", [1, 7])
def test_the_parts_of_a_batch_have_the_mask_of_the_whole(row: int) -> None:
    whole = rng.keep_mask(0, 5, 0, 2, (9, 3, 5), 0.3)
    assert np.array_equal(rng.keep_mask(0, 5, row, 2, (9 - row, 3, 5), 0.3), whole[row:])
