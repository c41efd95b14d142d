"""Test-time augmentation: the mean of the probabilities of an image and of its mirror image."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.finished_runs import CLASSES, FIELDS
from tlx.backend import Batch
from tlx.data.images import ArrayImages
from tlx.errors import TlxError
from tlx.runs.classify import averaged
from tlx.runs.finished import restore


def probabilities(run: tlx.Result, images: Any, **fields: Any) -> Any:
    """[N, classes], by the order of the run's classes."""
    rows = [
        {e["class"]: e["probability"] for e in p["top"]} for p in tlx.predict(run.run_dir, images, top=10, **fields)
    ]
    return np.array([[row[name] for name in CLASSES] for row in rows])


def softmax(logits: Any) -> Any:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def test_an_image_and_its_mirror_image_are_answered_alike(
    of_arrays: tlx.Result, digits: dict[str, ArrayImages]
) -> None:
    images = digits["test"].array.transpose(0, 2, 3, 1)
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    one, other = probabilities(of_arrays, images), probabilities(of_arrays, mirrored)
    assert np.abs(one - other).max() > 0.1  # a mean of two equal numbers would show nothing
    found, turned = (probabilities(of_arrays, given, tta="hflip") for given in (images, mirrored))
    np.testing.assert_allclose(found, turned, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found, (one + other) / 2, rtol=0, atol=1e-12)
    assert np.array_equal(probabilities(of_arrays, images, tta="none"), one)


def test_a_photo_is_mirrored_once_it_is_cropped_and_resized(of_photos: tlx.Result, photos: Path) -> None:
    """So both are of the same part of it, whose place is rounded to whole pixels."""
    test = tlx.load_data(photos, val_fraction=0).test
    assert test is not None
    found = probabilities(of_photos, test, tta="hflip")
    run = restore(of_photos.run_dir)
    images = np.stack([run.framing.pixels(partial(test.open, i)) for i in range(len(test))])
    both = []
    for given in (images, np.ascontiguousarray(images[..., ::-1])):
        logits = []
        for at in range(0, len(test), run.recipe.batch_size):  # batches of another size may round otherwise
            numbers = np.arange(at, min(at + run.recipe.batch_size, len(test)))
            batch = run.backend.put(run.model, Batch(given[numbers], numbers % 10, numbers, run.preprocess))
            logits += run.backend.fetch([run.backend.logits(run.model, batch)])
        both.append(softmax(np.concatenate(logits).astype(np.float64)))
    assert np.abs(both[0] - both[1]).max() > 0.1
    np.testing.assert_allclose(found, (both[0] + both[1]) / 2, rtol=0, atol=1e-12)


def test_every_figure_is_of_the_mean_of_the_probabilities(
    of_arrays: tlx.Result, digits: dict[str, ArrayImages]
) -> None:
    """Not of the mean of the logits, nor of the mean of two accuracies."""
    labels = digits["test"].labels
    images = digits["test"].array.transpose(0, 2, 3, 1)
    plain, mirrored = (
        probabilities(of_arrays, images),
        probabilities(of_arrays, np.ascontiguousarray(images[:, :, ::-1])),
    )
    mean = (plain + mirrored) / 2
    evaluation = tlx.evaluate(of_arrays.run_dir, quiet=True, tta="hflip")
    rows = np.arange(len(labels))
    right = mean.argmax(axis=1) == labels
    assert (evaluation["tta"], evaluation["images"]) == ("hflip", len(labels))
    assert evaluation["test_accuracy"] == right.mean()
    assert evaluation["test_loss"] == pytest.approx(-np.log(mean[rows, labels]).mean(), rel=1e-9)
    top5 = (mean > mean[rows, labels][:, None]).sum(axis=1) < 5
    assert evaluation["top_k_accuracy"] == top5.mean()
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, mean.argmax(axis=1)), 1)
    assert evaluation["confusion"] == counts.tolist()
    of_logits = (np.log(plain) + np.log(mirrored)).argmax(axis=1)
    assert not np.array_equal(of_logits, mean.argmax(axis=1))
    assert right.mean() not in ((plain.argmax(axis=1) == labels).mean(), (mirrored.argmax(axis=1) == labels).mean())
    usual = tlx.evaluate(of_arrays.run_dir, quiet=True)
    assert (usual["tta"], usual["test_accuracy"]) == ("none", usual["recorded_accuracy"])


def test_the_votes_of_neighbors_are_averaged_too(digits: dict[str, ArrayImages], tmp_path: Path) -> None:
    fields = {name: value for name, value in FIELDS.items() if name not in ("lr", "epochs")}
    fields |= {"data": "digits", "limit_train": 300, "limit_test": 100, "out": str(tmp_path / "knn")}
    run = tlx.run(**fields, strategy="knn", neighbors=5)
    images = digits["test"].array.transpose(0, 2, 3, 1)
    one, other = (probabilities(run, np.ascontiguousarray(given)) for given in (images, images[:, :, ::-1]))
    assert np.abs(one - other).max() > 0.1
    np.testing.assert_allclose(probabilities(run, images, tta="hflip"), (one + other) / 2, rtol=0, atol=1e-12)


def test_logits_of_any_size_have_a_mean() -> None:
    """The logarithm of a probability that float64 cannot hold is still finite."""
    far = averaged(np.array([[0.0, 2000.0]]), np.array([[0.0, 1000.0]]))
    np.testing.assert_allclose(far, [[-1000 - np.log(2), 0]], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tta", ["vflip", "", None, 1, ["hflip"]])
def test_another_kind_is_refused(tta: Any, of_arrays: tlx.Result) -> None:
    for use in (
        lambda: tlx.predict(of_arrays.run_dir, "digits", tta=tta),
        lambda: tlx.evaluate(of_arrays.run_dir, tta=tta),
    ):
        with pytest.raises(TlxError, match=r"Unknown tta .*(hflip|none)"):
            use()


def test_the_command_line_says_what_was_done(of_arrays: tlx.Result, photos: Path, tmp_path: Path) -> None:
    run, folder = str(of_arrays.run_dir), str(photos / "test" / "3")

    def printed(*arguments: str) -> str:
        command = [sys.executable, "-m", "tlx", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout

    assert json.loads(printed("evaluate", run, "--tta", "hflip", "--json"))["tta"] == "hflip"
    assert "each with its mirror image" in printed("evaluate", run, "--tta", "hflip")
    listed = json.loads(printed("predict", run, folder, "--tta", "hflip", "--json"))
    assert listed["tta"] == "hflip" and listed["predictions"] == tlx.predict(run, folder, tta="hflip")
    wrong = subprocess.run(
        [sys.executable, "-m", "tlx", "predict", run, folder, "--tta", "flip"], capture_output=True, text=True
    )
    assert wrong.returncode == 2 and "Did you mean 'hflip'?" in wrong.stderr
