"""Training loops written by hand: compared step by step, and what differs first is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlx.proof.capture_writer import Batch, CaptureWriter, Reference, float32_exact, nudged
from tlx.proof.compare import compare
from tlx.proof.report import Report
from tlx.proof.result import Verdict

Arrays = dict[str, Any]
WEIGHTS: Arrays = {"w": np.linspace(-1, 1, 2000).reshape(40, 50), "b": np.linspace(0, 1, 50)}
STEPS = 44


def train(cap: CaptureWriter, weights: Arrays, fault: str = "", at: int = 12, **how: Any) -> None:
    """SGD with momentum, clipping and an average on a quadratic; from the step `at` on, one line is wrong."""
    p = {name: array.copy() for name, array in weights.items()}
    slots = {name: np.zeros_like(array) for name, array in p.items()}
    average = {name: array.copy() for name, array in p.items()}
    for step in range(STEPS):
        wrong = fault if step >= at else ""
        loss = sum(float((array**2).sum()) for array in p.values()) * (1.5 if wrong == "loss" else 1)
        gradients = {name: 2 * array for name, array in p.items()}
        norm = float(np.sqrt(sum((g**2).sum() for g in gradients.values())))
        scale = 1.0 if wrong == "clipping" else min(1.0, 0.5 / norm)
        gradients = {name: scale * g for name, g in gradients.items()}
        rate = 0.02 if wrong in ("rate", "hidden rate") else 0.01 * 0.5 ** (step // 20)
        momentum = 0.8 if wrong == "momentum" else 0.9
        for name in p:
            slots[name] = momentum * slots[name] + gradients[name]
            p[name] = p[name] - rate * slots[name]
            if wrong == "value" and name == "b":
                p[name][0] += 1e-6
            share = 0.2 if wrong == "average" else 0.1
            average[name] = average[name] + share * (p[name] - average[name])
        state = {f"{name}/momentum": slot for name, slot in slots.items()}
        told = None if fault == "hidden rate" else rate
        cap.step(loss, p, state, gradients=gradients, average=average, lr=told, weight_decay=0.0, **how)


def compared(home: Path, fault: str, at: int = 12) -> Report:
    for folder, planted in (("A", ""), ("B", fault)):
        with CaptureWriter(home / folder, "loop 1") as cap:
            cap.weights(WEIGHTS)
            train(cap, WEIGHTS, planted, at)
    return compare(home / "A", home / "B")


def test_two_loops_that_do_the_same_are_equal(tmp_path: Path) -> None:
    report = compared(tmp_path, "")
    assert report.verdict == Verdict.EQUAL, str(report)
    assert report.subject == "a loop by hand; 44 steps, 0 of them at a boundary"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("loss", "First wrong: the loss ("),
        ("clipping", "103.518 times the reference's, as by clipping"),
        ("rate", "First wrong: the rate, 0.01 against 0.02."),
        ("momentum", "/momentum ("),
        ("hidden rate", "the update of all that differs is 2 times the reference's, as by another rate"),
        ("value", "First wrong: b ("),
        ("average", "the average moves 2 times as far"),
    ],
)
def test_what_differs_first_is_named(fault: str, message: str, tmp_path: Path) -> None:
    report = compared(tmp_path, fault)
    assert report.verdict == Verdict.DIFFERENT
    assert report.first.startswith("Equal until step 12. First wrong: "), report.first
    assert message in report.first, report.first


def test_the_first_step_is_said_to_be_the_first(tmp_path: Path) -> None:
    assert compared(tmp_path, "hidden rate", at=0).first == (
        "The first step already differs. First wrong: b (1.9e-04); the update of all that differs is 2 times the "
        "reference's, as by another rate."
    )


def loops(home: Path, names: str, rates: list[Any], **how: Any) -> None:
    for folder, rate in zip(names, rates, strict=True):
        with CaptureWriter(home / folder, "loop 1") as cap:
            for _ in range(STEPS):
                cap.step(1.0, {"w": np.ones(3)}, lr=rate, **how)


@pytest.mark.parametrize(
    ("rates", "verdict", "message"),
    [
        ([0.1, [0.1, 0.1]], Verdict.EQUAL, ""),
        ([[0.0, 0.1], 0.1], Verdict.EQUAL, ""),  # the first group is frozen
        ([[0.2, 0.1], 0.1], Verdict.DIFFERENT, "the rate, 0.2 against 0.1"),
        ([[0.1, 0.1, 0.1], [0.1, 0.1]], Verdict.DIFFERENT, "the rate, 3 groups against 2 groups"),
        ([0.1, None], Verdict.EQUAL, ""),
        ([0.1, float32_exact(0.1)], Verdict.DIFFERENT, "one of them is rounded to float32, see float32_exact"),
    ],
)
def test_rates_are_compared_bit_for_bit(rates: list[Any], verdict: Verdict, message: str, tmp_path: Path) -> None:
    loops(tmp_path, "AB", rates)
    report = compare(tmp_path / "A", tmp_path / "B")
    assert report.verdict == verdict and message in report.first, report.first


def test_decays_are_compared_too(tmp_path: Path) -> None:
    loops(tmp_path / "x", "A", [0.1], weight_decay=0.0)
    loops(tmp_path / "y", "B", [0.1], weight_decay=1e-4)
    assert "decay 0.0 against decay 0.0001" in compare(tmp_path / "x" / "A", tmp_path / "y" / "B").first


def test_fewer_than_forty_steps_are_too_few(tmp_path: Path) -> None:
    for folder in "AB":
        with CaptureWriter(tmp_path / folder, "loop 1") as cap:
            for _ in range(39):
                cap.step(1.0)
    report = compare(tmp_path / "A", tmp_path / "B")
    assert report.verdict == Verdict.UNDERPOWERED and "only 39 of 40 steps" in str(report)


def chaotic(cap: CaptureWriter, x: Any, reordered: bool, drift: float = 0.0, **how: Any) -> None:
    """The logistic map, which doubles rounding errors at each step, computed in one of two orders."""
    for _ in range(STEPS):
        x = 3.9 * (x - x * x) + drift if reordered else 3.9 * x * (1 - x)
        cap.step(float(x.sum()), {"x": x}, **how)


def chaos(home: Path, *, with_envelope: bool, drift: float = 0.0, dtype: Any = np.float64) -> Report:
    start = np.linspace(0.2, 0.7, 30).astype(dtype)
    precision = np.dtype(dtype).name
    with CaptureWriter(home / "A", "loop 1", precision) as cap:
        chaotic(cap, start, False)
        if with_envelope:
            chaotic(cap, nudged({"x": start})["x"], False, nudged=True)
    with CaptureWriter(home / "B", "loop 1", precision, home / "A") as cap:
        chaotic(cap, start, True, drift)
    return compare(home / "A", home / "B")


def test_a_chaotic_loop_is_judged_by_its_own_envelope(tmp_path: Path) -> None:
    assert chaos(tmp_path / "without", with_envelope=False).verdict == Verdict.DIFFERENT
    assert chaos(tmp_path / "with", with_envelope=True).verdict == Verdict.EQUAL
    drifting = chaos(tmp_path / "drifting", with_envelope=True, drift=1e-8)
    assert drifting.verdict == Verdict.DIFFERENT and drifting.first.startswith("The first step already differs")


def test_a_loop_whose_envelope_hides_everything_shows_nothing(tmp_path: Path) -> None:
    report = chaos(tmp_path, with_envelope=True, dtype=np.float32)
    assert report.verdict == Verdict.UNDERPOWERED
    assert "the reference's own scatter hides all" in str(report)


def test_a_loop_in_float32_without_nudged_steps_is_not_judged(tmp_path: Path) -> None:
    report = chaos(tmp_path, with_envelope=False, dtype=np.float32)
    assert report.verdict == Verdict.UNDERPOWERED and "P6 not run: rounding moves a float32 loop too far" in str(report)


def test_a_loop_serves_its_batches_to_its_port(tmp_path: Path) -> None:
    batches = [Batch(np.full((2, 3, 4, 4), step), np.array([step, 0])) for step in range(3)]
    with CaptureWriter(tmp_path / "A", "loop 1") as cap:
        for batch in batches:
            cap.step(1.0, batch=batch)
    served = list(Reference(tmp_path / "A").steps())
    assert [batch.labels.tolist() for batch in served] == [[0, 0], [1, 0], [2, 0]]
    assert all(np.array_equal(ours.inputs, theirs.inputs) for ours, theirs in zip(batches, served, strict=True))


def test_nudged_weights_are_one_unit_off() -> None:
    weights: Arrays = {"w": np.linspace(1, 2, 100), "single": np.ones(9, np.float32), "count": np.array(3)}
    moved = nudged(weights)
    assert np.array_equal(np.abs(moved["w"] - weights["w"]) <= np.spacing(2.0), np.ones(100, bool))
    assert (moved["w"] != weights["w"]).all() and 20 < (moved["w"] > weights["w"]).sum() < 80
    assert moved["single"].dtype == np.float32 and (moved["single"] != 1).all() and moved["count"] == 3
