"""Temperatures and thresholds do what their formulas say, and promise no more than they hold."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from scipy.stats import binom  # type: ignore[import-untyped]

import tlx
from support.run_files import FIELDS, change
from tlx.errors import TlxError
from tlx.runs.confidence import (
    DOUBT,
    TEMPERATURES,
    Pairs,
    _tests,
    calibration_error,
    choose_threshold,
    error_bound,
    fit_temperature,
)
from tlx.runs.table import measured

MANY: dict[str, Any] = {**FIELDS, "limit_train": 1000, "limit_test": 400, "val_fraction": 0.4, "epochs": 8}


def drawn(temperature: float, count: int = 4000, classes: int = 5) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits, and labels whose probabilities are the softmax of the logits / temperature."""
    random = np.random.default_rng(0)
    logits = 3 * random.normal(size=(count, classes))
    odds = np.exp(logits / temperature)
    odds /= odds.sum(axis=1, keepdims=True)
    labels = (odds.cumsum(axis=1) < random.random((count, 1))).sum(axis=1)
    return logits, labels.astype(np.int64)


def in_blocks(logits: NDArray[Any], labels: NDArray[np.int64], size: int = 1000) -> Pairs:
    def pairs() -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        for at in range(0, len(labels), size):
            yield logits[at : at + size], labels[at : at + size]

    return pairs


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_the_temperature_has_the_least_loss(true: float) -> None:
    logits, labels = drawn(true)
    temperature = fit_temperature(in_blocks(logits, labels))
    assert temperature is not None and temperature == pytest.approx(true, rel=0.1)

    def loss(t: float) -> float:
        return float(measured(logits / t, labels)[2].mean())

    least = minimize_scalar(loss, bounds=TEMPERATURES, method="bounded", options={"xatol": 1e-9})
    assert temperature == pytest.approx(least.x, rel=1e-5) and loss(temperature) <= least.fun + 1e-12
    again = fit_temperature(in_blocks(logits, labels, size=7))
    assert again == pytest.approx(temperature, rel=1e-9)


def test_there_is_no_temperature_where_none_is_best() -> None:
    logits, _ = drawn(1.0)
    assert fit_temperature(in_blocks(logits, logits.argmax(axis=1))) is None, "all are right"
    assert fit_temperature(in_blocks(logits, logits.argmin(axis=1))) is None, "all are wrong"
    assert fit_temperature(in_blocks(1000 * logits, logits.argmax(axis=1))) is None


def test_the_calibration_error_is_that_of_its_bins() -> None:
    probability = np.array([0.0, 0.5, 0.9, 0.9, 1.0, 1 / 3])
    correct = np.array([True, True, True, False, True, False])
    expected = (1 + 0.5 + abs(1 - 1.8) + 0 + 1 / 3) / 6
    assert calibration_error(probability, correct) == pytest.approx(expected)
    logits, labels = drawn(4.0)
    first, probability, _, _ = measured(logits, labels)
    after = measured(logits / 4.0, labels)[1]
    assert calibration_error(after, first == labels) < 0.03 < 0.2 < calibration_error(probability, first == labels)


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    for errors, count, doubt in ((0, 59, 0.05), (3, 100, 0.01), (49, 50, 0.2)):
        bound = error_bound(errors, count, doubt)
        assert binom.cdf(errors, count, bound) == pytest.approx(doubt, rel=1e-9)
    assert error_bound(0, 59, 0.05) < 0.05 < error_bound(0, 58, 0.05) and error_bound(5, 5, 0.1) == 1


def test_a_threshold_keeps_its_promise_in_19_of_20_samples() -> None:
    """Where the probability is right, the true error above a threshold t is 1 - (1 + t) / 2."""
    random, broken, answered = np.random.default_rng(1), 0, 0
    for _ in range(400):
        probability = random.random(600)
        threshold = choose_threshold(probability, random.random(600) < probability, 0.2)
        if threshold is not None:
            answered += 1
            broken += (1 - threshold) / 2 > 0.2
    assert answered > 300 and broken <= binom.ppf(0.9999, 400, DOUBT)


def test_thresholds_at_their_ends() -> None:
    random = np.random.default_rng(0)
    probability = random.random(1000)
    assert choose_threshold(probability, np.ones(1000, bool), 0.05) == -1.0, "everything may be answered"
    assert choose_threshold(probability, np.zeros(1000, bool), 0.05) is None
    assert choose_threshold(probability[:40], np.ones(40, bool), 0.05) is None, "too few to tell"
    assert choose_threshold(np.ones(1000), np.arange(1000) % 2 == 0, 0.05) is None, "all are equally sure"
    only_sure = choose_threshold(probability, probability > 0.5, 0.05)
    assert only_sure is not None and 0.4 < only_sure < 0.6
    assert choose_threshold(np.array([0.5]), np.array([True]), 0.05) is None
    assert [_tests(n) for n in (1, 2, 1000, 1024, 1025)] == [2, 2, 11, 11, 12]


