"""Stochastic depth under its many names, in two modules that are compared."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from support.backends import FRAMEWORKS
from support.dropping import compared, framework, network
from tlx.proof.result import Verdict

pytestmark = pytest.mark.needs(*FRAMEWORKS)
CANDIDATES = ("torch", "oneflow")
THOROUGH = ("torch", pytest.param("oneflow", marks=pytest.mark.thorough))  # where one framework shows it


def deep(fw: Any, path: Any) -> Any:
    """A residual branch that is dropped as a whole, by what `path` makes for each of two blocks."""

    def forward(net: Any, x: Any) -> Any:
        x = net.stem(x)
        x = x + net.path1(net.conv1(x))
        x = x + net.path2(net.conv2(x))
        return net.fc(fw.relu(net.fc2(fw.relu(net.fc1(x.flatten(1))))))

    convolutions = {name: fw.nn.Conv2d(6, 6, 3, padding=1) for name in ("conv1", "conv2")}
    return network(fw, forward, path1=path(), path2=path(), **convolutions)


def drop_path(fw: Any, fault: str = "") -> Any:
    """DropPath as people copy it; its name for p is `drop_prob`."""

    class DropPath(fw.nn.Module):  # type: ignore[misc]
        def __init__(self, drop_prob: float = 0.25) -> None:
            super().__init__()
            self.drop_prob = drop_prob

        def forward(self, x: Any) -> Any:
            if self.drop_prob == 0.0 or not (self.training or fault == "evaluation"):
                return x
            keep = self.drop_prob if fault == "inverted" else 1 - self.drop_prob
            shape = (1 if fault == "batch" else x.shape[0],) + (1,) * (x.ndim - 1)
            mask = (keep + fw.rand(*shape, dtype=x.dtype)).floor()
            if fault == "noise":
                mask = mask + fw.rand(*shape, dtype=x.dtype)
            return x * mask if fault == "scale" else x / keep * mask

    return DropPath


def stochastic_depth(name: str) -> Any:
    layers = importlib.import_module("torchvision.ops" if name == "torch" else "flowvision.layers")
    return lambda: layers.StochasticDepth(0.25, "row")


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_a_drop_path_written_by_hand_equals_stochastic_depth(candidate: str) -> None:
    reference = deep(framework("torch"), stochastic_depth("torch"))
    report = compared(reference, deep(framework(candidate), drop_path(framework(candidate))))
    assert report.verdict == Verdict.EQUAL, str(report)


def test_a_library_s_drop_path_equals_stochastic_depth() -> None:
    layers = importlib.import_module("flowvision.layers") if framework("oneflow") else None
    assert layers is not None
    candidate = deep(framework("oneflow"), lambda: layers.DropPath(0.25))
    report = compared(deep(framework("torch"), drop_path(framework("torch"))), candidate)
    assert report.verdict == Verdict.EQUAL, str(report)


@pytest.mark.thorough
def test_stochastic_depth_of_whole_batches_is_equal() -> None:
    layers = importlib.import_module("torchvision.ops")
    fw = framework("oneflow")
    report = compared(
        deep(framework("torch"), lambda: layers.StochasticDepth(0.25, "batch")), deep(fw, drop_path(fw, "batch"))
    )
    assert report.verdict == Verdict.EQUAL, str(report)


OF_PATHS = {
    "scale": "The first output that differs is that of path1 ",
    "batch": "path1 drops 0.25 of 8 parts in the reference and 0.25 of 1 part in the candidate",
    "inverted": "path1 drops 0.25 of 8 parts in the reference and 0.75 of 8 parts in the candidate",
    "evaluation": "In eval mode the first output that differs is that of path1 ",
}


@pytest.mark.parametrize("candidate", THOROUGH)
@pytest.mark.parametrize("fault", OF_PATHS)
def test_a_mistake_in_a_drop_path_is_named(fault: str, candidate: str) -> None:
    fw = framework(candidate)
    report = compared(deep(framework("torch"), stochastic_depth("torch")), deep(fw, drop_path(fw, fault)))
    assert report.verdict == Verdict.DIFFERENT and OF_PATHS[fault] in report.first, str(report)


@pytest.mark.parametrize("candidate", THOROUGH)
def test_a_drop_path_that_drops_as_no_dropout_does_is_named(candidate: str) -> None:
    fw = framework(candidate)
    report = compared(deep(framework("torch"), stochastic_depth("torch")), deep(fw, drop_path(fw, "noise")))
    assert report.verdict == Verdict.UNDERPOWERED, str(report)
    assert len(report.notes) == 1
    expected = "The candidate draws random numbers of its own in training, first in path1 (DropPath)."
    assert report.notes[0].startswith(expected)
