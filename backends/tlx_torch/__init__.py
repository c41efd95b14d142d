"""tlx on PyTorch and torchvision. Importing this module imports neither: see `tlx.backend.registry`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlx.models.libraries import Library, register_library
from tlx_torch.doctor import check as check

if TYPE_CHECKING:
    from tlx.backend import Backend
    from tlx.backend.export import HubExporter

DISTRIBUTIONS = ("torch", "torchvision")

register_library(Library("timm", backend="torch", module="tlx_torch.timm_models", distribution="timm"))


def create() -> Backend:
    """Import torch and torchvision and return the adapter."""
    from tlx_torch.adapter import TorchBackend

    return TorchBackend()


def exporter() -> HubExporter:
    """Return what takes a model elsewhere; imports no framework."""
    from tlx_torch.export import TorchExporter

    return TorchExporter()


def smoke() -> str:
    """Multiply two matrices, in this process; tells on how many threads, and where bfloat16 is native."""
    import torch

    if (torch.ones(2, 2) @ torch.ones(2, 2)).sum().item() != 8:
        raise ArithmeticError("torch multiplies two matrices wrongly")
    native = [device for device, known in create().capabilities().precisions.items() if "bfloat16" in known]
    return f"{torch.get_num_threads()} threads, bfloat16 native on: {', '.join(native) or 'no device'}"
