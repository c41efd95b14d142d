"""Comparisons that run: the choice, the test part, what fails, and Python objects."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from comparison.conftest import AXES, COMMON
from support.finished_runs import load_digits
from tlx.comparison.choice import entries_of
from tlx.comparison.compare import drive
from tlx.comparison.plan import make_plan
from tlx.errors import RecipeError
from tlx.recipe import Recipe
from tlx.training.metrics import Evaluated, Event


def test_the_choice_is_by_validation_and_the_test_part_is_read_for_it_alone(undisturbed: tlx.Comparison) -> None:
    good = [entry for entry in undisturbed.entries if entry.val_accuracy is not None]
    assert {entry.candidate.arm.strategy for entry in good} == {"full", "feature_extract"}
    assert all(entry.chosen for entry in good)
    assert undisturbed.best is good[0] and (good[0].val_accuracy or 0) > (good[1].val_accuracy or 0)
    tables = {path.stem for path in (undisturbed.folder / "test").glob("*.csv")}
    assert tables == {entry.candidate.cells[0].name for entry in good}
    for entry in good:
        cell = entry.candidate.cells[0]
        result = json.loads((cell.run_dir / "result.json").read_text())
        assert result["test_accuracy"] is None and not (cell.run_dir / "predictions-test.csv").exists()
        assert entry.test_accuracy == tlx.evaluate(cell.run_dir, quiet=True)["test_accuracy"]
    assert undisturbed.run_dir == good[0].candidate.cells[0].run_dir


def test_the_paired_test_counts_the_images_of_the_tables(undisturbed: tlx.Comparison) -> None:
    right = []
    for entry in [e for e in undisturbed.entries if e.chosen]:
        with (undisturbed.folder / "test" / f"{entry.candidate.cells[0].name}.csv").open() as file:
            right.append(np.array([row["label"] == row["prediction"] for row in csv.DictReader(file)]))
    (test,) = undisturbed.tests
    assert test.images == 60 and test.best_alone == (right[0] & ~right[1]).sum()
    assert test.difference == pytest.approx(right[0].mean() - right[1].mean())
    assert test.mid_p is not None and test.exact is not None
    assert test.low <= test.difference <= test.high and test.holm == test.mid_p <= test.exact


def test_a_cell_that_fails_is_shown_with_its_line_and_the_rest_goes_on(undisturbed: tlx.Comparison) -> None:
    (problem,) = undisturbed.problems.values()
    assert "finite" in problem or "nan" in problem
    failed = [entry for entry in undisturbed.entries if entry.val_accuracy is None]
    assert [entry.outcomes[0].state for entry in failed] == ["failed"] and not any(e.chosen for e in failed)
    assert all("\n" not in line for line in undisturbed.sentences())


def test_called_again_nothing_runs_but_what_failed(
    undisturbed: tlx.Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [*undisturbed.folder.glob("*/result.json"), *undisturbed.folder.glob("test/*")]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = tlx.compare(**COMMON, **AXES, out=str(undisturbed.folder))
    assert again.to_dict() == undisturbed.to_dict() and len(before) == 4
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert capsys.readouterr().err.count("failed: ") == 1  # tried again


def test_python_objects_run_in_this_process_and_seeds_are_pairs(tmp_path: Path) -> None:
    digits = load_digits()
    parts = {name: (part.array.transpose(0, 2, 3, 1), part.labels) for name, part in digits.items()}
    fields: dict[str, Any] = {
        **COMMON,
        "data": parts,
        "epochs": 1,
        "save_seconds": 60.0,
        "limit_train": None,
        "limit_test": None,
    }
    first = tlx.compare(**fields, strategies="full,probe", seeds=3, out=str(tmp_path / "c"), quiet=True)
    assert not first.problems and [entry.finished for entry in first.entries] == [3, 3]
    for entry in first.entries:
        values = [outcome.val_accuracy or 0.0 for outcome in entry.outcomes]
        assert entry.val_accuracy == pytest.approx(np.mean(values)) and entry.val_spread == pytest.approx(
            np.std(values, ddof=1)
        )
        assert entry.test_accuracy is not None and entry.test_spread is not None
    more = tlx.compare(**fields, strategies="full,probe", seeds=4, out=str(tmp_path / "c"), quiet=True)
    assert [entry.finished for entry in more.entries] == [4, 4]
    with pytest.raises(RecipeError, match="only this process has"):
        tlx.compare(**fields, seeds=2, jobs=2, out=str(tmp_path / "c"), quiet=True)
    with pytest.raises(RecipeError, match="out='comparison'"):
        tlx.compare(**fields, seeds=2, quiet=True)
    other = {**fields, "data": {name: (images[:90], labels[:90]) for name, (images, labels) in parts.items()}}
    mixed = tlx.compare(**other, strategies="full,probe,scratch", seeds=4, out=str(tmp_path / "c"), quiet=True)
    assert len(mixed.problems) == 4 and all("data were others than" in p for p in mixed.problems.values())


def test_a_run_that_leaves_the_test_part_unread_has_the_same_weights(tmp_path: Path) -> None:
    events: list[Event] = []
    short = {**COMMON, "epochs": 1}
    one = tlx.run(**short, out=str(tmp_path / "one"), quiet=True)
    two = tlx.run(**short, out=str(tmp_path / "two"), quiet=True, evaluate_test=False, on_event=events.append)
    assert one.test_accuracy is not None and two.test_accuracy is None
    assert not any(isinstance(event, Evaluated) and event.part == "test" for event in events)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    assert tlx.evaluate(tmp_path / "two", quiet=True)["test_accuracy"] == one.test_accuracy
    assert "test part not read" in repr(two)


def test_data_without_a_validation_or_a_test_part_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="chooses by the validation part"):
        tlx.compare(**{**COMMON, "val_fraction": 0.0}, seeds=2, out=str(tmp_path / "c"), quiet=True)
    assert not (tmp_path / "c").exists()
    images = load_digits()["train"]
    alone = (images.array.transpose(0, 2, 3, 1)[:100], images.labels[:100])
    fields = {**COMMON, "data": alone, "limit_train": None, "limit_test": None, "test_fraction": 0.0, "epochs": 1}
    comparison = tlx.compare(**fields, seeds=2, out=str(tmp_path / "d"), quiet=True)
    assert comparison.best is not None and comparison.best.test_accuracy is None and not comparison.problems
    assert any("no test part" in line for line in comparison.sentences())


def test_a_candidate_without_all_of_its_seeds_is_not_chosen(undisturbed: tlx.Comparison) -> None:
    plan = make_plan(Recipe(**COMMON), "full,feature_extract", seeds=2)
    finished = next(e for e in undisturbed.entries if e.best).outcomes[0]
    outcomes = {cell.name: replace(finished, val_accuracy=0.5) for cell in plan.cells}
    outcomes[plan.cells[0].name] = replace(finished, val_accuracy=0.9)
    assert [entry.best for entry in entries_of(plan.candidates, outcomes)] == [True, False]
    outcomes[plan.cells[1].name] = replace(finished, state="failed", val_accuracy=None, val_loss=None)
    entries = entries_of(plan.candidates, outcomes)
    assert [(entry.finished, entry.chosen) for entry in entries] == [(1, False), (2, True)]


@pytest.mark.parametrize("jobs", [0, -1, 10**6, True])
def test_a_wrong_number_of_jobs_is_refused(jobs: int) -> None:
    with pytest.raises(RecipeError, match="jobs is"):
        drive(make_plan(Recipe(**COMMON), seeds=2), jobs)


@pytest.mark.thorough
@pytest.mark.needs("torch", "oneflow")
def test_both_frameworks_are_compared(tmp_path: Path) -> None:
    fields = {**COMMON, "image_size": 32, "epochs": 1, "batch_size": 32, "limit_train": 100, "precision": "float32"}
    axes: dict[str, Any] = {"backends": "torch,oneflow", "models": "squeezenet1_1"}
    comparison = tlx.compare(**fields, **axes, strategies="full", out=str(tmp_path / "c"), quiet=True)
    assert not comparison.problems and {entry.candidate.arm.backend for entry in comparison.entries} == {
        "torch",
        "oneflow",
    }
    assert len(comparison.tests) == 1
