"""Classifying with a finished run: the same pixels as its evaluation, and one clear line for every mistake."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tlx
from support.finished_runs import CLASSES, FIELDS, accuracy
from tlx.data.images import ArrayImages
from tlx.errors import TlxError


def test_the_files_of_the_test_part_give_the_recorded_accuracy(of_photos: tlx.Result, photos: Path) -> None:
    found = tlx.predict(of_photos.run_dir, photos / "test")
    assert [entry["path"] for entry in found] == [str(path) for path in sorted((photos / "test").rglob("*.png"))]
    rightly = accuracy(found, [Path(entry["path"]).parent.name for entry in found])
    assert rightly == of_photos.test_accuracy and 0.2 < rightly < 1
    arrays = [np.asarray(Image.open(entry["path"])) for entry in found]
    again = tlx.predict(of_photos.run_dir, arrays)
    assert [entry["top"] for entry in again] == [entry["top"] for entry in found]
    assert again[3]["path"] == "array 3"


def test_images_of_one_size_are_not_cropped(
    of_arrays: tlx.Result, digits: dict[str, ArrayImages], tmp_path: Path
) -> None:
    test = digits["test"]
    found = tlx.predict(of_arrays.run_dir, test.array.transpose(0, 2, 3, 1))
    assert accuracy(found, test.labels) == of_arrays.test_accuracy
    grey = tlx.predict(of_arrays.run_dir, test.array[:, 0])
    assert grey == found
    files = [tmp_path / f"{i}.png" for i in range(20)]
    for i, file in enumerate(files):
        test.open(i).save(file)
    mixed = tlx.predict(of_arrays.run_dir, [*files[:10], np.zeros((5, 7), np.uint8), *files[10:]])
    assert [mixed[i]["class"] for i in (*range(10), *range(11, 21))] == [entry["class"] for entry in found[:20]]
    (single,) = tlx.predict(of_arrays.run_dir, test.pixels(0))
    assert single["class"] == found[0]["class"]


def test_a_run_on_python_objects_predicts_without_them(digits: dict[str, ArrayImages], tmp_path: Path) -> None:
    """Arrays are used as they are; images of a sequence are photos, which are cropped."""
    train, test = digits["train"], digits["test"]
    arrays = [(part.array.transpose(0, 2, 3, 1), part.labels) for part in (train, test)]
    sequences = [[(part.open(i), int(part.labels[i])) for i in range(len(part))] for part in (train, test)]
    accuracies = []
    for name, data in (("fixed", tuple(arrays)), ("photos", tuple(sequences))):
        result = tlx.run(**FIELDS, data=data, out=str(tmp_path / name))
        assert json.loads((result.run_dir / "card.json").read_text())["images"] == name
        predictions = tlx.predict(result.run_dir, arrays[1][0])
        assert accuracy(predictions, test.labels) == result.test_accuracy
        accuracies.append(result.test_accuracy)
    assert accuracies[0] != accuracies[1]


def test_a_run_saved_by_0_1_0_is_read_by_the_name_of_its_data(
    of_arrays: tlx.Result, of_photos: tlx.Result, photos: Path, digits: dict[str, ArrayImages], tmp_path: Path
) -> None:
    """Its card says neither whether its images were photos nor what was done to them."""
    cases: list[tuple[tlx.Result, Any, str]] = [
        (of_photos, photos / "test" / "3", "photos"),
        (of_arrays, digits["test"].array[:20, 0], "fixed"),
    ]
    for result, images, kind in cases:
        old = tmp_path / kind
        shutil.copytree(result.run_dir, old)
        card = json.loads((old / "card.json").read_text())
        assert card.pop("images") == kind and card.pop("pixels")
        card["crop_fraction"] = None
        (old / "card.json").write_text(json.dumps({**card, "format": 1}))
        (old / "manifest.json").unlink()
        shutil.rmtree(old / "last")
        assert tlx.predict(old, images) == tlx.predict(result.run_dir, images)


def test_probabilities_are_a_softmax_over_all_classes(of_arrays: tlx.Result, digits: dict[str, ArrayImages]) -> None:
    images = digits["test"].array[:30, 0]
    for entry in tlx.predict(of_arrays.run_dir, images, top=10):
        odds = [each["probability"] for each in entry["top"]]
        assert math.fsum(odds) == pytest.approx(1, abs=1e-12) and odds == sorted(odds, reverse=True)
        assert sorted(each["class"] for each in entry["top"]) == CLASSES
        assert (entry["class"], entry["probability"]) == tuple(entry["top"][0].values())
    assert {len(entry["top"]) for entry in tlx.predict(of_arrays.run_dir, images)} == {5}


def test_what_cannot_be_read_is_listed_and_the_rest_predicted(
    of_photos: tlx.Result, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = next((photos / "test").rglob("*.png"))
    for name in ("a.png", "c.png"):
        (tmp_path / name).write_bytes(good.read_bytes()[:40])
    (tmp_path / "b.png").write_bytes(good.read_bytes())
    bad, right, broken, gone = tlx.predict(of_photos.run_dir, [tmp_path, tmp_path / "gone.png"])
    (expected,) = tlx.predict(of_photos.run_dir, good)
    assert right == {**expected, "path": str(tmp_path / "b.png")}
    for entry, name in ((bad, "a.png"), (broken, "c.png"), (gone, "gone.png")):
        assert entry["path"] == str(tmp_path / name) and entry["error"] and name in entry["error"]
        assert (entry["class"], entry["probability"], entry["top"]) == (None, None, [])
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said] == ["not read"] * 3 + ["3 of 4 images cannot be read"]
    with pytest.raises(TlxError, match=r"^2 of 2 images cannot be read: .*a\.png .*c\.png ") as error:
        tlx.predict(of_photos.run_dir, [tmp_path / "a.png", tmp_path / "c.png"])
    assert "\n" not in str(error.value) and not capsys.readouterr().err


def test_what_is_left_out_of_a_folder_is_said(
    of_photos: tlx.Result, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = next((photos / "test").rglob("*.png"))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x.png").write_bytes(good.read_bytes())
    for name in ("notes.txt", ".hidden.png"):
        (tmp_path / name).write_text("x")
    assert len(tlx.predict(of_photos.run_dir, tmp_path)) == 1
    said = capsys.readouterr().err
    assert "skipped 1 file that is not an image" in said and "notes.txt" in said and "hidden" not in said


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "no images: expected files, folders"),
        (["nowhere.png", "gone.png"], "2 of the images do not exist: nowhere.png, gone.png"),
        (np.zeros((2, 4, 4, 3), np.float32), r"array 0 is float32 \[4, 4, 3\]; expected uint8"),
        (np.zeros((2, 4, 4, 4), np.uint8), r"array 0 is uint8 \[4, 4, 4\]; expected uint8 \[H, W, 3\]"),
        (7, "images must be files, folders or uint8 arrays; got int"),
    ],
)
def test_what_is_no_image_is_refused(images: Any, said: str, of_photos: tlx.Result) -> None:
    with pytest.raises(TlxError, match=said) as error:
        tlx.predict(of_photos.run_dir, images)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_finished_run_is_refused(of_photos: tlx.Result, tmp_path: Path) -> None:
    with pytest.raises(TlxError, match="holds no finished run"):
        tlx.predict(tmp_path, "x.png")
    (tmp_path / "recipe.toml").write_bytes((of_photos.run_dir / "recipe.toml").read_bytes())
    with pytest.raises(TlxError, match=f"is not finished; finish it with: tlx run --resume {tmp_path}"):
        tlx.predict(tmp_path, "x.png")
    with pytest.raises(TlxError, match=r"x\.png does not exist"):
        tlx.predict(of_photos.run_dir, "x.png")
    with pytest.raises(TlxError, match="top is 0; expected at least 1"):
        tlx.predict(of_photos.run_dir, "x.png", top=0)


def test_more_classes_than_there_are_lists_them_all(of_arrays: tlx.Result) -> None:
    (entry,) = tlx.predict(of_arrays.run_dir, np.zeros((8, 8), np.uint8), top=11)
    assert len(entry["top"]) == 10


def test_the_command_prints_a_line_or_json_for_each_image(of_photos: tlx.Result, photos: Path) -> None:
    def command(*options: str) -> subprocess.CompletedProcess[str]:
        code = "from tlx.cli import main; main()"
        args = [sys.executable, "-c", code, "predict", str(of_photos.run_dir), *options]
        return subprocess.run(args, capture_output=True, text=True)

    folder = str(photos / "test" / "3")
    expected = tlx.predict(of_photos.run_dir, folder, top=2)
    lines = command(folder, "--top", "2").stdout.splitlines()
    assert len(lines) == len(expected)
    first = ", ".join(f"{each['class']} {each['probability']:.4f}" for each in expected[0]["top"])
    assert lines[0] == f"{expected[0]['path']}: {first}"
    assert json.loads(command(folder, "--top", "2", "--json").stdout)["predictions"] == expected
    refused = command()
    assert refused.returncode == 2 and refused.stderr.startswith("tlx: no images")
