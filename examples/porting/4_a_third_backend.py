"""Tutorial 4. A third backend: what the protocol asks, the conformance suite as the guide, parity as the last word.

A backend is the methods of `tlx.backend.Backend`, whose sentences are the contract. A framework with modules, autograd
and in-place tensors gets most of them from `tlx.backend.module.base.ModuleBackend`; this one is such an adapter, over
PyTorch, since that is installed, with a model zoo of its own. Another framework would change the methods below only.

The first version forgets something. The suite says which sentences of the contract it breaks; the second one passes.

    python examples/porting/4_a_third_backend.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
import torchvision
from torch import nn

import tlx
from tlx.backend import Capabilities, float32_exact, registry
from tlx.backend.module.base import ModuleBackend
from tlx.backend.module.net import Net, Optimizer


class Averages(nn.Module):
    """8 x 8 averages over equal stretches; AdaptiveAvgPool2d takes whole pixels, so at odd sizes it is another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[-1]
        edge, pixel = (torch.arange(n, dtype=torch.float64) for n in (8, size))
        edge = edge[:, None] * size / 8
        part = torch.minimum(edge + size / 8, pixel + 1) - torch.maximum(edge, pixel)
        average = (part.clamp(min=0) * 8 / size).to(x.dtype)
        return average @ x @ average.T


class Perceptron(nn.Module):
    """The model that the suite knows as "tiny-mlp": 3 x 8 x 8 pixel averages, a layer, BatchNorm, ReLU, the head."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        # Modules, not functions: where only the head trains, all that comes before it can be bypassed.
        self.pool = Averages()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(192, 32)
        self.bn1 = nn.BatchNorm1d(32)
        self.act = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(32, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.act(self.bn1(self.fc1(self.flatten(self.pool(x)))))))


# What `build` looks a model's name up in. Constructors take the zoo's options and leave them.
ZOO = SimpleNamespace(
    **{"tiny-mlp": lambda **options: Perceptron(0.0), "tiny-mlp-dropout": lambda **options: Perceptron(0.5)}
)


class FirstVersion(ModuleBackend):
    """Everything that a module framework does not do by itself. One method is missing."""

    name = "third"
    optimizers: ClassVar = {
        "sgd": lambda groups, spec: torch.optim.SGD(groups, 0.0, momentum=spec.momentum, nesterov=spec.nesterov),
        "adam": lambda groups, spec: torch.optim.Adam(groups, 0.0, betas=spec.betas, eps=spec.eps),
    }

    def __init__(self) -> None:
        super().__init__(torch, ZOO, torchvision.ops.StochasticDepth)

    def capabilities(self) -> Capabilities:
        return Capabilities(
            versions={"torch": torch.__version__},
            devices=("cpu",),
            precisions={"cpu": ("float32", "float64")},
            optimizers=tuple(self.optimizers),
            models=tuple(vars(ZOO)),
            deterministic=True,
        )

    def tensor(self, array: np.ndarray, device: str) -> torch.Tensor:
        return torch.from_numpy(np.array(array, order="C", copy=True))

    def exact(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    # The optimizer's memory crosses as named arrays, so that a run can be resumed on another backend.

    def optimizer_slots(self, optimizer: Optimizer, param: Any) -> Mapping[str, Any] | None:
        state = optimizer.native.state.get(param)
        if not state or any(value is None for value in state.values()):
            return None
        return {slot: state[self._native(optimizer, slot)] for slot in optimizer.spec.slots}

    def set_optimizer_slots(self, optimizer: Optimizer, param: Any, slots: Mapping[str, Any] | None) -> None:
        optimizer.native.state.pop(param, None)
        if slots is not None:
            state = {self._native(optimizer, slot): self.tensor(value, "cpu") for slot, value in slots.items()}
            if "step" in state:
                state["step"] = state["step"].float()
            optimizer.native.state[param] = state

    @staticmethod
    def _native(optimizer: Optimizer, slot: str) -> str:
        return "momentum_buffer" if slot == "momentum" else slot


class SecondVersion(FirstVersion):
    """Other backends hold BatchNorm's constants as float32, so every adapter must."""

    def prepare(self, net: Net) -> None:
        for module in net.module.modules():
            if isinstance(module, self.batch_norms):
                module.eps = float32_exact(module.eps)
                module.momentum = 1.0 - float32_exact(1.0 - module.momentum)


# The test file of a package that brings a backend.
SUITE = """
import importlib.util, pytest
from tlx.conformance.suite import *

spec = importlib.util.spec_from_file_location("third", {path!r})
third = importlib.util.module_from_spec(spec)
spec.loader.exec_module(third)

@pytest.fixture(scope="session")
def backend():
    return third.{version}()
"""


def conformance(version: str) -> int:
    """Run the suite over one version; print what failed; return pytest's exit code."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "test_third.py"
        file.write_text(SUITE.format(path=str(Path(__file__).resolve()), version=version), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR")) or " in " in line]
    print("\n".join(f"   {line}" for line in lines) or done.stdout + done.stderr)
    return done.returncode


def main() -> int:
    print("1. Does it have the protocol's methods? (`tlx doctor` asks the same of every registered backend)")
    missing = registry.differences(SecondVersion())
    print(f"   {missing or 'yes'}")

    print("2. The conformance suite, first version:")
    first = conformance("FirstVersion")

    print("3. The conformance suite, second version, with `prepare`:")
    second = conformance("SecondVersion")

    print("4. tlx parity against the NumPy reference backend:")
    report = tlx.parity(reference="loopback", candidate=SecondVersion(), model="tiny-mlp", weights="none", quick=True)
    print(report)
    print("5. To offer it to others, a package names its module, which has create(), check() and DISTRIBUTIONS:")
    print('   [project.entry-points."tlx.backends"]')
    print('   third = "tlx_third"')
    return 0 if not missing and first == 1 and second == 0 and report.verdict == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
