"""Processes that hold other values than each other are found out at the next epoch's end."""

from __future__ import annotations

import pytest

from support.processes import outcomes, started

WORK = """
import numpy as np
from tlx.training.together import check_alike
arrays = {"fc1.weight": np.ones((4, 3)), "fc.bias": np.zeros(3), "bn1.running_var": np.ones(4)}
check_alike(arrays, channel, "in epoch 1")
print("alike", flush=True)
if rank == %d:
    arrays["fc.bias"] = np.nextafter(arrays["fc.bias"], 1)
    arrays["bn1.running_var"] = arrays["bn1.running_var"] + 1
check_alike(arrays, channel, "in epoch 2")
print("not found", flush=True)
"""


@pytest.mark.parametrize("drifting", [0, 2])
def test_the_first_array_that_differs_by_one_bit_is_named(drifting: int) -> None:
    with started(WORK % drifting, 3) as children:
        ended = outcomes(children)
    assert [code for code, _, _ in ended] == [2, 2, 2]
    for _, told, _ in ended:
        assert "alike" in told and "not found" not in told
        assert "drifted apart in epoch 2: 'fc.bias' differs" in told
