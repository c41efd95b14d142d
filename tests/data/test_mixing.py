"""Labels that are smoothed, weighted and mixed; classes in balance; changes of pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from tlx import rng
from tlx.backend import Batch, Preprocess
from tlx.data import Augment, Loader, load_data
from tlx.data.mixing import SHARES, Targets, assign_slots, balanced_order, balanced_weights, beta, cutmix, mixup
from tlx.data.pixel_ops import CHANGES, PIXEL_OPS, color, rotate

LABELS = np.array([0, 2, 1, 2], dtype=np.int64)


def noise(n: int = 4, side: int = 10) -> Any:
    return np.random.default_rng(0).integers(0, 256, (n, 3, side, side + 2), dtype=np.uint8)


def test_smoothing_and_weights_by_their_formula() -> None:
    smooth = Targets(3, label_smoothing=0.3).apply(noise(), LABELS, 0, 0, 0)
    assert smooth is not None and smooth[1] == pytest.approx([0.1, 0.1, 0.8])
    weighted = Targets(3, class_weights=(2.0, 0.5, 1.0)).apply(noise(), LABELS, 0, 0, 0)
    assert weighted is not None and weighted.tolist() == [[2, 0, 0], [0, 0, 1], [0, 0.5, 0], [0, 0, 1]]
    both = Targets(3, label_smoothing=0.3, class_weights=(2.0, 0.5, 1.0)).apply(noise(), LABELS, 0, 0, 0)
    assert both is not None and both[0] == pytest.approx([2 * 0.8, 0.5 * 0.1, 0.1])
    assert Targets(3).apply(noise(), LABELS, 0, 0, 0) is None


def test_balanced_weights_have_a_mean_of_one_over_the_images() -> None:
    labels = np.repeat([0, 1, 2], [1, 5, 14])
    weights = np.array(balanced_weights(labels, 3))
    assert weights[labels].mean() == pytest.approx(1) and weights == pytest.approx(20 / 3 / np.array([1, 5, 14]))
    from sklearn.utils.class_weight import compute_class_weight

    assert weights == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=labels))


@given(st.integers(0, SHARES))
def test_mixup_blends_with_the_partner(own: int) -> None:
    before = noise(5)
    images = before.copy()
    share = mixup(images, own)
    expected = np.floor(share * before.astype(float) + (1 - share) * before[::-1] + 0.5)
    assert share == own / SHARES and np.array_equal(images, expected)


@given(st.integers(0, SHARES), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_cutmix_takes_a_box_and_counts_it_exactly(own: int, across: int, down: int) -> None:
    before = noise(4)
    images = before.copy()
    share = cutmix(images, own, across, down)
    foreign = (images == before[::-1]).all(axis=(0, 1)) & ~(before == before[::-1]).all(axis=(0, 1))
    rows, columns = np.flatnonzero(foreign.any(axis=1)), np.flatnonzero(foreign.any(axis=0))
    assert np.array_equal(images[..., ~foreign], before[..., ~foreign])
    assert foreign.sum() == len(rows) * len(columns) and share == pytest.approx(1 - foreign.mean())
    assert foreign.mean() <= 1 - own / SHARES + 1e-9


def test_shares_follow_the_beta_distribution() -> None:
    words = rng.stream(0, "test").bit_generator.random_raw(4000)
    for alpha, spread in ((0.2, 1 / 4 / 1.4), (1.0, 1 / 12)):  # the variance of Beta(a, a) is 1 / (4 (2 a + 1))
        shares = np.array([beta(alpha, int(word)) for word in words]) / SHARES
        assert shares.mean() == pytest.approx(0.5, abs=0.02) and shares.var() == pytest.approx(spread, rel=0.05)


def test_mixed_targets_say_how_much_of_each_image_is_there() -> None:
    for targets in (Targets(3, mixup=1.0), Targets(3, cutmix=1.0), Targets(3, mixup=0.4, cutmix=1.0)):
        for step in range(8):
            before = np.zeros((4, 3, 16, 16), np.uint8)
            before[:2] = 255
            target = targets.apply(before, LABELS, 3, 1, step)
            assert target is not None and target.sum(axis=1) == pytest.approx(1)
            share = target[0, 0]
            assert target[0] == pytest.approx([share, 0, 1 - share])  # labels 0 and 2 are partners
            assert before[0].mean() / 255 == pytest.approx(share, abs=0.003)
    kinds = set()
    for step in range(20):
        images = noise(4, 16)
        Targets(3, mixup=1.0, cutmix=1.0).apply(images, LABELS, 0, 0, step)
        kinds.add(bool((images == noise(4, 16)).mean() > 0.05))
    assert kinds == {True, False}


COUNTS = [2, 30, 9]


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_a_balanced_epoch_shows_each_class_equally_often(epoch: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], COUNTS))
    order = balanced_order(labels, 3, 7, epoch)
    seen = np.bincount(labels[order])
    assert len(order) == 41 and seen.max() - seen.min() <= 1
    for label, count in enumerate(COUNTS):
        times = np.bincount(order[labels[order] == label], minlength=41)[labels == label]
        assert times.max() - times.min() <= 1 and len(times) == count
    assert np.array_equal(order, balanced_order(labels, 3, 7, epoch))
    assert not np.array_equal(order, balanced_order(labels, 3, 7, epoch + 1))


def test_a_sample_that_comes_again_draws_anew() -> None:
    slots = assign_slots(np.array([3, 1, 3, 0, 1, 3]), 5)
    assert slots.tolist() == [3, 1, 5, 0, 6, 7]


def loader(images: Any, **fields: Any) -> Loader:
    return Loader(images, Preprocess(8), **{"batch_size": 7, "seed": 3, "shuffle": True, **fields})


OPTIONS: dict[str, dict[str, Any]] = {
    "rotate": {"augment": Augment.parse("rotate:30+hflip")},
    "color": {"augment": Augment.parse("color")},
    "randaugment": {"augment": Augment.parse("randaugment+vflip")},
    "strong": {"augment": Augment.parse("strong+color:20")},
    "balanced": {"balanced": True, "augment": Augment.parse("flips")},
    "mixed": {"targets": Targets(10, 0.1, tuple(range(1, 11)), mixup=0.4, cutmix=1.0), "balanced": True},
}


def same(a: Batch, b: Batch) -> bool:
    if not (a.key == b.key and np.array_equal(a.images, b.images) and np.array_equal(a.indices, b.indices)):
        return False
    return (a.targets is None) == (b.targets is None) and (a.targets is None or np.array_equal(a.targets, b.targets))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_gives_the_same_batches_for_any_workers_and_after_a_resume(option: str) -> None:
    images = load_data("digits", limit_train=40, val_fraction=0).train
    runs = [list(loader(images, workers=n, **OPTIONS[option]).epoch(2)) for n in (0, 3)]
    assert [len(batch) for batch in runs[0]] == [7, 7, 7, 7, 7, 5]
    assert all(same(a, b) for a, b in zip(*runs, strict=True))
    for start in (1, 5):
        resumed = list(loader(images, **OPTIONS[option]).epoch(2, start))
        assert all(same(a, b) for a, b in zip(runs[0][start:], resumed, strict=True))
    plain = np.concatenate([batch.images for batch in loader(images).epoch(2)])
    assert not np.array_equal(np.concatenate([batch.images for batch in runs[0]]), plain)
    other = list(loader(images, **OPTIONS[option]).epoch(3))
    assert not all(same(a, b) for a, b in zip(runs[0], other, strict=True))


PICTURE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8))


def test_rotation_and_colour_are_pillows_at_the_drawn_strength() -> None:
    low, high = np.array([0], np.uint32), np.array([2**32 - 1], np.uint32)
    assert rotate(PICTURE, low, 15) == PICTURE.rotate(-15, Image.Resampling.BILINEAR)
    assert rotate(PICTURE, high, 40) == PICTURE.rotate(40, Image.Resampling.BILINEAR)
    bright = ImageEnhance.Brightness(PICTURE).enhance(1.2)
    expected = ImageEnhance.Color(ImageEnhance.Contrast(bright).enhance(1.2)).enhance(1.2)
    assert color(PICTURE, np.full(3, 2**32 - 1, np.uint32), 20) == expected


@pytest.mark.parametrize("change", range(len(CHANGES)))
@pytest.mark.parametrize("level", [-1.0, -0.3, 0.3, 1.0])
def test_each_change_of_randaugment_keeps_the_kind_of_image(change: int, level: float) -> None:
    changed = CHANGES[change](PICTURE, level)
    assert (changed.size, changed.mode) == (PICTURE.size, "RGB")
    assert change == 0 or changed != PICTURE


@pytest.mark.parametrize("op", [op.name for op in PIXEL_OPS])
def test_strengths_are_written_and_read(op: str) -> None:
    assert str(Augment.parse(f"{op}:7+hflip")) == f"hflip+{op}:7"
    assert Augment.parse(str(Augment.parse(f"{op}:7"))) == Augment.parse(f"{op}:7") != Augment.parse(op)
    assert Augment.parse(op).variants is None
