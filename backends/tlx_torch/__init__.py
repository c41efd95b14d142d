"""tlx on PyTorch and torchvision. Importing this module imports neither: see `tlx.registry`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tlx_torch.doctor import check as check

if TYPE_CHECKING:
    from tlx.backend import Backend

DISTRIBUTIONS = ("torch", "torchvision")


def create() -> Backend:
    """Import torch and torchvision and return the adapter."""
    # OpenMP threads that spin while they wait starve whatever else runs on the machine, a second run above all.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from tlx_torch.adapter import TorchBackend

    return TorchBackend()


def smoke() -> None:
    """Multiply two matrices, in this process."""
    import torch

    if (torch.ones(2, 2) @ torch.ones(2, 2)).sum().item() != 8:
        raise ArithmeticError("torch multiplies two matrices wrongly")
