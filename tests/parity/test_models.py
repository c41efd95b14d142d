"""Every model of the zoo computes the same on both stacks: the forward pass, and one training step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.parity.test_two_stacks import STACKS, distance, pytestmark  # noqa: F401
from tlx import registry
from tlx.backend import Batch, Hyper, ModelSpec, OptimizerSpec, Preprocess
from tlx.initial import initial_arrays
from tlx.zoo import ARCHITECTURES, Architecture

ZOO = [arch for arch in ARCHITECTURES.values() if arch.imagenet]


def computed(stack: str, arch: Architecture) -> tuple[Any, ...]:
    """Descriptions, eval logits, features, loss, and all values after one step of plain SGD at rate 1."""
    backend = registry.load(stack)
    model = backend.build(ModelSpec(arch.name, 7, arch.head), "cpu", "float64")
    specs = backend.param_specs(model)
    backend.load_arrays(model, initial_arrays(specs, arch, "none", 0))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 3, 48, 48), dtype=np.uint8)
    batch = backend.put(model, Batch(images, rng.integers(0, 7, 6), np.arange(6), Preprocess(48)))
    logits, features = backend.fetch([backend.logits(model, batch), backend.features(model, batch)])
    names = tuple(spec.name for spec in specs if spec.role != "statistic")
    optimizer = backend.optimizer(model, OptimizerSpec("sgd"), [names])
    backend.set_phase(model, frozenset(names), frozenset(spec.module for spec in specs if spec.role == "statistic"))
    backend.set_hyper(optimizer, [Hyper(1.0, 0.0)])
    loss = backend.fetch(backend.backward(model, batch))[0]
    backend.update(model, optimizer)
    return specs, logits, features, loss, backend.dump_arrays(model)


@pytest.mark.parametrize("arch", ZOO, ids=lambda arch: arch.name)
def test_both_stacks_compute_the_same(arch: Architecture) -> None:
    assert all(arch.name in registry.load(stack).capabilities().models for stack in STACKS)
    reference, candidate = (computed(stack, arch) for stack in STACKS)
    assert reference[0] == candidate[0]
    for a, b in zip(reference[1:4], candidate[1:4], strict=True):
        assert np.isfinite(a).all() and distance(a, b) <= 1e-10
    start = initial_arrays(reference[0], arch, "none", 0)
    for name, value in reference[4].items():
        # The step at rate 1 shows the gradient itself; where it is zero, both must not have moved.
        assert distance(value - start[name], candidate[4][name] - start[name]) <= 1e-8, name
    assert arch.stage_of(arch.head) == "head" and all(arch.stage_of(spec.module) for spec in reference[0])
