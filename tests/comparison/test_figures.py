"""Comparisons by figures that are no mean over the images: of unequal classes, and of several labels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score

import tlx
from comparison.conftest import COMMON
from support.multilabel import CLASSES, digits
from tlx.comparison.resampling import Answers, By, paired_interval
from tlx.errors import DataError, RecipeError
from tlx.runs.listing import table

NOISE = np.random.default_rng(0)
IMAGES = tuple(map(str, range(90)))
LABELS = NOISE.choice(4, 90, p=[0.7, 0.1, 0.1, 0.1])
SEVERAL = (NOISE.uniform(size=(90, 4)) < [0.6, 0.3, 0.1, 0.02]).astype(np.int64)
FEW = {**{name: value for name, value in COMMON.items() if "limit" not in name and name != "data"}, "epochs": 2}
BOTH: dict[str, Any] = {"strategies": "full,feature_extract", "seeds": 2}


def one_label(skill: float) -> Answers:
    said = np.where(NOISE.uniform(size=90) < skill, LABELS, NOISE.integers(0, 4, 90))
    return Answers(IMAGES, LABELS, said, 4)


def several(skill: float, digits: int) -> Answers:
    return Answers(IMAGES, SEVERAL, np.round((NOISE.uniform(size=(90, 4)) + skill * SEVERAL) / 2, digits), 4)


def figure(answers: Answers, rows: Any, by: By) -> float:
    """As scikit-learn has it, of some of the images."""
    labels, said = answers.labels[rows], answers.said[rows]
    if by == "average_precision":
        occurring = labels.any(axis=0)
        return float(average_precision_score(labels[:, occurring], said[:, occurring]))
    if by == "macro_f1":
        return float(f1_score(labels, said, average="macro"))
    return float(balanced_accuracy_score(labels, said))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize(
    ("by", "pair"),
    [
        ("balanced_accuracy", (one_label(0.9), one_label(0.5))),
        ("macro_f1", (one_label(0.9), one_label(0.5))),
        ("average_precision", (several(0.9, 6), several(0.2, 6))),
        ("average_precision", (several(0.9, 1), several(0.2, 1))),  # with many equal scores
    ],
)
def test_the_interval_is_that_of_drawing_images_and_asking_scikit_learn(by: By, pair: tuple[Answers, Answers]) -> None:
    difference, low, high = paired_interval([pair], by)
    assert difference == pytest.approx(figure(pair[0], slice(None), by) - figure(pair[1], slice(None), by))
    drawn = np.random.default_rng(1).integers(0, 90, (600, 90))
    means = [figure(pair[0], rows, by) - figure(pair[1], rows, by) for rows in drawn]
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.2 * (high - low))
    assert low < difference < high and paired_interval([pair], by) == (difference, low, high)


def test_seeds_that_share_their_images_are_drawn_together_and_others_apart() -> None:
    pair = several(0.9, 6), several(0.2, 6)
    other = tuple(Answers(tuple(f"other {name}" for name in IMAGES), *vars_of(one)) for one in pair)
    _, low, high = paired_interval([pair], "average_precision")
    _, *same = paired_interval([pair, pair], "average_precision")
    _, below, above = paired_interval([pair, other], "average_precision")  # type: ignore[list-item]
    assert same == [low, high]
    assert above - below == pytest.approx((high - low) / 2**0.5, rel=0.1)


def vars_of(answers: Answers) -> tuple[Any, ...]:
    return answers.labels, answers.said, answers.classes


def test_the_paired_difference_is_of_the_figure_that_chose(tmp_path: Path) -> None:
    scans = load_digits()
    data = {"all": ((scans.images[:300] * 255 / 16).astype(np.uint8), scans.target[:300])}
    comparison = tlx.compare(**{**FEW, "data": data}, **BOTH, by="macro_f1", out=str(tmp_path / "c"), quiet=True)
    (test,) = comparison.tests
    first, second = (entry for entry in comparison.entries if entry.chosen)
    assert first.test_macro_f1 is not None and second.test_macro_f1 is not None
    assert test.by == "macro_f1" and test.difference == pytest.approx(first.test_macro_f1 - second.test_macro_f1)
    assert test.low <= test.difference <= test.high and test.exact is not None
    assert any("points of macro F1 on the test part" in line for line in comparison.sentences())


# Several labels.


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tlx.Comparison:
    return tlx.compare(**FEW, data=digits(300), **BOTH, out=str(tmp_path_factory.mktemp("several") / "c"), quiet=True)


def test_with_several_labels_map_chooses_and_is_shown_with_its_spread(compared: tlx.Comparison) -> None:
    assert compared.by == "average_precision" and not compared.problems
    first, second = compared.entries
    assert first.best and (first.val_average_precision or 0) > (second.val_average_precision or 0)
    for entry in compared.entries:
        results = [json.loads((cell.run_dir / "result.json").read_text()) for cell in entry.candidate.cells]
        values = [result["multilabel"]["val"]["average_precision"] for result in results]
        assert entry.val_average_precision == pytest.approx(np.mean(values))
        assert entry.val_spread == pytest.approx(np.std(values, ddof=1))
        assert all(result["multilabel"]["test"] is None for result in results)  # no run has read it
        scores = [
            tlx.evaluate(cell.run_dir, data=digits(300), quiet=True)["multilabel"] for cell in entry.candidate.cells
        ]
        tested = [score["average_precision"] or 0.0 for score in scores if score is not None]
        assert entry.test_average_precision == pytest.approx(np.mean(tested))
        assert entry.test_spread == pytest.approx(np.std(tested, ddof=1)) and entry.test_accuracy is None
    heads, rows = compared.rows()
    assert {"val mAP", "test mAP"} <= {*heads} and not {"val balanced", "test macro F1"} & {*heads}
    assert rows[0][heads.index("test mAP")] == f"{first.test_average_precision:.4f} ± {first.test_spread:.4f}"
    runs = [cell.run_dir for cell in first.candidate.cells]
    assert compared.run_dir == max(runs, key=lambda run: tlx.list_runs(run)[0]["val_average_precision"] or 0)


def test_with_several_labels_the_test_is_a_bootstrap_of_map_and_not_mcnemars(compared: tlx.Comparison) -> None:
    (test,) = compared.tests
    first, second = compared.entries
    assert test.difference == pytest.approx((first.test_average_precision or 0) - (second.test_average_precision or 0))
    assert test.low < test.difference < test.high and test.images == 60
    assert (test.exact, test.mid_p, test.holm, test.best_alone) == (None,) * 4
    said = compared.sentences()
    assert any("points of mAP on the test part, 95% interval" in line for line in said)
    assert any("McNemar's test counts images that are right or wrong" in line for line in said)
    page = (compared.folder / "compare.html").read_text()
    assert "by the mean mAP on the validation part" in page and "validation mAP, and its spread" in page
    assert compared.to_dict()["candidates"][0]["test_average_precision"] == first.test_average_precision


def test_runs_of_several_labels_are_listed_by_their_map(compared: tlx.Comparison) -> None:
    entries = tlx.list_runs(compared.folder)
    values = [entry["val_average_precision"] or 0.0 for entry in entries]
    assert len(values) == 4 and values == sorted(values, reverse=True) and values[-1] > 0
    assert table(entries).splitlines()[1].split()[2:5] == ["mAP", f"{values[0]:.4f}", "-"]


def test_a_figure_that_the_data_does_not_have_chooses_nothing(tmp_path: Path) -> None:
    fields: dict[str, Any] = {**COMMON, "out": str(tmp_path / "c"), "quiet": True}
    with pytest.raises(RecipeError, match="by average_precision is of several labels, but images of digits have one"):
        tlx.compare(**fields, by="average_precision", **BOTH)
    small = {**fields, "data": digits(100), "limit_train": None, "limit_test": None}
    with pytest.raises(RecipeError, match=r"by macro_f1 is of one label for each image, .* leave it out: mAP chooses"):
        tlx.compare(**small, by="macro_f1", **BOTH)
    with pytest.raises(DataError, match="images_per_class counts the images of each label"):
        tlx.compare(**small, shots=[1, 2], strategies="full")
    assert not (tmp_path / "c").exists()
    images, labels = digits(300)["all"]
    np.savez(tmp_path / "several.npz", images=images, labels=labels, classes=np.array(CLASSES))
    command = [
        "compare",
        "--data",
        str(tmp_path / "several.npz"),
        "--by",
        "accuracy",
        "--seeds",
        "2",
        "--out",
        str(tmp_path / "d"),
    ]
    told = subprocess.run([sys.executable, "-m", "tlx", *command], capture_output=True, text=True, check=False)
    assert told.returncode == 2 and "leave it out: mAP chooses" in told.stderr.splitlines()[-1]
    assert not (tmp_path / "d").exists()
