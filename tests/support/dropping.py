"""Small networks that drop what they are told to, of either framework, and their comparison."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import tlx


def framework(name: str) -> Any:
    if name == "oneflow":
        importlib.import_module("tlx_oneflow.bootstrap")  # it loads what the wheel lacks
    return importlib.import_module(name)


def network(fw: Any, forward: Callable[[Any, Any], Any], **layers: Any) -> Any:
    """A convolution and two linear layers, whose forward pass, with what it drops, is the given one."""

    class Net(fw.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for name, layer in layers.items():  # in this order: what a port registers first, draws first
                setattr(self, name, layer)
            for name, layer in {
                "conv": fw.nn.Conv2d(3, 6, 3, stride=2, padding=1),
                "pool": fw.nn.AdaptiveAvgPool2d(4),
                "fc1": fw.nn.Linear(96, 24),
                "fc2": fw.nn.Linear(24, 24),
                "fc": fw.nn.Linear(24, 3),
            }.items():
                setattr(self, name, layer)

        def forward(self, x: Any) -> Any:
            return forward(self, x)

        def stem(self, x: Any) -> Any:
            return self.pool(fw.relu(self.conv(x)))

    return Net()


def compared(reference: Any, candidate: Any, **options: Any) -> Any:
    fields: dict[str, Any] = {"quick": True, "image_size": 16, "copy_weights": True, "batch_size": 8}
    return tlx.parity(reference=reference, candidate=candidate, **{**fields, **options})
