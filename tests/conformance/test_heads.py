"""Heads of several layers: by the recipe's `hidden` and `dropout`, or a module of the user's own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import tlx
from support.backends import FRAMEWORKS, each_backend
from support.features import outcome
from tlx.errors import TlxError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
DATA = {"train": (IMAGES, [i % 3 for i in range(12)]), "test": (IMAGES[:9], [i % 3 for i in range(9)])}
FIELDS: dict[str, Any] = {
    "data": DATA,
    "model": "shufflenet_v2_x0_5",
    "weights": "none",
    "image_size": 32,
    "val_fraction": 0,
    "batch_size": 6,
    "epochs": 2,
    "augment": "none",
    "precision": "float64",
    "strategy": "feature_extract",
    "lr": 0.05,
    "feature_cache": "run",
    "quiet": True,
}
HIDDEN: dict[str, Any] = {"hidden": 16, "dropout": 0.25}


def framework(backend: str) -> Any:
    if backend == "oneflow":
        importlib.import_module("tlx_oneflow.bootstrap")  # it loads what the wheel lacks
    return importlib.import_module(backend)


@pytest.mark.needs(*FRAMEWORKS)
@pytest.mark.parametrize(("model", "head"), [("shufflenet_v2_x0_5", "fc"), ("squeezenet1_1", "classifier.1")])
def test_both_backends_train_a_hidden_head_alike_and_open_each_others(model: str, head: str, tmp_path: Path) -> None:
    runs = [
        tlx.run(**{**FIELDS, **HIDDEN, "model": model}, backend=name, out=str(tmp_path / name)) for name in FRAMEWORKS
    ]
    arrays = [load_file(run.run_dir / "model.safetensors") for run in runs]
    assert [name for name in arrays[0] if name.startswith(head)] == [
        f"{head}.{layer}.{leaf}" for layer in (0, 3) for leaf in ("bias", "weight")
    ]
    for name, array in arrays[0].items():
        assert np.linalg.norm(array - arrays[1][name]) <= 1e-9 * np.linalg.norm(array), name
    probabilities = [
        tlx.predict(run.run_dir, IMAGES[:2], backend, quiet=True)[0]["probability"]
        for run in runs
        for backend in FRAMEWORKS
    ]
    assert np.ptp(probabilities) < 1e-9


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_a_hidden_head_is_the_head_in_every_respect(backend: str, tmp_path: Path) -> None:
    model = {"model": "squeezenet1_1", "backend": backend, "precision": "float32"}
    fields = {**FIELDS, **model, "hidden": (16, 8), "dropout": 0.25}
    cached = tlx.run(**fields, out=str(tmp_path / "a"))
    plainly = tlx.run(**{**fields, "feature_cache": "off"}, out=str(tmp_path / "b"))
    assert outcome(cached) == outcome(plainly)
    assert cached.trainable_parameters == 512 * 16 + 16 + 16 * 8 + 8 + 8 * 3 + 3
    assert [type(layer).__name__ for layer in cached.model.classifier[1]] == [
        *("Conv2d", "ReLU", "Dropout", "Conv2d", "ReLU", "Dropout", "Conv2d")
    ]
    assert tlx.evaluate(cached.run_dir, data=DATA, quiet=True)["test_accuracy"] == cached.test_accuracy
    assert len(tlx.load_model(cached.run_dir).classifier[1]) == 7
    assert tlx.Recipe.from_toml(cached.run_dir / "recipe.toml", {"data": DATA}).hidden == (16, 8)
    # Weights of a run bring its backbone, whatever its head was.
    onwards = {**fields, "hidden": None, "weights": str(cached.run_dir), "epochs": 1}
    again = tlx.run(**onwards, out=str(tmp_path / "c"))
    old, new = (load_file(run.run_dir / "model.safetensors") for run in (cached, again))
    assert np.array_equal(old["features.0.weight"], new["features.0.weight"])
    assert "classifier.1.1.weight" in new


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_a_head_may_be_a_module(backend: str, tmp_path: Path) -> None:
    nn = framework(backend).nn
    head = nn.Sequential(nn.Conv2d(512, 8, 1), nn.BatchNorm2d(8), nn.PReLU(), nn.Conv2d(8, 3, 1))
    fields = {**FIELDS, "model": "squeezenet1_1", "backend": backend, "precision": "float32", "head": head}
    cached = tlx.run(**fields, out=str(tmp_path / "a"))
    assert outcome(cached) == outcome(tlx.run(**{**fields, "feature_cache": "off"}, out=str(tmp_path / "b")))
    assert cached.trainable_parameters == 512 * 8 + 8 + 16 + 1 + 8 * 3 + 3
    assert 'head = "<Sequential>"' in (cached.run_dir / "recipe.toml").read_text()
    assert tlx.evaluate(cached.run_dir, data=DATA, head=head, quiet=True)["test_accuracy"] == cached.test_accuracy
    assert tlx.predict(cached.run_dir, IMAGES[:1], head=head, quiet=True)
    assert tlx.load_model(cached.run_dir, head=head).classifier[1][2].weight.shape == (1,)
    with pytest.raises(TlxError, match=r"head is '<Sequential>': it was a Python object; pass it again, as head="):
        tlx.load_model(cached.run_dir)
    with pytest.raises(TlxError, match=r"returns \[2, 5\] instead of logits \[2, 3\]"):
        tlx.run(**{**fields, "head": nn.Conv2d(512, 5, 1)}, out=str(tmp_path / "c"))


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_a_module_of_ones_own_takes_both_kinds_of_heads(backend: str, tmp_path: Path) -> None:
    nn = framework(backend).nn
    net = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.Flatten(), nn.Sequential(nn.Linear(64, 9), nn.Linear(9, 3)))
    fields = {**FIELDS, "backend": backend, "model": net, "weights": None, "strategy": "full", "epochs": 1}
    given = tlx.run(**fields, head={"2": nn.Sequential(nn.Linear(64, 3))}, out=str(tmp_path / "a"))
    assert [name for name, _ in given.model.named_parameters()][2:] == ["2.0.weight", "2.0.bias"]
    chain = tlx.run(**fields, **HIDDEN, head="2.1", out=str(tmp_path / "b"))
    assert [tuple(p.shape) for p in chain.model[2][1].parameters()] == [(16, 9), (16,), (3, 16), (3,)]
    with pytest.raises(TlxError, match=r"it is a Sequential. Did you mean .*Or replace it whole: head={'2': module}"):
        tlx.run(**fields, head="2", out=str(tmp_path / "c"))