# Of runs.


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tlx.Result:
    return tlx.run(**MANY, out=str(tmp_path_factory.mktemp("confidence") / "run"))


def test_a_run_says_how_well_its_probabilities_fit(trained: tlx.Result) -> None:
    calibration = trained.calibration
    assert calibration is not None and json.loads((trained.run_dir / "result.json").read_text())["calibration"]
    val, test = (tlx.load_predictions(trained.run_dir, part) for part in ("val", "test"))
    labels = np.array([val["classes"].index(label) for label in val["label"]])
    assert calibration["temperature"] == fit_temperature(in_blocks(val["logits"], labels, size=10_000))
    correct = np.array(test["label"]) == np.array(test["prediction"])
    assert calibration["ece"] == calibration_error(test["probability"], correct)
    card = json.loads((trained.run_dir / "card.json").read_text())
    assert card["temperature"] == calibration["temperature"] != 1


def test_rejecting_answers_only_what_the_validation_part_allows(trained: tlx.Result) -> None:
    test = tlx.load_data("digits", limit_train=1000, limit_test=400, val_fraction=0.4).test
    assert test is not None
    plain = tlx.predict(trained.run_dir, test, quiet=True)
    chosen = tlx.predict(trained.run_dir, test, reject=0.1, quiet=True)
    assert [entry["top"] for entry in chosen] == [entry["top"] for entry in plain]
    answered = [entry["class"] is not None for entry in chosen]
    assert 0.2 < np.mean(answered) < 1 and not any(entry["error"] for entry in chosen)
    sure = [entry["probability"] or 0 for entry in plain]
    assert max(p for p, a in zip(sure, answered, strict=True) if not a) < min(
        p for p, a in zip(sure, answered, strict=True) if a
    )
    wrong = [e["class"] != str(label) for e, label in zip(chosen, test.labels, strict=True) if e["class"] is not None]
    assert np.mean(wrong) <= 0.1
    both = tlx.predict(trained.run_dir, test, reject=0.1, calibrated=True, quiet=True)
    assert 0.2 < np.mean([entry["class"] is not None for entry in both]) < 1


def test_calibrated_probabilities_are_those_at_the_temperature(trained: tlx.Result) -> None:
    assert trained.calibration is not None
    table = tlx.load_predictions(trained.run_dir)
    test = tlx.load_data("digits", limit_train=1000, limit_test=400, val_fraction=0.4).test
    labels = np.zeros(len(table["path"]), np.int64)
    expected = measured(table["logits"] / np.float64(trained.calibration["temperature"]), labels)[1]
    found = tlx.predict(trained.run_dir, test, calibrated=True, quiet=True)
    np.testing.assert_allclose([entry["probability"] for entry in found], expected, rtol=1e-6)
    assert [entry["class"] for entry in found] == table["prediction"]


def test_the_command_says_unknown_and_what_it_promises(trained: tlx.Result, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tlx", "predict", str(trained.run_dir), "digits", "--reject", "0.1"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    unknown = [line for line in ended.stdout.splitlines() if ": unknown (" in line]
    assert 0 < len(unknown) < len(ended.stdout.splitlines())
    assert "with 95% confidence at most 0.1 of such answers are wrong" in ended.stderr
    csv = subprocess.run([*command, "--csv", "out.csv", "--json"], capture_output=True, text=True, cwd=tmp_path)
    assert json.loads(csv.stdout)["reject"] == 0.1
    assert (tmp_path / "out.csv").read_text().count(',"",0.') == len(unknown)


def test_what_cannot_be_promised_is_refused_in_one_line(trained: tlx.Result, tmp_path: Path) -> None:
    def refused(run: Path, **options: Any) -> str:
        with pytest.raises(TlxError) as caught:
            tlx.predict(run, np.zeros((1, 8, 8, 3), np.uint8), quiet=True, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    without = tlx.run(**{**FIELDS, "val_fraction": 0}, out=str(tmp_path / "without")).run_dir
    assert "no predictions of its validation part" in refused(without, reject=0.05)
    assert "val_fraction above 0" in refused(without, calibrated=True)
    few = tlx.run(**FIELDS, out=str(tmp_path / "few")).run_dir
    assert "judged by its 14 validation images; even without a mistake it takes about 90" in refused(few, reject=0.05)
    for reject in (0, 1, -0.1, float("nan"), True, "a", 2):
        assert "expected the part of answers that may be wrong" in refused(trained.run_dir, reject=reject)
    assert "leave tta out" in refused(trained.run_dir, reject=0.1, tta="hflip")
    assert "leave tta out" in refused(trained.run_dir, calibrated=True, tta="hflip")
    change(few, "card.json", lambda text: text.replace('"temperature": ', '"temperature": -'))
    assert "temperature" in refused(few)
