"""On the real frameworks: the head that strategy probe fits, and the neighbours of strategy knn, alike on both."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import tlx
from support.backends import FRAMEWORKS, each_backend
from support.fits import fits_of
from tlx.backend import ParamSpec
from tlx.backend.registry import load
from tlx.errors import RecipeError
from tlx.training.fit import find_head
from tlx.training.logistic import STRENGTHS

FIELDS: dict[str, Any] = {
    **{"model": "shufflenet_v2_x0_5", "weights": "none", "data": "digits", "classes": ("0", "3", "8")},
    **{"limit_train": 60, "limit_test": 30, "val_fraction": 0.25, "batch_size": 16, "precision": "float32"},
    "image_size": 32,
}
# The second's head is a convolution, which maps of 3 x 3 enter at this size, and a ReLU follows it.
MODELS = {"shufflenet_v2_x0_5": "fc", "squeezenet1_0": "classifier.1"}
SAMPLED = ["squeezenet1_0", pytest.param("shufflenet_v2_x0_5", marks=pytest.mark.thorough)]
SIZES = {"shufflenet_v2_x0_5": 32, "squeezenet1_0": 64}


@pytest.fixture(autouse=True)
def fewer_strengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlx.training.logistic.STRENGTHS", STRENGTHS[::11])


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return fits_of(monkeypatch)


def logits_of(result: Any, images: Any) -> Any:
    """What the module of a finished run gives for images, less their mean over the classes."""
    framework = importlib.import_module(result.backend)
    module = tlx.load_model(result.run_dir)
    with framework.no_grad():
        logits = module(framework.tensor(module.preprocess(images))).numpy()
    return logits - logits.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("model", SAMPLED)
@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_the_logits_of_the_network_are_those_of_the_fit(
    backend: str, model: str, tmp_path: Path, fitted: list[Any]
) -> None:
    """From the pixels of the training images on."""
    fields = {**FIELDS, "backend": backend, "model": model, "image_size": SIZES[model], "strategy": "probe"}
    result = tlx.run(fields, out=str(tmp_path / "run"), quiet=True)
    ((features, linear),) = fitted
    keys = ("classes", "limit_train", "val_fraction")
    data = tlx.load_data("digits", **{name: FIELDS[name] for name in keys})
    images = np.stack([np.moveaxis(np.asarray(data.train.open(i)), -1, 0) for i in range(len(data.train))])
    expected = linear.logits(features)
    difference = np.abs(logits_of(result, images) - expected).max()
    assert difference < 2e-5 * max(1, np.abs(expected).max()) and np.abs(expected).max() > 0.1
    cuts = any(note.startswith("a ReLU follows the head") for note in result.notes)
    assert cuts == (model == "squeezenet1_0")
    if model != "squeezenet1_0":  # the smaller; the same bits come again
        return
    again = tlx.run(fields, out=str(tmp_path / "again"), quiet=True)
    files = [r.run_dir / "model.safetensors" for r in (result, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.needs(*FRAMEWORKS)
@pytest.mark.parametrize("model", SAMPLED)
@pytest.mark.parametrize("strategy", ["probe", "knn"])
def test_both_frameworks_give_the_same_and_read_each_others_runs(strategy: str, model: str, tmp_path: Path) -> None:
    fields = {**FIELDS, "model": model, "image_size": SIZES[model], "strategy": strategy, "precision": "float64"}
    results = [tlx.run(fields, backend=name, out=str(tmp_path / name), quiet=True) for name in FRAMEWORKS]
    one, other = results
    assert one.chosen == other.chosen and one.test_accuracy == other.test_accuracy > 0.4
    assert one.val_accuracy == other.val_accuracy
    if strategy == "probe":
        heads = [load_file(r.run_dir / "model.safetensors") for r in results]
        for name in ("weight", "bias"):
            arrays = [head[f"{MODELS[model]}.{name}"] for head in heads]
            np.testing.assert_allclose(arrays[0], arrays[1], rtol=1e-6, atol=1e-6)
    else:
        banks = [load_file(r.run_dir / "neighbors.safetensors") for r in results]
        np.testing.assert_allclose(banks[0]["features"], banks[1]["features"], rtol=0, atol=1e-12)
        assert np.array_equal(banks[0]["labels"], banks[1]["labels"])
    for result, backend in zip(results, reversed(FRAMEWORKS), strict=True):
        evaluation = tlx.evaluate(result.run_dir, backend=backend, quiet=True)
        assert evaluation["test_accuracy"] == result.test_accuracy
    images = tlx.load_data("digits", classes=FIELDS["classes"], limit_test=5).test
    rows = [tlx.predict(one.run_dir, images, backend=name, top=3, quiet=True) for name in FRAMEWORKS]
    for first, second in zip(*rows, strict=True):
        assert first["probability"] == pytest.approx(second["probability"], abs=1e-6)


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_the_precision_that_auto_takes_serves_too(backend: str, tmp_path: Path) -> None:
    """bfloat16, where the processor has it: logits are then as near to those of the fit as its numbers are."""
    precision = load(backend).capabilities().precisions["cpu"][0]
    result = tlx.run(
        {**FIELDS, "precision": precision}, backend=backend, strategy="probe", out=str(tmp_path / "a"), quiet=True
    )
    assert tlx.evaluate(result.run_dir, quiet=True)["test_accuracy"] == result.test_accuracy > 0.4


def network(backend: str, **options: Any) -> Any:
    """A module of one's own, with a head in the middle of its code."""
    if backend == "oneflow":
        importlib.import_module("tlx_oneflow.bootstrap")  # it loads what the wheel lacks
    nn = importlib.import_module(f"{backend}.nn")

    class Net(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, bias: bool = True, after: bool = False) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.pool = nn.MaxPool2d(4)
            self.drop = nn.Dropout(0.5)
            self.last = nn.Linear(8 * 16, 3, bias=bias)
            self.after = nn.Sigmoid() if after else nn.Identity()

        def forward(self, x: Any) -> Any:
            return self.after(self.last(self.drop(self.pool(self.conv(x).relu()).flatten(1))))

    return Net(**options)


