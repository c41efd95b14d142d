"""A module that a user wrote: trained, saved, evaluated, resumed, and equal on both backends."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import tlx
from support.backends import FRAMEWORKS, each_backend
from support.finished_runs import accuracy
from tlx.errors import TlxError

FIELDS: dict[str, Any] = {
    "strategy": "scratch",
    "data": "digits",
    "image_size": 16,
    "limit_train": 400,
    "limit_test": 100,
    "batch_size": 32,
    "optimizer": "adam",
    "lr": 0.003,
    "augment": "none",
    "quiet": True,
}


def network(backend: str, outputs: int = 10) -> Any:
    """Three convolutions, written as the user of that framework would."""
    if backend == "oneflow":
        importlib.import_module("tlx_oneflow.bootstrap")  # it loads what the wheel lacks
    nn = importlib.import_module(f"{backend}.nn")

    class Net(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
            self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
            self.conv3 = nn.Conv2d(16, 32, 3, padding=1)
            self.pool = nn.MaxPool2d(2)
            self.classifier = nn.Sequential(nn.Dropout(0.25), nn.Linear(32 * 4, outputs))

        def forward(self, x: Any) -> Any:
            for conv in (self.conv1, self.conv2, self.conv3):
                x = self.pool(conv(x).relu())
            return self.classifier(x.flatten(1))

    return Net()


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_a_small_network_learns_from_scratch_with_adam(backend: str, tmp_path: Path) -> None:
    net = network(backend, outputs=3)
    before = [np.array(p.detach().numpy(), copy=True) for p in net.parameters()]
    result = tlx.run(backend=backend, model=net, head="classifier.1", epochs=6, out=str(tmp_path / "a"), **FIELDS)
    assert result.test_accuracy is not None and result.test_accuracy > 0.8
    assert all(np.array_equal(old, p.detach().numpy()) for old, p in zip(before, net.parameters(), strict=True))
    assert net.classifier[1].out_features == 3 and result.model.classifier[1].out_features == 10
    found = tlx.evaluate(result.run_dir, model=network(backend), quiet=True)
    assert found["test_accuracy"] == result.test_accuracy
    test = tlx.load_data("digits", limit_test=100).test
    assert test is not None
    predictions = tlx.predict(result.run_dir, test, model=network(backend))
    assert accuracy(predictions, test.labels) == result.test_accuracy
    with pytest.raises(TlxError, match=r"model is '<Net>'.*pass it again, as model="):
        tlx.evaluate(result.run_dir, quiet=True)


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_its_own_values_are_kept_but_for_the_head(backend: str, tmp_path: Path) -> None:
    net = network(backend)
    fields = {**FIELDS, "strategy": "feature_extract", "epochs": 1}
    result = tlx.run(backend=backend, model=net, head="classifier.1", out=str(tmp_path / "a"), **fields)
    assert result.recipe.weights == "own" and result.trainable_parameters == 32 * 4 * 10 + 10
    values = load_file(result.run_dir / "model.safetensors")
    for name, param in net.named_parameters():
        assert np.array_equal(values[name], param.detach().numpy()) == (not name.startswith("classifier"))


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_its_stages_train_one_by_one(backend: str, tmp_path: Path) -> None:
    fields = {**FIELDS, "strategy": "partial", "stages": ("conv3",), "backbone_lr": 0.001, "epochs": 1}
    net = network(backend)
    result = tlx.run(backend=backend, model=net, head="classifier.1", out=str(tmp_path / "a"), **fields)
    values = load_file(result.run_dir / "model.safetensors")
    moved = {name for name, p in net.named_parameters() if not np.array_equal(values[name], p.detach().numpy())}
    assert moved == {"conv3.weight", "conv3.bias", "classifier.1.weight", "classifier.1.bias"}


@pytest.mark.needs(*FRAMEWORKS)
def test_both_stacks_train_it_alike(tmp_path: Path) -> None:
    runs = [
        tlx.run(
            **{**FIELDS, "precision": "float64", "epochs": 2},
            backend=backend,
            model=network(backend),
            head="classifier.1",
            out=str(tmp_path / backend),
        )
        for backend in FRAMEWORKS
    ]
    values = [load_file(run.run_dir / "model.safetensors") for run in runs]
    for name, array in values[0].items():
        assert np.linalg.norm(array - values[1][name]) <= 1e-9 * np.linalg.norm(array), name
    assert runs[0].test_accuracy == runs[1].test_accuracy


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "say which layer is its head, as head='fc'"),
        ({"head": "classifier.2"}, "no such module. Did you mean 'classifier.1'"),
        ({"head": "classifier.0"}, "but it is a Dropout. Did you mean 'classifier.1'"),
        ({"head": "classifier.1", "weights": "imagenet"}, "the model is your own; use own, none, a file"),
    ],
)
def test_a_mistake_is_one_line(backend: str, fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    options = {**FIELDS, "strategy": "full", **fields}
    with pytest.raises(TlxError) as error:
        tlx.run(backend=backend, model=network(backend), out=str(tmp_path / "a"), **options)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


@pytest.mark.needs(*FRAMEWORKS)
def test_a_module_of_the_other_framework_is_named(tmp_path: Path) -> None:
    with pytest.raises(TlxError, match=r"not a module of torch; choose the backend it is made with"):
        tlx.run(backend="torch", model=network("oneflow"), head="conv1", out=str(tmp_path / "a"), **FIELDS)


def broken(backend: str, fault: str) -> Any:
    """A module that cannot be trained as it is."""
    nn = importlib.import_module(f"{backend}.nn")

    class Broken(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(99 if fault == "size" else 3 * 16 * 16, 12)
            self.head = nn.Linear(12, 10)

        def forward(self, x: Any) -> Any:
            x = self.body(x.flatten(1))
            return self.head(x)[:, :7] if fault == "shape" else self.head(x)

    return Broken()


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("shape", r"returns \[2, 7\] instead of logits \[2, 10\]; is its head its last layer"),
        ("size", r"cannot run the model on \[2, 3, 16, 16\] at 'body': [^\n]*99[^\n]*$"),
    ],
)
def test_a_module_that_cannot_be_trained_is_refused(backend: str, fault: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(TlxError, match=said):
        tlx.run(backend=backend, model=broken(backend, fault), head="head", out=str(tmp_path / "a"), **FIELDS)


def causal(backend: str, bound: float = -math.inf) -> Any:
    """Attention of each patch to those before it, by a mask that is a buffer."""
    if backend == "oneflow":
        importlib.import_module("tlx_oneflow.bootstrap")
    fw = importlib.import_module(backend)
    nn = importlib.import_module(f"{backend}.nn")

    class Causal(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.query, self.key = nn.Conv2d(3, 8, 8, stride=8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.register_buffer("mask", fw.tensor(np.triu(np.full((4, 4), bound, np.float32), 1)))
            self.head = nn.Linear(8, 10)

        def forward(self, x: Any) -> Any:
            x = self.patches(x).flatten(2).transpose(1, 2)
            weights = fw.softmax(fw.matmul(self.query(x), self.key(x).transpose(1, 2)) + self.mask, dim=-1)
            return self.head(fw.matmul(weights, x).mean(dim=1))

    return Causal()


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_a_mask_may_hold_infinities(backend: str, tmp_path: Path) -> None:
    """Also in the moving average, in what is saved and resumed, and in a checkpoint."""
    fields: dict[str, Any] = {**FIELDS, "strategy": "full", "limit_train": 100, "val_fraction": 0.0, "ema": 0.9}
    nets = {name: causal(backend, bound) for name, bound in (("infinite", -math.inf), ("finite", -1e30))}
    for name, value in nets["infinite"].state_dict().items():
        if name != "mask":
            nets["finite"].state_dict()[name].data.copy_(value)
    losses = {}
    for name, net in nets.items():
        out = tmp_path / name
        tlx.run(backend=backend, model=net, head="head", epochs=1, out=str(out), **fields)
        result = tlx.run(resume=str(out), model=net, epochs=2, quiet=True)
        losses[name] = [epoch["train_loss"] for epoch in result.history]
        saved = load_file(out / "model.safetensors")
        assert np.array_equal(saved["mask"], net.mask.numpy()) and np.isfinite(saved["query.weight"]).all()
        weights = str(out / "model.safetensors")
        tlx.run(backend=backend, model=net, head="head", epochs=1, weights=weights, out=f"{out}-again", **fields)
    assert losses["infinite"] == losses["finite"]


@pytest.mark.needs("torch", "oneflow")
def test_masks_with_infinities_are_compared() -> None:
    fields: dict[str, Any] = {"head": "head", "image_size": 16, "quick": True}
    reference, equal, other = causal("torch"), causal("oneflow"), causal("torch", -1.0)
    other.load_state_dict({**reference.state_dict(), "mask": other.mask})
    assert tlx.parity(reference=reference, candidate=equal, copy_weights=True, **fields).verdict.name == "EQUAL"
    report = tlx.parity(reference=reference, candidate=other, **fields)
    assert report.verdict.name == "DIFFERENT" and "mask" in report.first


@pytest.mark.parametrize("backend", each_backend("torch"))
def test_a_module_with_a_weight_that_is_not_finite_is_refused(backend: str, tmp_path: Path) -> None:
    net = network(backend)
    net.conv2.weight.data[0, 0, 0, 0] = float("nan")
    fields: dict[str, Any] = {**FIELDS, "strategy": "full", "precision": "float32", "head": "classifier.1"}
    with pytest.raises(TlxError, match=r"'conv2\.weight' of the Net holds numbers that are not finite"):
        tlx.run(backend=backend, model=net, out=str(tmp_path / "run"), **fields)
