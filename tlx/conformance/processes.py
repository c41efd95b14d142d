"""Steps that several processes take together: each test starts real ones, once for all tests of a number of them."""

from __future__ import annotations

import pytest

from tlx.backend import Backend
from tlx.conformance.peers import CASES, Told, alone, together

TOLERANCE = 1e-11
several = pytest.mark.parametrize("count", [2, 3])


def _told(backend: Backend, count: int, case: str) -> list[Told]:
    if not hasattr(backend, "reduce"):
        pytest.skip(f"backend {backend.name!r} has no method reduce, so its runs take place in one process")
    return [told[case] for told in together(backend, count)]


def _assert_as_in_one(backend: Backend, count: int, case: str, tolerance: float = TOLERANCE) -> None:
    for rank, told in enumerate(_told(backend, count, case)):
        where = f"process {rank} of {count}, {case}"
        assert told.gradient <= tolerance, f"{where}: the gradient is off by {told.gradient:.1e}"
        assert told.statistics <= tolerance, f"{where}: the statistics are off by {told.statistics:.1e}"
        assert told.loss <= tolerance and told.correct == 0, f"{where}: off by {told.loss:.1e} and {told.correct}"


@several
def test_gradients_of_the_shares_add_up_to_those_of_the_whole_batch(backend: Backend, count: int) -> None:
    """Of 7 rows, which no two or three processes share evenly; losses and counts too."""
    _assert_as_in_one(backend, count, "kept")


@several
def test_batch_norm_takes_the_statistics_of_the_rows_of_all_processes(backend: Backend, count: int) -> None:
    """In the forward and the backward pass, and for the running statistics."""
    _assert_as_in_one(backend, count, "adapting")


def test_a_process_without_rows_counts_nowhere(backend: Backend) -> None:
    """Two rows for three processes, one of which has a row only to keep the others company.

    BatchNorm turns two values into 1 and -1, so that what is left of a gradient is small beside its rounding.
    """
    _assert_as_in_one(backend, 3, "fewer", 1e-8)
    assert [told.counted for told in _told(backend, 3, "fewer")] == [0.0, 0.0, 0.0]


@several
def test_parts_of_a_batch_are_shared_one_after_the_other(backend: Backend, count: int) -> None:
    """So a part has the statistics that it has in one process."""
    _assert_as_in_one(backend, count, "parts")


@several
def test_dropout_masks_do_not_depend_on_the_processes(backend: Backend, count: int) -> None:
    """A row has the mask that it has in one process."""
    _assert_as_in_one(backend, count, "dropout")


@several
def test_a_gradient_that_no_process_has_stays_none(backend: Backend, count: int) -> None:
    """Not zero, by which momentum and decay would move what is frozen."""
    _assert_as_in_one(backend, count, "frozen")
    assert [told.frozen_moved for told in _told(backend, count, "frozen")] == [[]] * count


@several
@pytest.mark.parametrize("case", CASES)
def test_all_processes_hold_the_same_bits(backend: Backend, count: int, case: str) -> None:
    """After `reduce`, so that they take the same step."""
    assert len({told.digest for told in _told(backend, count, case)}) == 1


@several
def test_shards_give_the_same_bits_on_any_number_of_processes(backend: Backend, count: int) -> None:
    """As in the process that asks, which is alone."""
    _assert_as_in_one(backend, count, "shards")
    assert {told.digest for told in _told(backend, count, "shards")} == {alone(backend, CASES["shards"])}
