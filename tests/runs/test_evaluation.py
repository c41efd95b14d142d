"""Evaluating a finished run: figures by hand and against scikit-learn, on its own data and on other data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import (
    confusion_matrix,
    f1_score,
    log_loss,
    recall_score,
    top_k_accuracy_score,
)

import tlx
from support.finished_runs import CLASSES, FIELDS
from tlx.data.images import ArrayImages
from tlx.errors import DataError, TlxError
from tlx.runs.evaluation import Evaluation
from tlx.runs.scores import scores_of_counts


def probabilities(run: tlx.Result, images: Any) -> Any:
    """[N, classes], by the order of the run's classes."""
    rows = [{e["class"]: e["probability"] for e in p["top"]} for p in tlx.predict(run.run_dir, images, top=10)]
    return np.array([[row[name] for name in CLASSES] for row in rows])


def agrees_with_scikit_learn(evaluation: Evaluation, labels: Any, odds: Any) -> None:
    predicted = odds.argmax(axis=1)
    everything = list(range(len(CLASSES)))
    assert evaluation["images"] == len(labels)
    assert evaluation["confusion"] == confusion_matrix(labels, predicted, labels=everything).tolist()
    assert evaluation["test_accuracy"] == np.mean(predicted == labels)
    assert evaluation["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-12)
    balanced = recall_score(labels, predicted, average="macro", labels=np.unique(labels))
    assert evaluation["balanced_accuracy"] == pytest.approx(balanced, abs=1e-12)
    assert evaluation["top_k_accuracy"] == top_k_accuracy_score(labels, odds, k=evaluation["top_k"], labels=everything)
    assert evaluation["test_loss"] == pytest.approx(log_loss(labels, odds, labels=everything), rel=1e-9)
    recalls = recall_score(labels, predicted, average=None, labels=everything, zero_division=0)
    for number, figures in enumerate(evaluation["classes"]):
        count = int(np.sum(labels == number))
        assert (figures["class"], figures["images"]) == (CLASSES[number], count)
        assert figures["correct"] == np.sum((labels == number) & (predicted == number))
        assert figures["accuracy"] == (pytest.approx(recalls[number]) if count else None)


def test_f1_by_hand() -> None:
    """Class a: 3 right, 1 taken for b. b: 2 right, 2 taken for a. c: never there, once predicted. d: never at all."""
    confusion = np.array([[3, 1, 0, 0], [2, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    scores = scores_of_counts(np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0))
    np.testing.assert_allclose(scores.f1, [6 / 9, 4 / 8, 0, np.nan])
    assert scores.balanced_accuracy == pytest.approx((3 / 4 + 2 / 5) / 2)


def test_the_runs_own_test_part_is_evaluated_as_ever_with_more_figures(
    of_photos: tlx.Result, photos: Path, digits: dict[str, ArrayImages]
) -> None:
    evaluation = tlx.evaluate(of_photos.run_dir, quiet=True)
    assert evaluation["test_accuracy"] == evaluation["recorded_accuracy"] == of_photos.test_accuracy
    assert (evaluation["data"], evaluation["unreadable"], evaluation["top_k"]) == (photos.name, 0, 5)
    test = tlx.load_data(photos, val_fraction=0).test
    assert test is not None
    odds = probabilities(of_photos, test)
    agrees_with_scikit_learn(evaluation, test.labels, odds)
    agrees_with_scikit_learn(tlx.evaluate(of_photos.run_dir, quiet=True, top=2), test.labels, odds)
    everything = tlx.evaluate(of_photos.run_dir, quiet=True, top=11)
    assert everything["top_k_accuracy"] == 1
    with pytest.raises(TlxError, match="top is 0; expected at least 1"):
        tlx.evaluate(of_photos.run_dir, top=0)


def test_its_own_data_is_known_by_its_content(photos: Path, tmp_path: Path) -> None:
    """Without parts, it was divided; evaluated as other data, the training images would be in the figures."""
    result = tlx.run(**FIELDS, data=str(photos / "train"), out=str(tmp_path / "run"))
    evaluation = tlx.evaluate(result.run_dir, quiet=True, data=photos / "train")
    assert evaluation["images"] == 60 and evaluation["test_accuracy"] == result.test_accuracy
    pairs = [(np.full((8, 8), 20 * i, np.uint8), i % 2) for i in range(12)] * 5
    own = tlx.run(**FIELDS, data=pairs, out=str(tmp_path / "own"))
    evaluation = tlx.evaluate(own.run_dir, quiet=True, data=list(pairs))
    assert evaluation["images"] == 12 and evaluation["test_accuracy"] == own.test_accuracy
    assert (evaluation["top_k"], evaluation["top_k_accuracy"]) == (None, None)
    with pytest.raises(TlxError, match="pass it again, as data="):
        tlx.evaluate(own.run_dir, quiet=True)


def test_other_data_may_have_some_of_the_classes_in_another_order(
    of_photos: tlx.Result, of_arrays: tlx.Result, digits: dict[str, ArrayImages], tmp_path: Path
) -> None:
    chosen = [7, 2, 9]
    test = digits["test"]
    indices = np.flatnonzero(np.isin(test.labels, chosen))
    pixels = test.array[indices].transpose(0, 2, 3, 1)
    numbers = np.array([chosen.index(label) for label in test.labels[indices]])
    np.savez(tmp_path / "some.npz", images=pixels, labels=numbers, classes=np.array(["7", "2", "9"]))
    for i in indices:
        path = tmp_path / "folder" / str(test.labels[i]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        test.open(i).save(path)
    in_order = sorted(indices, key=lambda i: (str(test.labels[i]), f"{i}.png"))
    sources: dict[str, tuple[Any, Any]] = {
        "npz": (tmp_path / "some.npz", indices),
        "folder": (tmp_path / "folder", in_order),
        "arrays": ({"train": (pixels, numbers), "classes": ["7", "2", "9"]}, indices),
    }
    for run in (of_photos, of_arrays):
        for name, (source, order) in sources.items():
            evaluation = tlx.evaluate(run.run_dir, quiet=True, data=source)
            images = [test.pixels(i) for i in order]
            agrees_with_scikit_learn(evaluation, test.labels[order], probabilities(run, images))
            assert sum(map(sum, evaluation["confusion"])) == len(indices), name
    csv = tmp_path / "folder" / "some.csv"
    csv.write_text("path,label\n" + "".join(f"{test.labels[i]}/{i}.png,{test.labels[i]}\n" for i in indices[:4]))
    assert tlx.evaluate(of_photos.run_dir, quiet=True, data=str(csv))["images"] == 4


def test_of_other_data_the_test_part_is_evaluated_or_the_only_one(
    of_photos: tlx.Result, of_arrays: tlx.Result, photos: Path, digits: dict[str, ArrayImages]
) -> None:
    assert tlx.evaluate(of_arrays.run_dir, quiet=True, data=photos)["images"] == 100
    assert tlx.evaluate(of_arrays.run_dir, quiet=True, data=photos / "train")["images"] == 300
    assert tlx.evaluate(of_photos.run_dir, quiet=True, data="digits")["images"] == 355
    pairs = {part: (i.array.transpose(0, 2, 3, 1), i.labels) for part, i in digits.items()}
    with pytest.raises(DataError, match="arrays has no test part, only train and val"):
        tlx.evaluate(of_photos.run_dir, quiet=True, data={"train": pairs["train"], "val": pairs["test"]})
    one = {"train": (pairs["test"][0][:1], pairs["test"][1][:1])}
    assert tlx.evaluate(of_photos.run_dir, quiet=True, data={**one, "classes": CLASSES})["images"] == 1


def test_classes_that_the_run_does_not_know_are_refused(of_photos: tlx.Result, photos: Path, tmp_path: Path) -> None:
    for name, other in (("3", "three"), ("4", "4")):
        shutil.copytree(photos / "test" / name, tmp_path / "other" / other)
    with pytest.raises(
        DataError, match=r"other has classes that .* not trained on: three\. .*classes: 0, 1, 2"
    ) as error:
        tlx.evaluate(of_photos.run_dir, quiet=True, data=tmp_path / "other")
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="neither a known data set nor an existing folder"):
        tlx.evaluate(of_photos.run_dir, quiet=True, data="nowhere")
    unused = {"all": (np.zeros((3, 8, 8), np.uint8), np.zeros(3, np.int64)), "classes": ["0", "a class without images"]}
    assert tlx.evaluate(of_photos.run_dir, quiet=True, data=unused)["images"] == 3


def test_what_cannot_be_read_of_other_data_is_listed_and_left_out(
    of_photos: tlx.Result, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photos / "test", tmp_path / "other")
    for name in ("3", "4"):
        (tmp_path / "other" / name / "bad.png").write_bytes(b"no photo")
    (tmp_path / "other" / "3" / "notes.txt").touch()
    evaluation = tlx.evaluate(of_photos.run_dir, data=tmp_path / "other")
    assert (evaluation["images"], evaluation["unreadable"]) == (100, 2)
    assert evaluation["test_accuracy"] == of_photos.test_accuracy
    said = capsys.readouterr().err
    assert "note: skipped 1 file that is not an image by name: 3/notes.txt" in said
    assert said.count("not read: ") == 2 and "2 of 102 images cannot be read" in said


def test_a_photo_of_its_own_test_part_that_cannot_be_read_stops_the_evaluation(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "data")
    result = tlx.run(**FIELDS, data=str(tmp_path / "data"), out=str(tmp_path / "run"))
    bad = next((tmp_path / "data" / "test").rglob("*.png"))
    bad.write_bytes(b"x" * bad.stat().st_size)
    with pytest.raises(DataError, match=f"1 of 100 images cannot be read: {bad}"):
        tlx.evaluate(result.run_dir, quiet=True)


def test_other_data_is_seen_by_the_runs_card(of_arrays: tlx.Result, of_photos: tlx.Result, tmp_path: Path) -> None:
    """Photos of many sizes for a run on arrays, and arrays for a run on photos: the pixels are those of prediction."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (9 + i % 4, 30 - i % 3, 3), dtype=np.uint8) for i in range(20)]
    labels = np.arange(20) % 10
    for i, array in enumerate(arrays):
        path = tmp_path / "wide" / str(labels[i]) / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    order = np.argsort(labels, kind="stable")
    for run in (of_arrays, of_photos):
        evaluation = tlx.evaluate(run.run_dir, quiet=True, data=tmp_path / "wide")
        agrees_with_scikit_learn(evaluation, labels[order], probabilities(run, [arrays[i] for i in order]))


def test_a_test_photo_that_cannot_be_read_does_not_lose_the_training(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    bad = sorted((tmp_path / "photos" / "test").rglob("*.png"))[3]
    content = bad.read_bytes()
    bad.write_bytes(b"no photo")
    with pytest.raises(DataError, match=r"cannot be decoded .*the training is finished and saved in .*tlx evaluate"):
        tlx.run(**FIELDS, data=tmp_path / "photos", out=str(tmp_path / "run"))
    bad.write_bytes(content)
    evaluation = tlx.evaluate(tmp_path / "run", quiet=True)
    assert evaluation["recorded_accuracy"] is None and evaluation["images"] == len(list(bad.parents[1].rglob("*.png")))
