"""The equivalence test against formulas written down elsewhere, and its error rates by simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from tlx.errors import TlxError
from tlx.proof.result import Stage, Verdict
from tlx.proof.statistics import equivalence, verdict_of
from tlx.proof.words import note, summary


def pairs(differences: Any) -> Stage:
    base = np.linspace(0.8, 0.9, len(differences))
    return equivalence(base.tolist(), (base + differences).tolist())


@pytest.mark.parametrize("spread", [0.0005, 0.002, 0.006])
@pytest.mark.parametrize("shift", [0.0, 0.004, -0.02])
def test_it_decides_as_two_one_sided_tests(shift: float, spread: float) -> None:
    rng = np.random.default_rng(int(1e4 * spread))
    reference = rng.uniform(0.7, 0.9, 9)
    candidate = reference + shift + rng.normal(0, spread, 9)
    above = stats.ttest_rel(candidate + 0.005, reference, alternative="greater").pvalue
    below = stats.ttest_rel(candidate - 0.005, reference, alternative="less").pvalue
    stage = equivalence(reference.tolist(), candidate.tolist())
    assert (stage.passed is True) == (max(above, below) < 0.05)
    beyond = min(
        stats.ttest_rel(candidate - 0.005, reference, alternative="greater").pvalue,
        stats.ttest_rel(candidate + 0.005, reference, alternative="less").pvalue,
    )
    assert (stage.passed is False) == (beyond <= 0.05)


def test_the_figure_is_the_margin_at_which_the_decision_turns() -> None:
    reference, candidate = [0.8] * 6, [0.802, 0.799, 0.804, 0.803, 0.798, 0.801]
    stage = equivalence(reference, candidate)
    interval = stats.ttest_rel(candidate, reference).confidence_interval(0.9)
    assert stage.figure == pytest.approx(max(-interval.low, interval.high), rel=1e-12)
    assert stage.figure is not None
    assert equivalence(reference, candidate, margin=stage.figure * 1.0001).passed is True
    assert equivalence(reference, candidate, margin=stage.figure * 0.9999).passed is None
    assert stage.rows[-2].error == pytest.approx((interval.high - interval.low) / 2, rel=1e-12)


@pytest.mark.parametrize(
    ("differences", "verdict", "reading"),
    [
        ([0.0] * 4, Verdict.UNDERPOWERED, "too few seeds, 5 are the least"),
        ([0.03], Verdict.UNDERPOWERED, "too few seeds"),
        ([0.0] * 5, Verdict.EQUAL, "equivalent"),
        ([0.01] * 5, Verdict.DIFFERENT, "different"),
        ([-0.01] * 5, Verdict.DIFFERENT, "different"),
        ([0.02, -0.02, 0.01, 0.0, -0.01], Verdict.UNDERPOWERED, "straddles the margin"),
    ],
)
def test_each_outcome_says_how_to_read_it(differences: list[float], verdict: Verdict, reading: str) -> None:
    stage = pairs(differences)
    assert verdict_of(stage) == verdict and reading in summary(stage)
    assert (stage.id, stage.limit) == ("P10", 0.005) and stage.figure is not None


@pytest.mark.parametrize("shift", [0.005, -0.005])
def test_at_the_margin_one_in_twenty_is_called_equivalent(shift: float) -> None:
    rng = np.random.default_rng(5)
    runs = rng.normal(shift, 0.002, (2000, 8))
    outcomes = [pairs(run).passed for run in runs]
    # Four standard errors of a rate of 5 % over 2,000 trials are 0.0195; both claims are wrong this often there.
    assert outcomes.count(True) / 2000 == pytest.approx(0.05, abs=0.0195)
    assert outcomes.count(False) / 2000 == pytest.approx(0.05, abs=0.0195)


def test_a_pair_shows_its_signed_difference() -> None:
    stage = equivalence([0.8, 0.9], [0.81, 0.88])
    assert [note(row) for row in stage.rows if row.kind == "pair"] == ["+0.0100", "-0.0200"]
    assert summary(stage).startswith("2 paired seeds: candidate minus reference -0.0050, 90 % interval ")


@pytest.mark.parametrize(
    ("reference", "candidate", "options", "message"),
    [
        ([0.9], [0.9, 0.8], {}, "one accuracy of each backend per seed"),
        ([], [], {}, "one accuracy of each backend per seed"),
        ([0.9, float("nan")], [0.9, 0.8], {}, "finite"),
        ([0.9, 0.8], [0.9, 0.8], {"margin": 0}, "margin is 0"),
        ([0.9, 0.8], [0.9, 0.8], {"alpha": 0.5}, "alpha 0.5"),
    ],
)
def test_what_is_no_paired_sample_is_refused(
    reference: list[float], candidate: list[float], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TlxError, match=message):
        equivalence(reference, candidate, **options)