OWN = {"image_size": 16, "weights": "own"}


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
@pytest.mark.parametrize("strategy", ["probe", "knn"])
def test_a_module_of_ones_own_serves_and_stays_as_it_was(backend: str, strategy: str, tmp_path: Path) -> None:
    for number, bias in enumerate((True, False)):
        net = network(backend, bias=bias)
        before = {name: np.array(value.detach().numpy(), copy=True) for name, value in net.state_dict().items()}
        fields = {**FIELDS, **OWN, "strategy": strategy, "backend": backend}
        result = tlx.run(fields, model=net, head="last", out=str(tmp_path / f"{number}"), quiet=True)
        assert result.test_accuracy > 0.7
        evaluation = tlx.evaluate(result.run_dir, quiet=True, model=net)
        assert evaluation["test_accuracy"] == result.test_accuracy
        assert all(np.array_equal(value.detach().numpy(), before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_a_module_that_changes_the_output_of_its_head_is_refused(backend: str, tmp_path: Path) -> None:
    fields = {**FIELDS, **OWN, "strategy": "probe", "backend": backend}
    net = network(backend, after=True)
    with pytest.raises(RecipeError, match="the model's logits are not what its head 'last' gives on average"):
        tlx.run(fields, model=net, head="last", out=str(tmp_path / "a"), quiet=True)
    assert not list(tmp_path.iterdir())


def spec(name: str, *shape: int, aliases: tuple[str, ...] = ()) -> ParamSpec:
    module, _, leaf = name.rpartition(".")
    role: Any = leaf if leaf in ("weight", "bias") else "weight"
    return ParamSpec(name, shape, "float32", role, module, aliases)


@pytest.mark.parametrize(
    "specs",
    [
        [spec("fc.weight", 3, 8, 3, 3), spec("fc.bias", 3)],
        [spec("fc.0.weight", 8, 8), spec("fc.0.bias", 8), spec("fc.2.weight", 3, 8), spec("fc.2.bias", 3)],
        [spec("fc.weight", 3, 8), spec("fc.bias", 3), spec("fc.scale", 1)],
        [spec("fc.weight", 3, 8, aliases=("embedding.weight",))],
        [spec("fc.bias", 3)],
        [],
    ],
)
def test_a_head_that_is_no_linear_layer_of_its_own_is_refused(specs: list[ParamSpec]) -> None:
    with pytest.raises(RecipeError, match="strategy 'probe' needs a head of one linear layer or 1 x 1 convolution"):
        find_head(specs, "probe")
