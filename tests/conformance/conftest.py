"""Which of the suite's tests `make test` leaves to `make thorough`."""

from __future__ import annotations

import re

import pytest

# With ResNet-18 on OneFlow these take the longest by far. Momentum, decay and scaling by squares are each in one that
# stays, and what is frozen is tried with every optimizer.
LEFT_OUT = re.compile(
    r"test_backends\.py::test_(?:updates_follow_the_rule_in_numpy|optimizer_state_survives_freezing|"
    r"a_run_resumes_bit_for_bit|a_parameter_unfrozen_late_starts_afresh)"
    r"\[oneflow-(?:sgd with nesterov|adam|rmsprop|sgd)\]$"
)

# What starts real processes that import a framework; the reference backend and broken ones are tried in each run.
TOGETHER = re.compile(
    r"test_backends\.py::test_(?:gradients_of_the_shares|batch_norm_takes_the_statistics_of_the_rows|"
    r"a_process_without_rows|parts_of_a_batch_are_shared|dropout_masks_do_not_depend|a_gradient_that_no_process|"
    r"all_processes_hold|shards_give_the_same_bits)\w*\[.*(?:torch|oneflow)"
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make these tests thorough."""
    for item in items:
        if LEFT_OUT.search(item.nodeid) or TOGETHER.search(item.nodeid):
            item.add_marker(pytest.mark.thorough)
