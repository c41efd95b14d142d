"""Activations with constants that float32 does not hold, as modules and as functions, on both frameworks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.backends import FRAMEWORKS
from support.dropping import framework, network
from support.judged import judged
from tlx.proof.result import Verdict

pytestmark = pytest.mark.needs(*FRAMEWORKS)
MODULES: dict[str, tuple[Any, ...]] = {
    "LeakyReLU": (0.01,),
    "ELU": (0.3,),
    "CELU": (0.3,),
    "Hardtanh": (-0.3, 0.7),
    "Hardshrink": (0.3,),
    "Softshrink": (0.3,),
    "Threshold": (0.1, 0.3),
    "Softplus": (0.3,),
    "Hardsigmoid": (),
    "Hardswish": (),
    "PReLU": (),
    "GELU": (),
    "SELU": (),
    "SiLU": (),
    "Mish": (),
    "LogSigmoid": (),
    "Softsign": (),
    "ReLU6": (),
}
FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "leaky_relu": lambda functional, x: functional.leaky_relu(x, 0.01),
    "hardtanh": lambda functional, x: functional.hardtanh(x, min_val=-0.3, max_val=0.7),
    "celu": lambda functional, x: functional.celu(x, alpha=0.3),
    "elu": lambda functional, x: functional.elu(x, alpha=0.3),
    "hardsigmoid": lambda functional, x: functional.hardsigmoid(x),
}


def modules(fw: Any, others: dict[str, tuple[Any, ...]] | None = None) -> Any:
    """One activation after another, each beside what enters it and spread over its bends."""
    layers = {name.lower(): getattr(fw.nn, name)(*given) for name, given in {**MODULES, **(others or {})}.items()}

    def forward(net: Any, x: Any) -> Any:
        x = net.fc1(net.stem(x).flatten(1))
        for name in layers:
            x = net.fc2(x / (1 + x.abs())) + getattr(net, name)(4 * x)
        return net.fc(x)

    return network(fw, forward, **layers)


def functions(fw: Any) -> Any:
    """The same by functions."""

    def forward(net: Any, x: Any) -> Any:
        x = net.fc1(net.stem(x).flatten(1))
        for function in FUNCTIONS.values():
            x = net.fc2(x / (1 + x.abs())) + function(fw.nn.functional, 4 * x)
        return net.fc(x)

    return network(fw, forward)


@pytest.mark.parametrize("made", [modules, functions])
def test_constants_that_float32_does_not_hold_are_no_difference(made: Callable[[Any], Any], tmp_path: Path) -> None:
    report = judged(made(framework("torch")), made(framework("oneflow")), tmp_path)
    assert report.verdict == Verdict.EQUAL, str(report)


def test_a_slope_as_near_as_float32_can_tell_is_one(tmp_path: Path) -> None:
    other = modules(framework("oneflow"), {"LeakyReLU": (0.01 * (1 + 1e-7),)})
    report = judged(modules(framework("torch")), other, tmp_path)
    assert report.verdict == Verdict.DIFFERENT and "leakyrelu (LeakyReLU)" in report.first, str(report)
