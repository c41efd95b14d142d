"""Tensors that OneFlow copies to the host together are those that it copies one by one."""

from __future__ import annotations

from typing import Any

import numpy as np

from support.backends import skip_module_without

skip_module_without("oneflow")

from tlx_oneflow.adapter import TOGETHER, OneFlowBackend
from tlx_oneflow.bootstrap import flow


def test_arrays_are_copied_together_as_one_by_one() -> None:
    random, backend = np.random.default_rng(0), OneFlowBackend()
    arrays: dict[str, Any] = {
        **{f"float64/{n}": random.standard_normal((3, n)) for n in (1, 2, 40)},
        **{f"float32/{n}": random.standard_normal(n).astype(np.float32) for n in (1, TOGETHER, TOGETHER + 1)},
        "steps": np.array(7),
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 3)),
        "scalar": np.array(-0.0),
    }
    tensors = {name: flow.tensor(array) for name, array in arrays.items()}
    tensors["float64/2"].requires_grad = True
    arrays["transposed"], tensors["transposed"] = arrays["float64/40"].T, tensors["float64/40"].t()
    copied = backend.arrays(tensors)
    assert list(copied) == list(tensors)
    for name, array in arrays.items():
        assert (copied[name].dtype, copied[name].shape) == (array.dtype, array.shape), name
        assert copied[name].tobytes() == array.tobytes(), name
        assert copied[name].flags.c_contiguous and copied[name].flags.owndata, name


def test_a_copy_is_not_the_tensor() -> None:
    tensors = {"a": flow.ones(2), "b": flow.ones(2)}
    copied = OneFlowBackend().arrays(tensors)
    copied["a"] += 1
    tensors["b"] += 1
    np.testing.assert_array_equal(copied["b"], 1)
    np.testing.assert_array_equal(tensors["a"].numpy(), 1)
