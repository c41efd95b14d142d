"""Batches do not depend on workers, resume or anything but the seed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlx import rng
from tlx.backend import Batch, Preprocess
from tlx.data import Augment, FileImages, Loader, load_data
from tlx.data.geometry import crop_box
from tlx.errors import DataError, RecipeError

BITS = ("images", "labels", "indices")


def same(a: Batch, b: Batch) -> bool:
    return a.key == b.key and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in BITS)


@pytest.fixture
def photos(test_data: Path) -> Any:
    return load_data(test_data / "hymenoptera_data", limit_train=11, limit_test=4, val_fraction=0).train


def make(images: Any, size: int = 48, **fields: Any) -> Loader:
    return Loader(images, Preprocess(size), **{"batch_size": 4, "seed": 7, "shuffle": True, **fields})


@pytest.fixture(params=["photos", "arrays"])
def images(request: pytest.FixtureRequest) -> Any:
    if request.param == "photos":
        return request.getfixturevalue("photos")
    return load_data("digits", limit_train=11, val_fraction=0).train


@pytest.mark.parametrize("augment", ["none", "photo", "crop+hflip+vflip"])
def test_batches_are_the_same_for_any_number_of_workers_and_after_a_resume(images: Any, augment: str) -> None:
    side = 48 if images.size is None or Augment.parse(augment).crops else 8
    runs = [list(make(images, augment=Augment.parse(augment), workers=n).epoch(2)) for n in (0, 1, 4)]
    resumed = list(make(images, augment=Augment.parse(augment)).epoch(2, start=1))
    assert [len(batch) for batch in runs[0]] == [4, 4, 3]
    for batch in runs[0]:
        assert batch.images.shape == (len(batch), 3, side, side) and batch.images.dtype == np.uint8
        assert batch.images.flags.c_contiguous and batch.labels.dtype == np.int64
        assert np.array_equal(batch.labels, images.labels[batch.indices])
    for other in runs[1:]:
        assert all(same(a, b) for a, b in zip(runs[0], other, strict=True))
    assert all(same(a, b) for a, b in zip(runs[0][1:], resumed, strict=True))


def test_an_epoch_visits_each_sample_once_in_an_order_of_its_own() -> None:
    images = load_data("digits", limit_train=50, val_fraction=0).train
    loader = make(images, size=8)
    orders = [np.concatenate([batch.indices for batch in loader.epoch(e)]) for e in (0, 1)]
    assert all(np.array_equal(np.sort(order), np.arange(50)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(
        np.concatenate([b.indices for b in make(images, size=8, shuffle=False).epoch(0)]), np.arange(50)
    )
    assert [batch.key for batch in loader.epoch(1)] == [(7, 13 + i, 0) for i in range(13)]


def test_flips_follow_the_words_of_each_sample() -> None:
    images = load_data("digits", limit_train=30, val_fraction=0).train
    batches = list(make(images, size=8, augment=Augment.parse("hflip")).epoch(3))
    flipped = rng.words(7, "augment/hflip", 3, 30, 1)[:, 0] >= 2**31
    assert 5 < flipped.sum() < 25
    for batch in batches:
        for pixels, index in zip(batch.images, batch.indices, strict=True):
            original = images.pixels(index).transpose(2, 0, 1)
            assert np.array_equal(pixels, original[..., ::-1] if flipped[index] else original)


def test_crops_are_those_that_the_words_describe(photos: Any) -> None:
    words = rng.words(7, "augment/crop", 1, 11, 16)
    for batch in make(photos, augment=Augment.parse("crop")).epoch(1):
        for pixels, index in zip(batch.images, batch.indices, strict=True):
            image = photos.open(int(index))
            left, top, w, h = crop_box(words[index], image.width, image.height)
            box = (left, top, left + w, top + h)
            expected = np.asarray(image.resize((48, 48), Image.Resampling.BILINEAR, box=box))
            assert np.abs(pixels - expected.transpose(2, 0, 1).astype(int)).mean() < 3  # decoded at a fraction


def test_augmentation_leaves_the_stored_images_as_they_are() -> None:
    images: Any = load_data("digits", limit_train=12, val_fraction=0).train
    before = images.array.copy()
    loader = make(images, size=8, augment=Augment.parse("flips"))
    first, again = list(loader.epoch(0)), list(loader.epoch(0))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert np.array_equal(images.array, before)


def test_small_images_keep_their_size_and_large_ones_are_shrunk_with_antialiasing() -> None:
    images = load_data("digits", limit_train=20, val_fraction=0).train
    assert next(make(images, size=32).epoch(0)).images.shape == (4, 3, 8, 8)
    batch = next(make(images, size=4).epoch(0))
    expected = Image.fromarray(images.pixels(int(batch.indices[0]))).resize((4, 4), Image.Resampling.BILINEAR)
    assert np.array_equal(batch.images[0], np.asarray(expected).transpose(2, 0, 1))


def test_evaluation_keeps_the_centre_as_torchvision_does(photos: Any) -> None:
    batch = next(make(photos, size=56, shuffle=False).epoch(0))
    image = photos.open(0)
    short = 64  # 56 / 0.875
    w, h = (
        (short, short * image.height // image.width)
        if image.width < image.height
        else (
            short * image.width // image.height,
            short,
        )
    )
    left, top = round((w - 56) / 2), round((h - 56) / 2)
    two_steps = image.resize((w, h), Image.Resampling.BILINEAR).crop((left, top, left + 56, top + 56))
    difference = np.abs(batch.images[0].astype(int) - np.asarray(two_steps).transpose(2, 0, 1))
    assert difference.mean() < 1.0


def test_closing_an_epoch_early_stops_its_threads(photos: Any) -> None:
    epoch = make(photos, workers=3).epoch(0)
    next(epoch)
    assert any(thread.name.startswith("tlx-decode") for thread in threading.enumerate())
    epoch.close()
    assert not any(thread.name.startswith("tlx-decode") for thread in threading.enumerate())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_photo_is_named_and_stops_the_threads(workers: int, tmp_path: Path) -> None:
    for i in range(9):
        Image.new("RGB", (60, 40)).save(tmp_path / f"{i}.png")
    (tmp_path / "6.png").write_bytes(b"no photo")
    images = FileImages(tmp_path, np.zeros(9, np.int64), [f"{i}.png" for i in range(9)])
    epoch = make(images, shuffle=False, workers=workers).epoch(0)
    assert next(epoch).indices.tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"6\.png cannot be decoded"):
        next(epoch)
    assert not any(thread.name.startswith("tlx-decode") for thread in threading.enumerate())


def test_photos_before_the_start_of_a_resumed_epoch_are_not_decoded(tmp_path: Path) -> None:
    for i in range(4, 9):
        Image.new("RGB", (60, 40)).save(tmp_path / f"{i}.png")
    images = FileImages(tmp_path, np.zeros(9, np.int64), [f"{i}.png" for i in range(9)])
    batches = list(make(images, shuffle=False).epoch(0, start=1))
    assert [batch.indices.tolist() for batch in batches] == [[4, 5, 6, 7], [8]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"batch_size": 0}, "batch_size"), ({"workers": -1}, "workers"), ({"crop_fraction": 1.1}, "crop_fraction")],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=f"{message} must be"):
        make(load_data("digits", limit_train=10, val_fraction=0).train, **fields)


def test_large_arrays_are_shrunk_from_their_centre() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 20, 30, 3), dtype=np.uint8)
    images = load_data({"train": (pixels, np.array([0, 1, 0, 1]))}, val_fraction=0).train
    batch = next(make(images, size=8, shuffle=False, crop_fraction=0.5).epoch(0))
    centre = Image.fromarray(pixels[3]).crop((10, 5, 20, 15)).resize((8, 8), Image.Resampling.BILINEAR)
    assert np.array_equal(batch.images[3], np.asarray(centre).transpose(2, 0, 1))


def test_no_more_than_two_batches_are_decoded_ahead() -> None:
    too_far = threading.Event()

    class Watched:
        labels, names, size = np.zeros(40, np.int64), [str(i) for i in range(40)], None

        def __len__(self) -> int:
            return 40

        def open(self, index: int, view: Any = None) -> Image.Image:
            if index >= 12:
                too_far.set()
            return Image.new("RGB", (view.size, view.size))

    epoch = make(Watched(), shuffle=False).epoch(0)
    assert next(epoch).indices.tolist() == [0, 1, 2, 3]
    assert not too_far.wait(0.3)  # a slow machine can only make this pass
    next(epoch)
    assert too_far.wait(60)
    epoch.close()
