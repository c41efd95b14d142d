"""OneFlow multiplies with SciPy's BLAS, whose products are right, and would not keep one whose products are wrong."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from support.backends import skip_module_without

skip_module_without("oneflow")

from tlx_oneflow import blas
from tlx_oneflow.bootstrap import BLAS, flow


@contextmanager
def own() -> Iterator[dict[str, ctypes.c_uint64]]:
    """OneFlow's table of calls, to be changed, and put back at the end."""
    path = blas.shared_library("oneflow", "oneflow.libs/liboneflow-*.so")
    assert path is not None
    entries = blas.entries(ctypes.CDLL(str(path)), blas.FUNCTIONS)
    before = {name: entry.value for name, entry in entries.items()}
    try:
        yield entries
    finally:
        blas.point(entries, before)


def test_it_is_on_in_this_environment() -> None:
    assert BLAS.startswith("SciPy's OpenBLAS")
    assert blas.worst_error(flow) <= 1


def test_products_of_the_wrong_function_are_noticed() -> None:
    with own() as table:
        blas.point(table, dict.fromkeys(blas.FUNCTIONS, table["cblas_sgemm"].value))  # reads no further than it may
        assert not blas.worst_error(flow) <= 1
    assert blas.worst_error(flow) <= 1


def test_what_multiplies_wrongly_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with own() as table:
        before = {name: entry.value for name, entry in table.items()}
        monkeypatch.setattr(blas, "worst_error", lambda flow: float("nan"))
        assert blas.install(flow).startswith("OneFlow's own single-threaded BLAS: products of libscipy_openblas")
        assert {name: entry.value for name, entry in table.items()} == before


def test_without_scipy_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "shared_library", lambda distribution, pattern: None)
    assert blas.install(flow) == "OneFlow's own single-threaded BLAS: no SciPy wheel with OpenBLAS is installed"


def test_a_convolution_goes_through_it() -> None:
    """Images are columns to OneFlow; where the product does nothing, the convolution comes out wrong."""
    rng = np.random.default_rng(0)
    x, w = (flow.tensor(rng.standard_normal(shape)) for shape in ((2, 3, 8, 8), (4, 3, 3, 3)))
    expected = flow.nn.functional.conv2d(x, w).numpy().copy()
    with own() as table:
        nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
        blas.point(table, dict.fromkeys(blas.FUNCTIONS, nothing))
        assert not np.allclose(flow.nn.functional.conv2d(2 * x, w).numpy(), 2 * expected)
    np.testing.assert_allclose(flow.nn.functional.conv2d(2 * x, w).numpy(), 2 * expected)
