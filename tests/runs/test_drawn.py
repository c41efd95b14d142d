"""Images in a grid, with their labels or with what a run takes them for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import tlx
from tlx.errors import DataError, TlxError

FIELDS: dict[str, Any] = {
    "backend": "loopback",
    "model": "tiny-mlp",
    "weights": "none",
    "image_size": 8,
    "epochs": 1,
    "val_fraction": 0,
}


def photos(root: Path) -> Path:
    """Twelve photos of two classes, which are black and white."""
    for name, level in (("black", 0), ("white", 255)):
        (root / "train" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (16, 16), (level, level, level)).save(root / "train" / name / f"{i}.png")
    return root


def pixels(picture: Path) -> NDArray[np.uint8]:
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))


def colours(picture: Path) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in pixels(picture).reshape(-1, 3).tolist()}


def test_a_grid_holds_as_many_images_as_asked_for_and_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos")
    files = [
        tlx.draw(data, tmp_path / f"{i}.png", count=count, seed=seed)
        for i, (count, seed) in enumerate([(8, 0), (8, 0), (8, 1), (4, 0)])
    ]
    first, again, other, fewer = (file.read_bytes() for file in files)
    assert first == again != other and pixels(files[3]).size < pixels(files[0]).size
    assert fewer and {(0, 0, 0), (255, 255, 255)} <= colours(files[0])


def test_with_a_run_mistakes_have_a_frame_of_their_own(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos")
    run = tlx.run(**FIELDS, data=str(data), out=str(tmp_path / "run"), batch_size=4, lr=0.5, quiet=True)
    right, wrong = (0, 114, 178), (213, 94, 0)
    told = {p["class"] for p in tlx.predict(run.run_dir, data, quiet=True)}
    drawn = colours(tlx.draw(data, tmp_path / "all.png", run=run.run_dir, count=12))
    assert told == {"black", "white"} and right in drawn and wrong not in drawn
    swapped = tmp_path / "swapped" / "train"
    swapped.mkdir(parents=True)
    (data / "train" / "black").rename(swapped / "white")
    (data / "train" / "white").rename(swapped / "black")
    drawn = colours(tlx.draw(swapped.parent, tmp_path / "swapped.png", run=run.run_dir, count=12))
    assert wrong in drawn and right not in drawn


def test_a_mistake_is_one_line_that_names_what_there_is(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos")
    with pytest.raises(
        DataError, match=r"no image of part 'tain': the data has the parts train\. Did you mean 'train'"
    ):
        tlx.draw(data, tmp_path / "a.png", part="tain")
    with pytest.raises(TlxError, match="count is 0; expected 1 to 144"):
        tlx.draw(data, tmp_path / "a.png", count=0)
    with pytest.raises(TlxError, match=r"\.png"):
        tlx.draw(data, tmp_path / "a.jpg")
    assert not list(tmp_path.glob("a.*"))
