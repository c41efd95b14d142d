"""Folders of photos: what is taken, in which order, how a photo is decoded, and what is refused."""

from __future__ import annotations

import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlx.data import load_data
from tlx.data.images import read_photo
from tlx.data.view import Resampling, View
from tlx.errors import DataError


def photo(
    path: Path, colour: Any = (200, 30, 30), mode: str = "RGB", size: tuple[int, int] = (12, 8), **save: Any
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **save)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shade, (part, name, i) in enumerate(product(("train", "val"), ("Ärger", "zebra", "犬"), range(4))):
        photo(tmp_path / part / name / f"{i}.png", (shade, 0, 0))
    return tmp_path


ROLES = "train/ is the training part; val/ is the test part, because there is no other"


def test_a_folder_is_read_in_the_order_of_names(folder: Path) -> None:
    data = load_data(folder, val_fraction=0)
    assert data.classes == ("zebra", "Ärger", "犬")
    assert list(data.train.names[:5]) == [*(f"train/zebra/{i}.png" for i in range(4)), "train/Ärger/0.png"]
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(data.test) == 12 and data.val is None


def test_val_chooses_the_best_epoch_where_there_is_a_test_part(folder: Path) -> None:
    for name in ("Ärger", "zebra", "犬"):
        photo(folder / "test" / name / "t.JPEG")
    data = load_data(folder)
    assert (len(data.train), len(data.val), len(data.test)) == (12, 12, 3)


def test_the_real_photos_and_their_stray_gif(test_data: Path) -> None:
    data = load_data(test_data / "hymenoptera_data", val_fraction=0.1)
    assert data.classes == ("ants", "bees")
    assert (len(data.train) + len(data.val), len(data.test)) == (244, 153)
    assert data.notes == (ROLES, "skipped 1 file that is not an image by name: train/ants/imageNotFound.gif")


def test_what_is_wrong_with_a_folder_is_said(folder: Path, tmp_path: Path) -> None:
    photo(folder / "val" / "cat" / "0.png")
    with pytest.raises(DataError, match=r"Only in train/: none. Only in val/: cat"):
        load_data(folder)
    (folder / "train" / "cat").mkdir()
    with pytest.raises(DataError, match=r"Only in val/: cat. Fix: give a class the same name, and photos, in all"):
        load_data(folder)
    for name, message in (
        ("empty", "has no train/ folder"),
        ("one", "1 class to tell apart"),
        ("bare", "no class folders"),
    ):
        (tmp_path / "x" / name).mkdir(parents=True)
        if name == "one":
            photo(tmp_path / "x" / name / "train" / "only" / "0.png")
        elif name == "bare":
            (tmp_path / "x" / name / "train").mkdir()
        with pytest.raises(DataError, match=message):
            load_data(tmp_path / "x" / name)


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


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [(1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)],
)
def test_exif_orientation_is_honoured(orientation: int, turned: Any, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "p.png", exif=exif)
    assert np.array_equal(np.asarray(read_photo(tmp_path / "p.png")), turned(pixels))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_large_jpeg_is_decoded_at_a_fraction_and_looks_the_same(orientation: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC)
    large.save(tmp_path / "p.jpg", exif=exif, quality=90)
    view = View(lambda width, height: (0.1 * width, 0.2 * height, 0.9 * width, 0.8 * height), 64)
    whole = read_photo(tmp_path / "p.jpg")
    expected = np.asarray(Resampling().resize(whole, view.box(*whole.size), 64, 64)).astype(int)
    decoded = np.asarray(read_photo(tmp_path / "p.jpg", view)).astype(int)
    apart = np.abs(decoded - expected)
    assert 0 < apart.mean() < 0.5 and apart.max() <= 8  # equal numbers would mean that all of it was decoded
    near = View(view.box, 400)  # 720 pixels become 400: not enough to leave half of them out
    assert np.array_equal(
        np.asarray(read_photo(tmp_path / "p.jpg", near)),
        np.asarray(Resampling().resize(whole, view.box(*whole.size), 400, 400)),
    )


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_file_that_is_no_photo_is_named(damage: str, tmp_path: Path) -> None:
    path = photo(tmp_path / "p.jpg", size=(300, 300))
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "text": b"hello", "empty": b""}[damage])
    with pytest.raises(DataError, match=r"p\.jpg cannot be decoded as an image") as error:
        read_photo(path)
    assert "\n" not in str(error.value)


def test_valid_is_another_name_of_val_but_not_beside_it(folder: Path) -> None:
    (folder / "val").rename(folder / "valid")
    assert len(load_data(folder, val_fraction=0).test) == 12
    photo(folder / "val" / "zebra" / "0.png")
    with pytest.raises(DataError, match="both val/ and valid/"):
        load_data(folder)


def test_hidden_files_and_others_are_counted_and_nested_photos_taken(folder: Path) -> None:
    for name in (".DS_Store", ".cache/x.png", "notes.txt", "deep/er/n.PNG"):
        path = folder / "train" / "zebra" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8)).save(path, format="PNG")
    (folder / "train" / "README").touch()
    data = load_data(folder, val_fraction=0)
    zebras = [name for name in data.train.names if name.startswith("train/zebra/")]
    assert zebras == [*(f"train/zebra/{i}.png" for i in range(4)), "train/zebra/deep/er/n.PNG"]
    assert data.notes == (
        ROLES,
        "skipped 2 files that are not images by name: train/README, train/zebra/notes.txt",
        "passed over what is hidden, or left behind by other programs (2): train/zebra/.DS_Store, train/zebra/.cache/",
    )


def test_classes_and_limits_choose_among_photos(folder: Path) -> None:
    data = load_data(folder, classes=("犬", "zebra"), limit_train=4, val_fraction=0)
    assert data.classes == ("犬", "zebra") and len(data.test) == 8
    assert [name.split("/")[1] for name in data.train.names] == ["zebra", "zebra", "犬", "犬"]
    assert data.train.labels.tolist() == [1, 1, 0, 0]
    with pytest.raises(DataError, match=r"no class 'zebr'\. Did you mean 'zebra'"):
        load_data(folder, classes=("zebr", "犬"))


def test_a_folder_is_found_below_root_and_recognised_by_its_files(folder: Path) -> None:
    whole = load_data(folder, val_fraction=0)
    assert load_data(folder.name, root=folder.parent, val_fraction=0).fingerprint == whole.fingerprint
    photo(folder / "train" / "zebra" / "0.png", size=(90, 70))
    assert load_data(folder, val_fraction=0).fingerprint != whole.fingerprint


def test_transparent_palettes_are_converted_without_a_warning(tmp_path: Path) -> None:
    clear = Image.new("P", (12, 8), 1)
    clear.putpalette([0, 0, 0, 10, 20, 30])
    clear.save(tmp_path / "p.png", transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns where such a palette is converted in one step
        assert np.asarray(read_photo(tmp_path / "p.png")).reshape(-1, 3).tolist() == [[10, 20, 30]] * 96


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    corner = np.zeros((16, 24, 3), np.uint8)
    corner[:8, :12] = 255  # top left, as a viewer shows it
    stored = Image.fromarray(corner)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that the reader must take back
    if orientation in undo:
        stored = stored.transpose(list(Image.Transpose)[undo[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(read_photo(tmp_path / "x.png")), corner)


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert np.asarray(read_photo(tmp_path / "x.webp"))[0, 0].tolist() == [255, 0, 0]
