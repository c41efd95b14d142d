"""The tests of two classifiers, against published figures and against doing the same the long way."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tlx.comparison.statistics import bootstrap, holm, mcnemar, mean_and_spread


def answers(both: int, first: int, second: int, neither: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    counts = (both, first, second, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_mcnemars_p_values_are_those_of_the_paper() -> None:
    """Fagerland et al. 2013, tables 1 and 3: airway hyper-responsiveness before and after a transplantation."""
    test = mcnemar(*answers(1, 1, 7, 12))
    assert (test.first_alone, test.second_alone) == (1, 7)
    assert test.exact == pytest.approx(0.0703, abs=5e-5) and test.mid_p == pytest.approx(0.0391, abs=5e-5)


def test_mcnemar_says_nothing_where_both_are_right_on_the_same_or_on_as_many() -> None:
    same, even = mcnemar(*answers(9, 0, 0, 3)), mcnemar(*answers(2, 4, 4, 0))
    assert [same.exact, same.mid_p, even.exact, even.mid_p] == pytest.approx([1, 1, 1, 1])
    assert mcnemar(*answers(0, 0, 400, 0)).exact < 1e-100


def test_the_interval_is_that_of_drawing_the_images_one_by_one() -> None:
    drawn = np.random.default_rng(0)
    values = drawn.choice([-1.0, -0.5, 0.0, 0.5, 1.0], 60, p=[0.05, 0.1, 0.5, 0.2, 0.15])
    mean, low, high = bootstrap([values])
    means = values[drawn.integers(0, 60, (20_000, 60))].mean(axis=1)
    assert mean == values.mean()
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.012)
    assert bootstrap([values]) == (mean, low, high)


def test_sets_of_images_that_were_drawn_apart_make_the_interval_narrower() -> None:
    values = np.repeat([1.0, 0.0, -1.0], 20)
    _, low, high = bootstrap([values])
    _, one, two = bootstrap([values, values, values, values])
    assert (two - one) == pytest.approx((high - low) / 2, rel=0.05)


def test_holm_corrects_as_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_one_seed_has_no_spread() -> None:
    assert mean_and_spread([0.5]) == (0.5, None)
    mean, spread = mean_and_spread([0.4, 0.6])
    assert mean == 0.5 and spread == pytest.approx(0.1 * 2**0.5)
