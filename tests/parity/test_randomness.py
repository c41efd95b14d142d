"""Dropout, stochastic depth and other randomness in two modules that are compared: what is equal is called equal."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

import tlx
from support.backends import FRAMEWORKS
from tlx.proof.result import Verdict

pytestmark = pytest.mark.needs(*FRAMEWORKS)
CANDIDATES = ("torch", "oneflow")


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


def two(fw: Any, first: str = "drop1", second: str = "drop2", p: float = 0.3) -> Any:
    """Two dropouts, under these names."""

    def forward(net: Any, x: Any) -> Any:
        x = getattr(net, first)(fw.relu(net.fc1(net.stem(x).flatten(1))))
        return net.fc(getattr(net, second)(fw.relu(net.fc2(x))))

    return network(fw, forward, **{first: fw.nn.Dropout(p), second: fw.nn.Dropout(p)})


def swapped(fw: Any) -> Any:
    """The same, registered in the other order, behind one that drops nothing."""
    net = two(fw, "late", "early")
    net._modules["idle"] = fw.nn.Dropout(0.0)
    for name in ("late", "early"):
        net._modules[name] = net._modules.pop(name)
    net._modules["late"], net._modules["early"] = net._modules.pop("late"), net._modules.pop("early")
    return net


def one(fw: Any) -> Any:
    """One dropout, called twice."""
    return two(fw, "drop2", "drop2")


def functions(fw: Any) -> Any:
    """The functions, in the forward pass."""

    def forward(net: Any, x: Any) -> Any:
        drop = fw.nn.functional.dropout
        x = drop(fw.relu(net.fc1(net.stem(x).flatten(1))), 0.3, net.training)
        return net.fc(drop(fw.relu(net.fc2(x)), p=0.3, training=net.training))

    return network(fw, forward)


def nested(fw: Any) -> Any:
    """Each beside its layer in a Sequential of its own, so that it acts in the head's phase no more than that does."""

    def forward(net: Any, x: Any) -> Any:
        x = net.drops[1](fw.relu(net.fc1(net.stem(x).flatten(1))))
        return net.fc(net.drops[4](fw.relu(net.fc2(x))))

    layers = [fw.nn.Dropout(0.0), fw.nn.Dropout(0.3), fw.nn.Identity(), fw.nn.Dropout(0.5), fw.nn.Dropout(0.3)]
    return network(fw, forward, drops=fw.nn.Sequential(*layers))


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("port", [swapped, one, functions, nested])
def test_a_dropout_that_is_written_otherwise_is_equal(port: Callable[[Any], Any], candidate: str) -> None:
    report = compared(two(framework("torch")), port(framework(candidate)))
    assert report.verdict == Verdict.EQUAL, str(report)
