"""Augmentation as integers: crops inside the image, flips that undo themselves, names that are checked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlx.data import Augment
from tlx.data.geometry import centre_box, crop_box
from tlx.errors import RecipeError


@given(st.lists(st.integers(0, 2**32 - 1), min_size=16, max_size=16), st.integers(1, 500), st.integers(1, 500))
def test_a_random_crop_lies_inside_the_image(words: list[int], width: int, height: int) -> None:
    left, top, w, h = box = crop_box(np.array(words, np.uint32), width, height)
    assert all(type(n) is int for n in box)
    assert left >= 0 and top >= 0 and w >= 1 and h >= 1 and left + w <= width and top + h <= height


def test_random_crops_cover_the_areas_aspects_and_corners_of_inception() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, (4000, 16), dtype=np.uint32)
    left, top, w, h = np.array([crop_box(row, 400, 300) for row in words]).T
    area, aspect = w * h / 120_000, w / h
    assert 0.07 < area.min() < 0.1 and 0.9 < area.max() <= 1
    assert 0.74 < aspect.min() < 0.76 and 1.31 < aspect.max() < 1.35
    assert left.min() == top.min() == 0 and (left + w).max() == 400 and (top + h).max() == 300
    assert abs(((aspect > 1).mean()) - 0.5) < 0.1


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000)])
def test_where_no_attempt_fits_the_central_crop_is_taken(width: int, height: int) -> None:
    left, top, w, h = crop_box(np.full(16, 2**32 - 1, np.uint32), width, height)
    assert (w, h) == ((13, 10) if width > height else (10, 13))
    assert (left, top) == ((width - w) // 2, (height - h) // 2)


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 300), st.floats(0.5, 1))
def test_the_central_box_lies_inside_the_image(width: int, height: int, size: int, fraction: float) -> None:
    left, top, right, bottom = centre_box(width, height, size, fraction)
    assert -1e-9 <= left < right <= width + 1e-9 and -1e-9 <= top < bottom <= height + 1e-9


@given(st.integers(0, 2**31), st.integers(0, 1000), st.sampled_from(["hflip", "vflip", "flips"]))
def test_flipping_twice_gives_the_images_back(seed: int, epoch: int, text: str) -> None:
    images = np.arange(6 * 3 * 2 * 4, dtype=np.uint8).reshape(6, 3, 2, 4)
    draws, twice = Augment.parse(text).draw(seed, epoch, 6), images.copy()
    draws.move(twice)
    flipped = {op.name: words[:, 0] for op, _, words in draws.ops}
    for i in range(6):
        across, down = (name in flipped and flipped[name][i] for name in ("hflip", "vflip"))
        assert np.array_equal(twice[i], images[i][:, :: -1 if down else 1, :: -1 if across else 1])
    draws.move(twice)
    assert np.array_equal(twice, images)


def test_an_op_draws_the_same_beside_others() -> None:
    alone, together = (
        {op.name: words for op, _, words in Augment.parse(text).draw(5, 2, 50).ops}
        for text in ("vflip", "crop+hflip+vflip")
    )
    assert np.array_equal(alone["vflip"], together["vflip"])
    assert not np.array_equal(together["hflip"], together["vflip"])


def test_augmentations_are_named_and_counted() -> None:
    names_and_counts = {
        text: (str(Augment.parse(text)), Augment.parse(text).variants) for text in ("none", "flips", "photo", "vflip")
    }
    assert names_and_counts == {
        "none": ("none", 1),
        "flips": ("hflip+vflip", 4),
        "photo": ("crop+hflip", None),
        "vflip": ("vflip", 2),
    }
    assert Augment.parse("vflip+hflip") == Augment.parse("flips")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flip", "unknown op 'flip'. Did you mean 'vflip' or 'hflip' or 'flips'"),
        ("hflip+hflip", "'hflip' is given twice"),
        ("hflip+", "unknown op ''"),
        ("", "unknown op ''"),
        ("photo+hflip", "'hflip' is given twice"),
        ("rotate:0", "strength of rotate must be a whole number in 1 .. 180"),
        ("color:loud", "strength of color must be a whole number in 1 .. 100"),
        ("hflip:3", "hflip takes no strength. Fix: write 'hflip'"),
        ("randaug", "Did you mean 'randaugment'"),
    ],
)
def test_an_unknown_augmentation_is_named(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Augment.parse(text)
