"""How an image becomes the network's input: aspect, interpolation and antialias, on photos and on arrays."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlx.backend import Batch, Preprocess
from tlx.backend.preprocess import enlarging
from tlx.data import ArrayImages, Augment, FileImages, Loader
from tlx.data.geometry import planes
from tlx.data.images import read_photo
from tlx.data.view import Resampling

SIZE = 24
MEAN = (0.2, 0.5, 0.9)
FILL = (51, 128, 230)  # 255 times the mean, to the nearest even whole number
SIDES = [(60, 90), (90, 31), (40, 40), (10, 7), (300, 200)]
KINDS = [
    {"aspect": aspect, "antialias": antialias, "interpolation": interpolation}
    for aspect, antialias, interpolation in product(
        ("crop", "squash", "letterbox"), (True, False), ("bilinear", "bicubic")
    )
]


def noise(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> FileImages:
    """Photos of many sizes, smooth enough for a JPEG."""
    folder = tmp_path_factory.mktemp("photos")
    for number, (width, height) in enumerate(SIDES):
        image = Image.fromarray(noise(5, 5, 3)).resize((width, height), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.{'jpg' if number == 4 else 'png'}")
    names = sorted(path.name for path in folder.iterdir())
    return FileImages(folder, np.arange(len(names)) % 2, names)


def loader(images: Any, size: int = SIZE, interpolation: Any = "bilinear", **fields: Any) -> Loader:
    preprocess = Preprocess(size, MEAN, (0.3, 0.2, 0.1), interpolation)
    return Loader(images, preprocess, **{"batch_size": 2, "workers": 0, **fields})


def first(loader: Loader) -> Batch:
    return next(loader.epoch(0))


def pixels(images: Any, **fields: Any) -> Any:
    return np.concatenate([batch.images for batch in loader(images, **fields).epoch(0)])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_photo_is_squashed_or_fitted_into_margins_of_the_mean_colour(photos: FileImages, interpolation: Any) -> None:
    """What Pillow makes of the whole photo; margins are as nothing once they are normalised."""
    kind = Image.Resampling[interpolation.upper()]
    squashed = pixels(photos, aspect="squash", interpolation=interpolation)
    fitted = pixels(photos, aspect="letterbox", interpolation=interpolation)
    entering = Preprocess(SIZE, MEAN, (0.3, 0.2, 0.1), interpolation).apply(fitted, np.float64)
    for number, (width, height) in enumerate(SIDES):
        whole = photos.open(number)
        across, down = (round(SIZE * side / max(width, height)) for side in (width, height))
        left, top = (SIZE - across) // 2, (SIZE - down) // 2
        inside = np.zeros((SIZE, SIZE), bool)
        inside[top : top + down, left : left + across] = True
        small = planes(whole.resize((across, down), kind)).reshape(3, -1)
        if number != 4:  # a large JPEG is decoded at a fraction of its size
            assert np.array_equal(squashed[number], planes(whole.resize((SIZE, SIZE), kind)))
            assert np.array_equal(fitted[number][:, inside], small)
        assert (fitted[number][:, ~inside] == np.array(FILL)[:, None]).all()
        assert np.abs(entering[number][:, ~inside]).max(initial=0) <= 0.5 / 255 / 0.1 + 1e-12


def test_a_fraction_of_both_sides_is_kept_where_nothing_is_cropped(photos: FileImages) -> None:
    """Four fifths of 60 x 90 pixels are 48 x 72: 6 and 9 are left out on each side."""
    whole = photos.open(0)
    for aspect, sides in (("squash", (24, 24)), ("letterbox", (16, 24))):
        expected = planes(whole.resize(sides, Image.Resampling.BILINEAR, box=(6, 9, 54, 81)))
        inner = pixels(photos, aspect=aspect, crop_fraction=0.8)[0][:, :, (24 - sides[0]) // 2 :][:, :, : sides[0]]
        assert np.array_equal(inner, expected)


@pytest.mark.parametrize("fields", KINDS)
def test_pixels_do_not_depend_on_workers(photos: FileImages, fields: dict[str, Any]) -> None:
    wide = ArrayImages(noise(5, 3, 30, 60), np.arange(5) % 2, list("abcde"))
    for images, augment in product((photos, wide), ("none", "crop+hflip", "rotate")):
        fields = {**fields, "augment": Augment.parse(augment), "shuffle": True}
        runs = [pixels(images, workers=workers, **fields) for workers in (0, 1, 4)]
        assert np.array_equal(runs[0], runs[1]) and np.array_equal(runs[0], runs[2])
        assert runs[0].shape == (5, 3, SIZE, SIZE)


def test_each_choice_changes_the_pixels_of_photos(photos: FileImages) -> None:
    found = {pixels(photos, **fields).tobytes() for fields in KINDS}
    assert len(found) == len(KINDS)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_random_crop_fills_the_image_whatever_the_aspect(photos: FileImages, interpolation: Any) -> None:
    crops = [
        pixels(photos, aspect=aspect, interpolation=interpolation, augment=Augment.parse("crop"))
        for aspect in ("crop", "squash", "letterbox")
    ]
    assert np.array_equal(crops[0], crops[1]) and np.array_equal(crops[0], crops[2])


@pytest.mark.parametrize("aspect", ["crop", "squash", "letterbox"])
def test_without_antialias_a_jpeg_is_decoded_whole(photos: FileImages, aspect: Any, tmp_path: Path) -> None:
    """Decoding at a fraction averages, which is antialiasing."""
    photos.open(4).resize((1200, 800)).save(tmp_path / "large.jpg", quality=90)
    points, smooth = (loader(photos, aspect=aspect, antialias=antialias).framing.view() for antialias in (False, True))
    whole = read_photo(tmp_path / "large.jpg")
    assert np.array_equal(np.asarray(read_photo(tmp_path / "large.jpg", points)), np.asarray(points.of(whole)))
    apart = np.asarray(read_photo(tmp_path / "large.jpg", smooth)).astype(int) - np.asarray(smooth.of(whole))
    assert 0 < np.abs(apart).mean() < 0.5  # equal numbers would mean that all of it was decoded


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_what_only_becomes_larger_needs_no_antialias(interpolation: Any) -> None:
    """By the matrices that enlarge on the device, which a box of all pixels must give."""
    small = noise(7, 9, 3)
    image = Resampling(interpolation, antialias=False).resize(Image.fromarray(small), (0, 0, 9, 7), 20, 21)
    rows, columns = enlarging(7, 21, interpolation), enlarging(9, 20, interpolation)
    expected = rows @ small.transpose(2, 0, 1) @ columns.T
    assert np.abs(planes(image) - np.clip(expected, 0, 255)).max() <= 0.5 + 1e-9


def test_arrays_of_one_size_are_taken_whole_unless_the_aspect_says_otherwise() -> None:
    wide = ArrayImages(noise(4, 3, 10, 16), np.zeros(4, np.int64), list("abcd"))
    assert np.array_equal(first(loader(wide)).images, wide.array[:2])
    assert np.array_equal(first(loader(wide, aspect="squash")).images, wide.array[:2])
    assert np.array_equal(first(loader(wide, aspect="crop")).images, wide.array[:2, :, :, 3:13])
    assert np.array_equal(first(loader(wide, aspect="crop", crop_fraction=0.5)).images, wide.array[:2, :, 2:7, 5:10])
    assert np.array_equal(first(loader(wide, aspect="squash", crop_fraction=0.5)).images, wide.array[:2, :, 2:7, 4:12])
    padded = first(loader(wide, aspect="letterbox")).images
    assert padded.shape == (2, 3, 16, 16) and np.array_equal(padded[:, :, 3:13], wide.array[:2])
    assert (padded[:, :, [0, 1, 2, 13, 14, 15]] == np.array(FILL).reshape(3, 1, 1)).all()


@pytest.mark.parametrize("fields", KINDS)
def test_arrays_that_are_shrunk_are_treated_as_photos_are(fields: dict[str, Any]) -> None:
    wide = ArrayImages(noise(2, 3, 40, 60), np.zeros(2, np.int64), list("ab"))
    loaded = loader(wide, **fields)
    for number, shrunk in enumerate(first(loaded).images):
        box = (10, 0, 50, 40) if fields["aspect"] == "crop" else (0, 0, 60, 40)
        image = wide.open(number).crop(box)
        width, height = (SIZE, 16) if fields["aspect"] == "letterbox" else (SIZE, SIZE)
        small = loaded.framing.resampling.resize(image, (0, 0, *image.size), width, height)
        assert np.array_equal(shrunk[:, 4:20] if height == 16 else shrunk, planes(small))


def test_bicubic_enlarging_keeps_what_is_even_and_overshoots_a_step() -> None:
    matrix = enlarging(8, 32, "bicubic")
    assert np.allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-15)
    step = matrix @ np.repeat([0.0, 1.0], 4)
    assert step.min() < -0.05 and step.max() > 1.05 and np.allclose(step, 1 - step[::-1], rtol=0, atol=1e-15)
