"""A model under test: fixed values, fixed batches, and the few moves that most tests make.

The protocol hands out no gradients. One SGD step with rate 2**10, no momentum and no decay shows them: before - after.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

from tlx.backend import (
    LOSSES,
    Array,
    Arrays,
    Backend,
    Batch,
    Handle,
    Hyper,
    Lora,
    ModelSpec,
    OptimizerSpec,
    Precision,
    Preprocess,
    float32_exact,
)
from tlx.backend.optimizers import RULES
from tlx.errors import TlxError

SIZE, CLASSES, N = 32, 5, 4
HEADS = {"tiny-mlp": "fc", "resnet18": "fc", "tiny-mlp-dropout": "fc", "squeezenet1_0": "classifier.1"}
HEADS |= {"mobilenet_v3_small": "classifier.3"}
PLAIN, WITH_DROPOUT = ("tiny-mlp", "resnet18"), ("tiny-mlp-dropout", "squeezenet1_0")
BN_EPS, BN_KEEP = float(np.float32(1e-5)), float(np.float32(0.9))

DEVICE = os.environ.get("TLX_CONFORMANCE_DEVICE", "cpu")  # on which models are built; scripts/gpu.py tries cuda

# A power of two, so dividing by it is exact, and large, so that rounding the parameter costs no digits of the gradient.
_PROBE_LR = 1024.0


@pytest.fixture
def subject(backend: Backend) -> Subject:
    """A float64 model with BatchNorm and without dropout."""
    return renewed(backend, choose(backend, PLAIN))


@pytest.fixture
def dropper(backend: Backend) -> Subject:
    """A float64 model with dropout in front of its head."""
    return renewed(backend, choose(backend, WITH_DROPOUT))


def renewed(backend: Backend, name: str, lora: Lora | None = None) -> Subject:
    """Return a model as good as new: most of the time of a test would go into building it."""
    subject = _built(backend, name, lora)  # type: ignore[arg-type]  # a Protocol does not say that it is hashable
    subject.load(subject.start)
    subject.free()
    return subject


def choose(backend: Backend, names: Sequence[str]) -> str:
    """Return the first of these models that the backend offers; it must offer one."""
    models = backend.capabilities().models
    usable = [name for name in names if name in models]
    assert usable, f"backend {backend.name!r} offers {models}; the suite needs one of {names}"
    return usable[0]


exact = float32_exact  # as the core rounds every scalar


@cache
def _built(backend: Backend, name: str, lora: Lora | None) -> Subject:
    return Subject(backend, name, lora=lora)


@dataclass(eq=False)
class Subject:
    """A model of a backend with its head on CLASSES outputs, and the values that each test starts from."""

    backend: Backend
    name: str
    precision: Precision = "float64"
    lora: Lora | None = None

    def __post_init__(self) -> None:
        self.spec = ModelSpec(self.name, CLASSES, HEADS[self.name], lora=self.lora)
        self.model = self.backend.build(self.spec, DEVICE, self.precision)
        self.specs = self.backend.param_specs(self.model)
        self.params = tuple(s.name for s in self.specs if s.role != "statistic")
        self.statistics = tuple(s.name for s in self.specs if s.role == "statistic")
        self.norms = tuple(dict.fromkeys(s.module for s in self.specs if s.role == "statistic"))
        self.head = tuple(name for name in self.params if name.startswith(self.spec.head + "."))
        self.backbone = tuple(name for name in self.params if name not in self.head)
        self.start = {s.name: _values(s.name, s.shape, s.dtype, i) for i, s in enumerate(self.specs)}
        self.load(self.start)
        self.free()

    def check_several(self) -> None:
        """Skip a test of the second loss where the backend does not offer it, with the reason in the report."""
        if LOSSES[1] not in self.backend.capabilities().losses:
            pytest.skip(f"backend {self.backend.name!r} does not offer the loss {LOSSES[1]!r}, of several labels")

    def another(self) -> Subject:
        """Make a second model of the same kind, with the same values."""
        return Subject(self.backend, self.name, self.precision, self.lora)

    def load(self, arrays: Arrays) -> None:
        """Set every value of the model."""
        self.backend.load_arrays(self.model, arrays)

    def dump(self) -> dict[str, Array]:
        """Copy every value of the model to the host."""
        return self.backend.dump_arrays(self.model)

    def free(self, trainable: Sequence[str] | None = None, batch_norm: Sequence[str] = ()) -> None:
        """Set the phase; by default every parameter trains and the statistics are kept."""
        names = self.params if trainable is None else trainable
        self.backend.set_phase(self.model, frozenset(names), frozenset(batch_norm))

    def put(self, n: int = N, *, seed: int = 1, key: tuple[int, int, int] = (0, 0, 0), **replaced: Any) -> Handle:
        """Put a batch of noise on the device; see `batch`."""
        return self.backend.put(self.model, batch(n, seed=seed, key=key, **replaced))

    def optimizer(self, spec: OptimizerSpec, hyper: Hyper | None = None) -> Handle:
        """Make an optimizer over two groups, backbone and head, both with the same hyper-parameters.

        A test of an optimizer that the backend does not offer is skipped, with the reason in the report.
        """
        if spec.name in RULES and spec.name not in self.backend.capabilities().optimizers:
            pytest.skip(f"backend {self.backend.name!r} does not offer the optimizer {spec.name!r}")
        optimizer = self.backend.optimizer(self.model, spec, [self.backbone, self.head])
        hyper = hyper or Hyper(exact(0.01), exact(0.1))
        self.backend.set_hyper(optimizer, [hyper, hyper])
        return optimizer

    def backward(self, handle: Handle, scale: float = 1.0) -> tuple[float, int]:
        """Add up the gradients of a batch; returns the summed loss and the correct count."""
        total, correct = self.backend.fetch(self.backend.backward(self.model, handle, scale))
        return float(total), int(correct)

    def step(self, optimizer: Handle, handle: Handle, max_norm: float | None = None) -> None:
        """Take one training step on a batch."""
        self.backend.backward(self.model, handle)
        self.backend.update(self.model, optimizer, max_norm)

    def evaluate(self, handle: Handle) -> tuple[float, int]:
        """Return the summed loss and the correct count of a batch in eval mode."""
        total, correct = self.backend.fetch(self.backend.evaluate(self.model, handle)[:2])
        return float(total), int(correct)

    def logits(self, handle: Handle) -> Array:
        """Return the logits of a batch in eval mode, [N, CLASSES]."""
        return self.backend.fetch([self.backend.logits(self.model, handle)])[0]

    def features(self, handle: Handle) -> Array:
        """Return what enters the head in eval mode, [N, ...]."""
        return self.backend.fetch([self.backend.features(self.model, handle)])[0]

    def probe(self) -> dict[str, Array]:
        """Return the gradients that are there, which uses them up, and put all values back as they were before."""
        before = self.dump()
        optimizer = self.optimizer(OptimizerSpec("sgd"), Hyper(_PROBE_LR, 0.0))
        self.backend.update(self.model, optimizer)
        after = self.dump()
        self.load(before)
        return {name: (before[name] - after[name]) / _PROBE_LR for name in self.params}

    def gradients(self, handle: Handle) -> dict[str, Array]:
        """Return the gradients of one batch in the present phase; the model is left as it was, statistics included."""
        before = self.dump()
        self.backend.backward(self.model, handle)
        gradients = self.probe()
        self.load(before)
        return gradients


def batch(n: int = N, *, seed: int = 1, key: tuple[int, int, int] = (0, 0, 0), **replaced: Any) -> Batch:
    """Make a batch of noise; `replaced` names fields to set."""
    rng = np.random.Generator(np.random.Philox(seed))
    fields: dict[str, Any] = {
        "images": rng.integers(0, 256, (n, 3, SIZE, SIZE), np.uint8),
        "labels": rng.integers(0, CLASSES, n, np.int64),
        "indices": np.arange(n),
        "preprocess": Preprocess(SIZE),
        "key": key,
    }
    return Batch(**{**fields, **replaced})


def soft_targets(n: int = N) -> Array:
    """Targets whose rows sum to anything, with one that is zero."""
    targets = np.random.Generator(np.random.Philox(7)).uniform(0, 1, (n, CLASSES))
    targets[0, 0] = 0.0
    return targets


def several_labels(n: int = N) -> Array:
    """Labels of 0 and 1, one for each class: int64 [n, CLASSES]."""
    return np.random.Generator(np.random.Philox(8)).integers(0, 2, (n, CLASSES), np.int64)


def _values(name: str, shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Values of a healthy size: weights after He et al. 2015, scales and variances around 1, the rest small."""
    noise = np.random.Generator(np.random.Philox(seed)).uniform(-1, 1, shape)
    if dtype == "int64":
        return np.full(shape, 7, np.int64)
    if len(shape) > 1:
        noise = noise * np.sqrt(6 / np.prod(shape[1:]))
    else:
        noise = noise * 0.2 + (1.0 if name.endswith(("running_var", "weight")) else 0.0)
    return np.asarray(noise, dtype)


