"""Dropout in a run: a mask for each call, the same again where gradient checkpointing computes a part again."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import tlx
from support.backends import FRAMEWORKS, each_backend
from support.run_files import reseal, state_file
from tlx.backend import Batch, ModelSpec, Preprocess, registry
from tlx.errors import BackendError, TlxError

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
DATA = {"train": (IMAGES, [i % 3 for i in range(16)]), "test": (IMAGES[:8], [i % 3 for i in range(8)])}


def network(backend: str, forward: Callable[[Any, Any], Any], **layers: Any) -> Any:
    """Three linear layers, whose forward pass is the given one."""
    if backend == "oneflow":
        importlib.import_module("tlx_oneflow.bootstrap")  # it loads what the wheel lacks
    nn = importlib.import_module(f"{backend}.nn")

    class Net(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.fc = nn.Linear(192, 40), nn.Linear(40, 40), nn.Linear(40, 3)
            self.drop = nn.Dropout(0.5)
            for name, layer in layers.items():
                setattr(self, name, layer)

        def forward(self, x: Any) -> Any:
            return forward(self, x.flatten(1))

    return Net()


def built(backend: str, module: Any, image_size: int = 8) -> tuple[Any, Any, Any]:
    adapter = registry.load(backend)
    spec = ModelSpec("net", 3, "fc", module=module, image_size=image_size)
    model: Any = adapter.build(spec, "cpu", "float64")
    everything = frozenset(s.name for s in adapter.param_specs(model) if s.role != "statistic")
    adapter.set_phase(model, everything, frozenset())
    pixels = np.ascontiguousarray(IMAGES[:8].transpose(0, 3, 1, 2))
    batch = Batch(pixels, np.arange(8) % 3, np.arange(8), Preprocess(8), (3, 5, 0))
    return adapter, model, adapter.put(model, batch)


def gradients(backend: Any, model: Any, batch: Any) -> dict[str, Any]:
    probe = backend.probe(model)
    probe.set_gradients({})
    backend.backward(model, batch)
    result: dict[str, Any] = probe.gradients()
    return result


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_each_call_of_one_dropout_has_a_mask_of_its_own(backend: str) -> None:
    kept: list[Any] = []

    def forward(net: Any, x: Any) -> Any:
        ones = x[:, :40] * 0 + 1
        kept.extend(np.array((net.drop(ones) if first else net.drop(net.drop(ones))).numpy() > 0) for first in (1, 0))
        return net.fc(net.fc2(net.fc1(x)))

    adapter, model, batch = built(backend, network(backend, forward))
    kept.clear()
    for _ in range(2):
        adapter.backward(model, batch)
    first, both, again, _ = kept
    assert abs(first.mean() - 0.5) < 0.15 and abs(both.mean() - 0.25) < 0.15
    assert np.array_equal(first, again), "the same batch has the same masks"
    assert model.redrawn == ("drop",)


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_a_dropout_in_a_module_without_parameters_acts_beside_what_trains(backend: str) -> None:
    nn = importlib.import_module(f"{backend}.nn") if registry.load(backend) else None
    assert nn is not None
    drops = nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.5))
    module = network(backend, lambda net, x: net.fc(net.drops(net.fc2(net.fc1(x)))), drops=drops)
    adapter, model, batch = built(backend, module)
    losses = [float(adapter.fetch(adapter.backward(model, batch))[0])]
    evaluated = float(adapter.fetch(adapter.evaluate(model, batch))[0])
    adapter.set_phase(model, frozenset({"fc.weight"}), frozenset())
    losses.append(float(adapter.fetch(adapter.backward(model, batch))[0]))
    assert losses[0] == losses[1] != evaluated and model.redrawn == ("drops.1",)


def recomputed(net: Any, x: Any, checkpoint: Callable[..., Any], calls: int) -> Any:
    x = checkpoint(lambda x: net.drop(net.fc1(x).relu()), x)
    return net.fc(checkpoint(lambda x: net.drop(net.fc2(x).relu()) if calls == 2 else net.fc2(x).relu(), x))


def plainly(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("calls", [1, 2])
def test_gradient_checkpointing_draws_the_same_masks_again(calls: int) -> None:
    """Several calls cannot be told apart there, so these drop the same units, as the trial finds out."""
    from torch.utils.checkpoint import checkpoint

    again = lambda function, *args: checkpoint(function, *args, use_reentrant=False)  # noqa: E731
    module = network("torch", lambda net, x: recomputed(net, x, plainly, calls))
    backend, model, batch = built("torch", module)
    saving = network("torch", lambda net, x: recomputed(net, x, again, calls))
    saving.load_state_dict(module.state_dict())
    _, other, _ = built("torch", saving)
    model.masks.together |= other.masks.together
    expected, found = gradients(backend, model, batch), gradients(backend, other, batch)
    assert len(other.masks.together) == calls - 1 and other.redrawn == ()
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


@pytest.mark.needs("torch")
def test_calls_that_cannot_be_told_apart_are_an_error_where_the_module_was_not_tried() -> None:
    from torch.utils.checkpoint import checkpoint

    again = lambda function, *args: checkpoint(function, *args, use_reentrant=False)  # noqa: E731
    saving = network("torch", lambda net, x: recomputed(net, x, again, 2))
    backend, model, batch = built("torch", saving, image_size=0)
    with pytest.raises(BackendError, match="dropout 'drop' is called 2 times in a pass and again in the backward pass"):
        backend.backward(model, batch)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("calls", [1, 2])
def test_a_run_that_an_earlier_tlx_saved_does_not_go_on_with_other_masks(calls: int, tmp_path: Path) -> None:
    module = network("torch", lambda net, x: recomputed(net, x, plainly, calls))
    fields: dict[str, Any] = {"image_size": 8, "val_fraction": 0, "batch_size": 8, "augment": "none", "quiet": True}
    run = tlx.run(
        data=DATA,
        model=module,
        head="fc",
        backend="torch",
        strategy="full",
        epochs=1,
        out=str(tmp_path / "run"),
        **fields,
    ).run_dir
    state = state_file(run)
    assert state is not None
    with safe_open(state, "np") as file:
        facts = json.loads(file.metadata()["tlx"])
    assert facts["version"] == 3
    save_file(load_file(state), state, {"tlx": json.dumps({**facts, "version": 2})})
    reseal(run)
    if calls == 1:
        assert tlx.run(resume=run, data=DATA, model=module, epochs=2, quiet=True).epochs_run == 2
        return
    with pytest.raises(TlxError, match="is of an earlier tlx, which drew other masks for dropout 'drop'"):
        tlx.run(resume=run, data=DATA, model=module, epochs=2, quiet=True)
