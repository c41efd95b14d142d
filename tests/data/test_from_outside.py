"""Augmentation ops and kinds of data source that another package adds, without a change to tlx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors.numpy import load_file

import tlx
from support.run_files import change
from tlx.data import KINDS, OPS, ArrayImages, Augment, FileImages, Kind, Op, Source, augment
from tlx.data.geometry import crop
from tlx.data.sources import registry
from tlx.errors import DataError, RecipeError

FIELDS: dict[str, Any] = {
    **{"backend": "loopback", "model": "tiny-mlp-dropout", "weights": "none", "image_size": 8, "lr": 0.05},
    **{"epochs": 3, "batch_size": 16, "val_fraction": 0, "quiet": True},
}
DIGITS: dict[str, Any] = {**FIELDS, "data": "digits", "limit_train": 60, "limit_test": 40}


@pytest.fixture(autouse=True)
def tables_as_before() -> Iterator[None]:
    ops, kinds = dict(OPS), dict(KINDS)
    yield
    for table, before in ((OPS, ops), (KINDS, kinds)):
        table.clear()
        table.update(before)  # type: ignore[arg-type]


def turn(images: NDArray[np.uint8], words: NDArray[np.uint32], strength: int) -> None:
    """Turn by a multiple of 90 degrees."""
    for image, (quarters,) in zip(images, words, strict=True):
        image[...] = np.rot90(image, quarters, axes=(1, 2))


def invert(image: Image.Image, words: NDArray[np.uint32], strength: int) -> Image.Image:
    return ImageOps.invert(image) if int(words[0]) * 100 >> 32 < strength else image


def corner(words: NDArray[np.uint32], width: int, height: int, strength: int) -> tuple[int, int, int, int]:
    return (width // 2 * (int(words[0]) & 1), height // 2 * (int(words[0]) >> 1), width // 2, height // 2)


TURN = Op(name="turn", help="turned by a multiple of 90 degrees", variants=4, move=turn)
INVERT = Op(name="invert", help="a percentage of the images inverted", strength=50, strongest=100, paint=invert)
CORNER = Op(name="corner", help="one of the four quarters", variants=4, crop=corner)


def weights(name: str, folder: Path, **fields: Any) -> dict[str, bytes]:
    result = tlx.run(**{**DIGITS, "augment": name, **fields}, out=str(folder))
    assert result.epochs_run == 3
    return {name: array.tobytes() for name, array in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize(("op", "text"), [(TURN, "hflip+turn"), (INVERT, "flips+invert:30"), (CORNER, "corner+vflip")])
def test_an_op_from_outside_is_trained_with(op: Op, text: str, tmp_path: Path) -> None:
    without = weights("none", tmp_path / "without")
    with pytest.raises(RecipeError, match=f"unknown op '{op.name}'"):
        Augment.parse(text)
    augment.register(op)
    assert op.name in augment.describe_ops()
    first, second = (weights(text, tmp_path / name) for name in ("first", "second"))
    assert first == second != without


@pytest.mark.parametrize(("op", "text", "variants"), [(TURN, "hflip+turn", 8), (CORNER, "corner+flips", 16)])
def test_variants_of_an_op_from_outside_are_counted_and_cached(
    op: Op, text: str, variants: int, tmp_path: Path
) -> None:
    augment.register(op)
    assert Augment.parse(text).variants == variants
    numbers = Augment.parse(text).draw(0, 0, 500).variants()
    assert sorted(set(numbers.tolist())) == list(range(variants))
    cached, computed = (
        weights(text, tmp_path / cache, strategy="feature_extract", epochs=3, feature_cache=cache)
        for cache in ("run", "off")
    )
    assert cached == computed


def test_each_sample_gets_the_outcome_that_its_number_says() -> None:
    augment.register(TURN)
    draws = Augment.parse("turn").draw(3, 1, 40)
    before = np.random.default_rng(0).integers(0, 256, (40, 3, 5, 5), dtype=np.uint8)
    images = before.copy()
    draws.move(images)
    for image, original, quarters in zip(images, before, draws.variants(), strict=True):
        assert np.array_equal(image, np.rot90(original, quarters, axes=(1, 2)))


def test_a_strength_is_read_and_bounded() -> None:
    augment.register(INVERT)
    assert str(Augment.parse("invert:30")) == "invert:30"
    with pytest.raises(RecipeError, match=r"strength of invert must be a whole number in 1 \.\. 100"):
        Augment.parse("invert:101")


def test_names_are_not_taken_twice_and_only_one_op_crops() -> None:
    augment.register(CORNER)
    for name in ("corner", "hflip", "photo"):
        with pytest.raises(RecipeError, match=f"'{name}' is registered already"):
            augment.register(Op(name=name, help="", variants=2, move=turn))
    with pytest.raises(RecipeError, match="corner and crop each choose the crop"):
        Augment.parse("corner+crop")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "two words"}, "lower-case letters"),
        ({}, "exactly one of crop, paint and move"),
        ({"move": turn, "crop": crop}, "exactly one of crop, paint and move"),
        ({"move": turn, "words": 0}, "at least one word"),
        ({"move": turn, "words": 2, "variants": 4}, "one alone where variants are counted"),
        ({"paint": invert, "strength": 5, "strongest": 3}, r"must lie in 1 \.\. strongest, 3"),
    ],
)
def test_an_op_that_contradicts_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Op(**{"name": "x", "help": "", **fields})


def striped(count: int) -> ArrayImages:
    """Images of two classes: stripes across, or down."""
    labels = np.arange(count) % 2
    lines = np.zeros((count, 3, 8, 8), np.uint8)
    lines[labels == 0, :, ::2] = 255
    lines[labels == 1, :, :, ::2] = 255
    return ArrayImages(lines, labels, [f"stripes/{i}" for i in range(count)])


def read_stripes(source: Any, root: Path | None) -> Source:
    return Source("stripes", ("across", "down"), {"train": striped(64), "test": striped(32)})


def test_a_published_data_set_from_outside_is_trained_on_and_predicted(tmp_path: Path) -> None:
    registry.register(Kind(name="stripes", help="stripes", read=read_stripes))
    assert "stripes" in registry.describe_sources()
    result = tlx.run(**FIELDS, data="stripes", augment="none", out=str(tmp_path / "run"))
    assert result.test_accuracy == 1
    pixels = striped(6).array.transpose(0, 2, 3, 1)
    predictions = tlx.predict(tmp_path / "run", pixels)
    assert [prediction["class"] for prediction in predictions] == ["across", "down"] * 3
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["images"] == "fixed"
    as_photos = {**card["pixels"], "aspect": "crop", "enlarged_on": "host"}
    changed = json.dumps({**card, "pixels": as_photos, "crop_fraction": 0.875})
    change(tmp_path / "run", "card.json", lambda _: changed)
    assert tlx.predict(tmp_path / "run", pixels) != predictions  # as photos they are cropped
    with pytest.raises(DataError, match="Did you mean 'stripes'"):
        tlx.load_data("stripe")
    with pytest.raises(DataError, match="'stripes' is registered already"):
        registry.register(Kind(name="stripes", help="", read=read_stripes))


def read_list(file: Path, root: Path | None) -> Source:
    """One line per photo: its path, whose first letter is its class."""
    names = file.read_text().split()
    labels = np.array(["ab".index(name[0]) for name in names], np.int64)
    return Source(file.stem, ("a", "b"), {"all": FileImages(file.parent, labels, names)})


@pytest.mark.parametrize("size", [(8, 8), (20, 12)])
def test_a_file_of_a_kind_from_outside_is_read_and_its_photos_are_cropped_as_in_evaluation(
    size: tuple[int, int], tmp_path: Path
) -> None:
    """Its spelling says nothing of photos; the run's card does."""
    rng = np.random.default_rng(0)
    for i in range(40):
        grain = rng.integers(0, 100, (size[1], size[0], 3), dtype=np.uint8)
        grain[size[1] // 3 : -size[1] // 3, size[0] // 3 : -size[0] // 3] += np.uint8(155 * (i % 2))
        Image.fromarray(grain).save(tmp_path / f"{'ab'[i % 2]}{i}.png")
    (tmp_path / "photos.list").write_text("\n".join(path.name for path in sorted(tmp_path.glob("*.png"))))
    with pytest.raises(DataError, match=r"is a file, but neither \.csv nor \.npz"):
        tlx.load_data(tmp_path / "photos.list")
    registry.register(Kind(name="list", help="a .list of photos", read=read_list, suffix=".list"))
    data = tlx.load_data(tmp_path / "photos.list", val_fraction=0)
    assert data.name == "photos" and data.of_photos and data.test is not None
    result = tlx.run(**FIELDS, data=str(tmp_path / "photos.list"), test_fraction=0.4, out=str(tmp_path / "run"))
    test = tlx.load_data(tmp_path / "photos.list", val_fraction=0, test_fraction=0.4).test
    assert test is not None
    predictions = tlx.predict(tmp_path / "run", [tmp_path / name for name in test.names])
    right = [prediction["class"] == Path(prediction["path"]).name[0] for prediction in predictions]
    assert sum(right) / len(right) == result.test_accuracy


def test_a_kind_from_outside_may_take_some_folders(tmp_path: Path) -> None:
    (tmp_path / "special").mkdir()
    (tmp_path / "special" / "stripes.txt").touch()

    def special(candidate: Any) -> bool:
        return isinstance(candidate, Path) and (candidate / "stripes.txt").is_file()

    registry.register(Kind(name="special", help="a folder with stripes.txt", read=read_stripes, recognises=special))
    assert tlx.load_data(tmp_path / "special").name == "stripes"
    assert tlx.load_data("special", root=tmp_path).name == "stripes"
    (tmp_path / "plain").mkdir()
    with pytest.raises(DataError, match="has no train/ folder"):
        tlx.load_data(tmp_path / "plain")