def apply(spec: OptimizerSpec, hyper: Hyper, p: Array, g: Array, slots: Arrays) -> tuple[Array, dict[str, Array]]:
    """Take one step by the rule in NumPy; returns the new parameter and the new slots."""
    return RULES[spec.name](spec, p, g, slots, hyper)


def same_bits(a: Arrays, b: Arrays, names: Sequence[str] | None = None) -> bool:
    """Whether two dumps hold the same names, dtypes, shapes and bytes."""
    if names is None and a.keys() != b.keys():
        return False
    chosen = a.keys() if names is None else names
    return all((a[n].dtype, a[n].shape, a[n].tobytes()) == (b[n].dtype, b[n].shape, b[n].tobytes()) for n in chosen)


def moved(a: Arrays, b: Arrays, names: Sequence[str]) -> list[str]:
    """The names among `names` whose bits differ."""
    return [name for name in names if not same_bits(a, b, [name])]


def assert_near(actual: Mapping[str, Array], expected: Mapping[str, Array], tolerance: float = 1e-11) -> None:
    """Same names, and a relative L2 distance within the tolerance for each; tiny arrays are held to 1e-3 of it."""
    assert sorted(actual) == sorted(expected)
    errors = {
        name: float(np.linalg.norm(actual[name] - array)) / max(float(np.linalg.norm(array)), 1e-3)
        for name, array in expected.items()
    }
    off = [f"{name} by {error:.1e}" for name, error in errors.items() if not error <= tolerance]
    assert not off, f"off by more than {tolerance:.0e}: {', '.join(off)}"


def refused(*mentions: str) -> Any:
    """Expect a TlxError whose one line mentions all of these."""
    pattern = "".join(f"(?=.*{mention})" for mention in mentions) + ".*$"
    return pytest.raises(TlxError, match=rf"\A{pattern}")
