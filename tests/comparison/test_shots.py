"""Accuracy by the number of training images of a class, and the figures in which rare classes count as much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap  # type: ignore[import-untyped]
from scipy.stats import ttest_1samp
from sklearn.metrics import balanced_accuracy_score, f1_score

import tlx
from comparison.conftest import COMMON
from support.finished_runs import load_digits
from tlx.comparison.choice import entries_of
from tlx.comparison.compare import PAGE
from tlx.comparison.plan import make_plan
from tlx.comparison.statistics import interval_of_mean
from tlx.errors import RecipeError
from tlx.recipe import Recipe
from tlx.runs.table import Part

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FIELDS: dict[str, Any] = {**COMMON, "epochs": 1, "save_seconds": 60.0, "limit_train": None, "model": "tiny-mlp"}
DATA = {name: (part.array.transpose(0, 2, 3, 1), part.labels) for name, part in load_digits().items()}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tlx.Comparison:
    out = str(tmp_path_factory.mktemp("shots") / "c")
    fields = {**FIELDS, "data": DATA, "limit_test": None}  # objects, so that no process is started for a cell
    return tlx.compare(**fields, strategies="probe,full", shots="1,20", seeds=2, out=out, quiet=True)


def images_of(images: Any, numbers: Any = slice(None)) -> set[bytes]:
    return {image.tobytes() for image in images.array[numbers]}


def test_a_draw_holds_so_many_of_each_class_and_is_a_part_of_a_larger_one() -> None:
    data = {n: tlx.load_data("digits", images_per_class=n, seed=3) for n in (1, 5, 20)}
    whole, other = tlx.load_data("digits", seed=3), tlx.load_data("digits", images_per_class=5, seed=4)
    for n, drawn in data.items():
        assert np.bincount(drawn.train.labels).tolist() == [n] * 10
        assert drawn.val is not None and whole.val is not None and drawn.test is not None
        assert images_of(drawn.val) == images_of(whole.val) and not images_of(drawn.train) & images_of(drawn.val)
    assert images_of(data[1].train) < images_of(data[5].train) < images_of(data[20].train) < images_of(whole.train)
    assert images_of(other.train) != images_of(data[5].train)
    most = tlx.load_data("digits", images_per_class=10_000)
    assert len(most.train) == len(tlx.load_data("digits").train)
    assert any("all of them are used" in note for note in most.notes)


def test_a_seed_draws_the_same_images_for_every_strategy_and_each_number_of_shots_has_its_best(
    few: tlx.Comparison,
) -> None:
    assert not few.problems and len(few.entries) == 4
    drawn: dict[tuple[Any, int], set[str]] = {}
    for entry in few.entries:
        for cell in entry.candidate.cells:
            card = json.loads((cell.run_dir / "card.json").read_text())
            drawn.setdefault((entry.candidate.arm.shots, cell.recipe.seed), set()).add(card["data"]["fingerprint"])
    assert len(drawn) == 4 and {len(prints) for prints in drawn.values()} == {1}
    assert sorted(entry.candidate.arm.shots or 0 for entry in few.entries if entry.best) == [1, 20]
    assert few.best is few.entries[0] and sorted(test.arm.shots or 0 for test in few.tests) == [1, 20]


def test_the_curve_is_the_mean_of_the_draws_with_students_interval(few: tlx.Comparison) -> None:
    curves = {curve.arm.strategy: curve for curve in few.curves()}
    assert {*curves} == {"probe", "full"} and all(curve.part == "test" for curve in curves.values())
    for entry in few.entries:
        point = next(p for p in curves[entry.candidate.arm.strategy].points if p.shots == entry.candidate.arm.shots)
        values = [tlx.evaluate(c.run_dir, quiet=True, data=DATA)["test_accuracy"] for c in entry.candidate.cells]
        assert point.accuracy == pytest.approx(np.mean(values)) and point.draws == 2
        expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert point.low == pytest.approx(max(0.0, expected.low)) and point.high == pytest.approx(
            min(1.0, expected.high)
        )
    rates = [point.accuracy for point in curves["probe"].points]
    assert rates == sorted(rates) and rates[0] < rates[-1]
    assert few.to_dict()["curves"][0]["points"][0]["shots"] == 1
    assert "1 a class" in few.table() and "20 a class" in few.table()


def test_an_interval_needs_two_draws_and_stays_among_the_accuracies() -> None:
    assert interval_of_mean([0.5]) == (0.5, None, None)
    mean, low, high = interval_of_mean([0.99, 0.5])
    assert (mean, low, high) == (0.745, 0.0, 1.0)
    values = np.random.default_rng(0).normal(0.6, 0.02, 200)
    drawn = scipy_bootstrap([values], np.mean, random_state=0).confidence_interval
    assert interval_of_mean(values.tolist())[1:] == pytest.approx((drawn.low, drawn.high), abs=5e-4)


def test_a_run_records_the_figures_of_scikit_learn_and_compare_their_means(few: tlx.Comparison, tmp_path: Path) -> None:
    run = tlx.run(**{**FIELDS, "images_per_class": 5, "limit_test": None}, out=str(tmp_path / "run"), quiet=True)
    result = json.loads((run.run_dir / "result.json").read_text())
    parts: tuple[Part, ...] = ("val", "test")  # of which neither has as many images of each class
    for part in parts:
        table = tlx.load_predictions(run.run_dir, part)
        right = np.mean([a == b for a, b in zip(table["label"], table["prediction"], strict=True)])
        assert result[f"{part}_accuracy"] == pytest.approx(right)
        balanced = balanced_accuracy_score(table["label"], table["prediction"])
        f1 = f1_score(table["label"], table["prediction"], average="macro")
        assert result[f"{part}_balanced_accuracy"] == pytest.approx(balanced) != result[f"{part}_accuracy"]
        assert result[f"{part}_macro_f1"] == pytest.approx(f1)
    best = few.entries[0]
    results = [json.loads((c.run_dir / "result.json").read_text()) for c in best.candidate.cells]
    assert best.val_macro_f1 == pytest.approx(np.mean([one["val_macro_f1"] for one in results]))
    evaluated = [tlx.evaluate(c.run_dir, quiet=True, data=DATA) for c in best.candidate.cells]
    assert best.test_balanced_accuracy == pytest.approx(np.mean([one["balanced_accuracy"] or 0 for one in evaluated]))
    assert best.test_macro_f1 == pytest.approx(np.mean([one["macro_f1"] for one in evaluated]))


def test_the_choice_may_be_by_balanced_accuracy(few: tlx.Comparison) -> None:
    from dataclasses import replace

    plan = make_plan(Recipe(**FIELDS), "full,feature_extract")
    finished = replace(few.entries[0].outcomes[0], fingerprint="data")
    one = replace(finished, val_accuracy=0.9, val_balanced_accuracy=0.5)
    two = replace(finished, val_accuracy=0.8, val_balanced_accuracy=0.7)
    outcomes = dict(zip((cell.name for cell in plan.cells), (one, two), strict=True))
    assert [entry.best for entry in entries_of(plan.candidates, outcomes)] == [True, False]
    assert [entry.best for entry in entries_of(plan.candidates, outcomes, "balanced_accuracy")] == [False, True]
    unknown = {name: replace(outcome, val_balanced_accuracy=None) for name, outcome in outcomes.items()}
    assert not any(entry.chosen for entry in entries_of(plan.candidates, unknown, "balanced_accuracy"))


def test_the_page_draws_the_curves(few: tlx.Comparison, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto((few.folder / PAGE).as_uri())
    assert page.locator("#shots polyline").count() == 2 and page.locator("#shots rect").count() == 4
    assert page.locator("#shots-table tr").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


@pytest.mark.parametrize(
    ("shots", "said"),
    [
        ("1,0", "shots: 0 is no number of images of a class"),
        ("1,x", "shots: 'x' is no number of images"),
        ([True, 5], "shots: True is no number of images"),
        (5, "shots is 5; expected numbers of images"),
        ("", "shots is ''; expected names"),
    ],
)
def test_wrong_shots_are_refused(shots: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        make_plan(Recipe(**FIELDS), seeds=2, shots=shots)
    with pytest.raises(RecipeError, match="say it with shots"):
        make_plan(Recipe(**FIELDS), grid={"images_per_class": [1, 5]})
