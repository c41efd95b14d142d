"""Where a framework's module may be divided: what its own code does between its modules, and what it may hide."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from support.backends import FRAMEWORKS, each_backend
from tlx.backend import Batch, ModelSpec, Preprocess, registry
from tlx.errors import TlxError

N = 4


def framework(backend: str) -> Any:
    registry.load(backend)  # it loads what OneFlow's wheel lacks
    return importlib.import_module(backend)


def network(fw: Any, forward: Any, **modules: Any) -> Any:
    """A module with these children and this forward pass."""

    class Net(fw.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for name, module in modules.items():
                setattr(self, name, module)

        def forward(self, x: Any) -> Any:
            return forward(self, x)

    return Net()


def pooled(self: Any, x: Any, fw: Any) -> Any:
    """As MobileNet V2 and DenseNet pool, and as GoogLeNet transforms its input."""
    x = fw.cat([x[:, channel].unsqueeze(1) * 0.5 for channel in range(3)], 1)
    return self.head(fw.flatten(fw.nn.functional.adaptive_avg_pool2d(self.conv(x), (1, 1)), 1))


def viewed(self: Any, x: Any, fw: Any) -> Any:
    return self.head(self.conv(x).relu().mean(dim=(2, 3)).view(-1, 6))


def activated(self: Any, x: Any, fw: Any) -> Any:
    """What is an activation before the boundary is one behind it too."""
    return self.act(self.head(self.act(self.conv(x)).flatten(2).mean(-1))).flatten(1)


def late(self: Any, x: Any, fw: Any) -> Any:
    """What the module holds last runs first."""
    return self.head(self.conv(self.first(x)).mean(dim=(2, 3)))


def scaled(self: Any, x: Any, fw: Any) -> Any:
    """A parameter that no child holds."""
    return self.head(self.conv(x * self.scale).mean(dim=(2, 3)))


class Divided:
    """A network of a user's own, whose head trains and what else is said."""

    def __init__(self, backend: str, forward: Any, trains: tuple[str, ...] = ("head.weight", "head.bias")) -> None:
        fw = framework(backend)
        nn = fw.nn
        modules = {"act": nn.ReLU(), "conv": nn.Conv2d(3, 6, 3), "head": nn.Linear(6, 2), "first": nn.Conv2d(3, 3, 1)}
        if forward is scaled:
            modules["scale"] = nn.Parameter(fw.ones(1))
        module = network(fw, lambda self, x: forward(self, x, fw), **modules)
        self.backend = registry.load(backend)
        self.model = self.backend.build(ModelSpec("own", 2, "head", module=module, image_size=8), "cpu", "float32")
        self.backend.set_phase(self.model, frozenset(trains), frozenset())
        rng, arrays = np.random.default_rng(0), self.backend.dump_arrays(self.model)
        arrays = {name: rng.standard_normal(array.shape).astype(array.dtype) for name, array in arrays.items()}
        self.backend.load_arrays(self.model, arrays)
        pixels = np.random.default_rng(0).integers(0, 256, (N, 3, 8, 8), dtype=np.uint8)
        self.batch = Batch(pixels, np.arange(N) % 2, np.arange(N), Preprocess(8))

    def logits(self, boundary: str = "") -> Any:
        batch = self.batch
        if boundary:
            whole = self.backend.put(self.model, batch)
            (features,) = self.backend.fetch([self.backend.features(self.model, whole, boundary)])
            batch = Batch(features, batch.labels, batch.indices, batch.preprocess, boundary=boundary)
        return self.backend.fetch([self.backend.logits(self.model, self.backend.put(self.model, batch))])[0]


@pytest.mark.parametrize("forward", [pooled, viewed, activated], ids=lambda forward: forward.__name__)
@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_a_pass_begins_at_the_head_whatever_the_code_before_it_expects(backend: str, forward: Any) -> None:
    """Pooling of vectors raises in PyTorch and ends the process in OneFlow."""
    own = Divided(backend, forward)
    assert own.backend.boundaries(own.model) == ("head",)
    for _ in range(2):
        assert np.array_equal(own.logits("head"), own.logits())
    assert forward is not activated or (own.logits() == 0).any()


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_what_trains_and_runs_before_the_boundary_is_not_left_out(backend: str) -> None:
    """It comes behind the boundary in the module, so the order of the modules does not tell."""
    own = Divided(backend, late, ("head.weight", "first.weight"))
    assert own.backend.boundaries(own.model) == ("head",)
    with pytest.raises(TlxError, match="runs before it"):
        own.logits("head")
    frozen = Divided(backend, late)
    assert np.array_equal(frozen.logits("head"), frozen.logits())


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_a_parameter_of_the_whole_that_trains_leaves_no_boundary(backend: str) -> None:
    own = Divided(backend, scaled, ("head.weight", "scale"))
    assert own.backend.boundaries(own.model) == ()
    assert Divided(backend, scaled).backend.boundaries(own.model) == ()


@pytest.mark.needs("torch")
def test_features_lie_in_memory_as_they_did() -> None:
    """BatchNorm, for one, sums in another order over channels last."""
    backend = registry.load("torch")
    model = backend.build(ModelSpec("resnet18", 2, "fc"), "cpu", "float32")
    backend.set_phase(model, frozenset(["layer4.0.bn1.weight"]), frozenset())
    pixels = np.random.default_rng(0).integers(0, 256, (N, 3, 32, 32), dtype=np.uint8)
    batch = Batch(pixels, np.zeros(N, np.int64), np.arange(N), Preprocess(32))
    boundary = "layer4.0.bn1"
    (features,) = backend.fetch([backend.features(model, backend.put(model, batch), boundary)])
    put = backend.put(model, Batch(features, batch.labels, batch.indices, batch.preprocess, boundary=boundary))
    assert put.images.stride() == (512, 1, 512, 512) and np.array_equal(put.images.numpy(), features)
