"""Folders of photos, arrays, subsets: what is taken, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tlx.data import Augment, load
from tlx.data.images import read_photo
from tlx.data.transforms import crop_box
from tlx.errors import DataError, TlxError


def photo(
    path: Path, colour: Any = (200, 30, 30), mode: str = "RGB", size: tuple[int, int] = (12, 8), **save: Any
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **save)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        for name in ("Ärger", "zebra", "犬"):
            for i in range(4):
                photo(tmp_path / part / name / f"{i}.png")
    return tmp_path


def test_a_folder_is_read_in_the_order_of_names(folder: Path) -> None:
    data = load(folder, val_fraction=0)
    assert data.classes == ("zebra", "Ärger", "犬")
    assert list(data.train.names[:5]) == [*(f"train/zebra/{i}.png" for i in range(4)), "train/Ärger/0.png"]
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(data.test) == 12 and data.val is None


def test_val_chooses_the_best_epoch_where_there_is_a_test_part(folder: Path) -> None:
    for name in ("Ärger", "zebra", "犬"):
        photo(folder / "test" / name / "t.JPEG")
    data = load(folder)
    assert (len(data.train), len(data.val), len(data.test)) == (12, 12, 3)


def test_the_real_photos_and_their_stray_gif(test_data: Path) -> None:
    data = load(test_data / "hymenoptera_data", val_fraction=0.1)
    assert data.classes == ("ants", "bees")
    assert (len(data.train) + len(data.val), len(data.test)) == (244, 153)
    assert data.notes == ("skipped 1 file that is not an image by name: train/ants/imageNotFound.gif",)


def test_what_is_wrong_with_a_folder_is_said(folder: Path, tmp_path: Path) -> None:
    photo(folder / "val" / "cat" / "0.png")
    with pytest.raises(DataError, match=r"Only in train/: none. Only in val/: cat"):
        load(folder)
    (folder / "train" / "cat").mkdir()
    with pytest.raises(DataError, match=r"train/cat holds no photo"):
        load(folder)
    for name, said in (
        ("empty", "has no train/ folder"),
        ("one", "1 class to tell apart"),
        ("bare", "no class folders"),
    ):
        (tmp_path / "x" / name).mkdir(parents=True)
        if name == "one":
            photo(tmp_path / "x" / name / "train" / "only" / "0.png")
        elif name == "bare":
            (tmp_path / "x" / name / "train").mkdir()
        with pytest.raises(DataError, match=said):
            load(tmp_path / "x" / name)
    with pytest.raises(DataError, match=r"'digts' is neither .* Did you mean 'digits'"):
        load("digts")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("p.tif" if mode == "CMYK" else "p.png")
    if mode == "I;16":
        Image.fromarray(np.full((8, 12), 128 << 8, np.uint16)).save(path)
    elif mode == "P":
        Image.new("RGB", (12, 8), (128, 128, 128)).quantize().save(path)
    else:
        photo(path, (128, 128, 128), mode)
    pixels = np.asarray(read_photo(path))
    assert pixels.shape == (8, 12, 3) and pixels.dtype == np.uint8
    if mode != "1":
        assert np.abs(pixels.astype(int) - 128).max() <= 2


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert read_photo(photo(tmp_path / "p.jpg", exif=exif)).size == (8, 12)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_file_that_is_no_photo_is_named(damage: str, tmp_path: Path) -> None:
    path = photo(tmp_path / "p.jpg", size=(300, 300))
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "text": b"hello", "empty": b""}[damage])
    with pytest.raises(DataError, match=r"p\.jpg cannot be decoded as an image") as error:
        read_photo(path)
    assert "\n" not in str(error.value)


def test_classes_are_renumbered_in_the_order_given() -> None:
    whole, part = load("digits", val_fraction=0), load("digits", classes=("7", "3"), val_fraction=0)
    assert part.classes == ("7", "3")
    kept = np.flatnonzero(np.isin(whole.train.labels, [3, 7]))
    assert part.train.labels.tolist() == [int(label == 3) for label in whole.train.labels[kept]]
    assert all(np.array_equal(part.train.pixels(i), whole.train.pixels(int(k))) for i, k in enumerate(kept[:20]))
    with pytest.raises(DataError, match="no class 'x'"):
        load("digits", classes=("7", "x"))


def test_limits_and_the_validation_split_are_stratified_and_repeatable() -> None:
    data = [load("digits", limit_train=200, val_fraction=0.2, seed=seed) for seed in (0, 0, 1)]
    assert (len(data[0].train), len(data[0].val)) == (160, 40)
    assert set(np.bincount(data[0].val.labels)) <= {3, 4, 5}
    assert not set(data[0].train.names) & set(data[0].val.names)
    assert data[0].fingerprint == data[1].fingerprint != data[2].fingerprint
    chosen = [{*d.train.names, *d.val.names} for d in data]
    assert chosen[0] == chosen[2]  # the limit does not depend on the seed, only the split does
    with pytest.raises(DataError, match="limit_train=3 leaves a class without an image"):
        load("digits", limit_train=3)


IMAGES = np.zeros((6, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ((IMAGES, np.array([0, 1, 0, 1, 0, -1])), "label -1"),
        ((IMAGES, np.array([0.0, 1, 0, 1, 0, 1])), "labels must be integers"),
        ((IMAGES, np.array([0, 1])), "6"),
        ((IMAGES.astype(np.float32), np.array([0, 1] * 3)), "uint8"),
        ((IMAGES, np.array([[0, 1]] * 6)), "in one dimension"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(part: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load({"train": part}, val_fraction=0)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=16, max_size=16), st.integers(1, 500), st.integers(1, 500))
def test_a_random_crop_lies_inside_the_image(words: list[int], width: int, height: int) -> None:
    left, top, w, h = box = crop_box(np.array(words, np.uint32), width, height)
    assert all(type(n) is int for n in box)
    assert left >= 0 and top >= 0 and w >= 1 and h >= 1 and left + w <= width and top + h <= height


def test_augmentations_are_named_and_counted() -> None:
    found = {
        text: (str(Augment.parse(text)), Augment.parse(text).finite) for text in ("none", "flips", "photo", "vflip")
    }
    assert found == {
        "none": ("none", 1),
        "flips": ("hflip+vflip", 4),
        "photo": ("crop+hflip", None),
        "vflip": ("vflip", 2),
    }
    for text in ("flip", "hflip+hflip", "hflip+", ""):
        with pytest.raises(TlxError, match="augment="):
            Augment.parse(text)
