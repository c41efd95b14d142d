"""tlx on OneFlow and flowvision. Importing this module imports neither: see `tlx.backend.registry`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlx_oneflow.doctor import check as check

if TYPE_CHECKING:
    from tlx.backend import Backend
    from tlx.backend.export import Exporter

DISTRIBUTIONS = ("oneflow", "flowvision")


def create() -> Backend:
    """Import oneflow and flowvision and return the adapter."""
    from tlx_oneflow.adapter import OneFlowBackend

    return OneFlowBackend()


def exporter() -> Exporter:
    """Return what takes a model elsewhere; imports no framework."""
    from tlx_oneflow.export import OneFlowExporter

    return OneFlowExporter()


def smoke() -> str:
    """Multiply two matrices, in this process; tells by which library."""
    from tlx_oneflow.bootstrap import BLAS, flow

    if (flow.ones(2, 2) @ flow.ones(2, 2)).sum().item() != 8:
        raise ArithmeticError("oneflow multiplies two matrices wrongly")
    return f"multiplies matrices with {BLAS}"
