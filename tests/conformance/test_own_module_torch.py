"""What people hand over of PyTorch: wrapped, compiled, parametrized, lazy, under no_grad."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.backends import skip_module_without
from support.features import outcome
from tlx.errors import TlxError

skip_module_without("torch")

import torch
from torch import nn
from torch.nn.utils import parametrizations

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
FIELDS: dict[str, Any] = {
    "data": {"train": (IMAGES, [i % 2 for i in range(16)]), "test": (IMAGES[:4], [0, 1, 0, 1])},
    "head": "4",
    "image_size": 8,
    "val_fraction": 0,
    "batch_size": 4,
    "epochs": 1,
    "augment": "none",
    "precision": "float32",
    "strategy": "full",
    "backend": "torch",
}


def network(outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, outputs))


def run(net: nn.Module, out: Path, **fields: Any) -> Any:
    return tlx.run(**{**FIELDS, "model": net, "out": str(out), "quiet": True, **fields})


def weights(result: Any) -> dict[str, bytes]:
    values: dict[str, bytes] = outcome(result)[2]
    return values


@pytest.mark.parametrize(
    ("wrap", "kind"),
    [
        pytest.param(torch.compile, "OptimizedModule", marks=pytest.mark.slow),  # it takes long to import
        (nn.DataParallel, "DataParallel"),
    ],
)
def test_a_wrapped_module_trains_as_the_one_in_it(
    wrap: Callable[[nn.Module], nn.Module], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = network()
    wrapped = run(wrap(net), tmp_path / "a", quiet=False)
    assert f"note: model is a {kind}; the Sequential in it is used" in capsys.readouterr().err
    assert weights(wrapped) == weights(run(net, tmp_path / "b"))


def lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(2))


def script() -> nn.Module:
    return torch.jit.script(network())


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(network(), dtype=torch.qint8)  # type: ignore[no-untyped-call, no-any-return]


def without_values() -> nn.Module:
    return network().to("meta")


def parametrized_head() -> nn.Module:
    net = network(7)
    parametrizations.weight_norm(net[4])
    return net


def old_normed_head() -> nn.Module:
    net = network(7)
    nn.utils.weight_norm(net[4])
    return net


def whole_parameter() -> nn.Module:
    net = network()
    net.steps = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)
    return net


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lazy, "1.weight of Sequential has no shape yet .a lazy layer.; call the module once on a batch"),
        (script, "is a ScriptModule, whose layers are fixed; pass the module it came from"),
        (quantized, "4 is quantized, and so cannot train; pass the module before quantization"),
        (without_values, "0.weight of Sequential has no values .device meta.; load its weights first"),
        (parametrized_head, "head '4' has 7 outputs, and is no plain layer .*ParametrizedLinear.*head={'4': module}"),
        (old_normed_head, "head '4' has 7 outputs, and is no plain layer"),
        (whole_parameter, "parameter 'steps' is torch.int64, which cannot train; make it a buffer"),
    ],
)
def test_what_cannot_train_is_one_line(make: Callable[[], nn.Module], message: str, tmp_path: Path) -> None:
    with pytest.raises(TlxError, match=message) as error:
        run(make(), tmp_path / "a")
    assert "\n" not in str(error.value) and not (tmp_path / "a").exists()


def weight_norm() -> nn.Module:
    net = network()
    parametrizations.weight_norm(net[0])
    return net


def spectral_norm() -> nn.Module:
    net = network()
    parametrizations.spectral_norm(net[0])
    return net


def old_weight_norm() -> nn.Module:
    net = network()
    nn.utils.weight_norm(net[0])
    return net


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("strategy", ["full", "scratch"])
@pytest.mark.parametrize("make", [weight_norm, spectral_norm, old_weight_norm])
def test_parametrized_layers_keep_their_values_and_train(
    make: Callable[[], nn.Module], strategy: str, tmp_path: Path
) -> None:
    net = make()
    net(torch.ones(2, 3, 8, 8))
    result = run(net, tmp_path / "a", strategy=strategy)
    assert np.isfinite(result.history[-1]["train_loss"])
    assert tlx.evaluate(result.run_dir, data=FIELDS["data"], model=net, quiet=True)["test_accuracy"] >= 0
    moved = {n for n, p in result.model.named_parameters() if not torch.equal(p, dict(net.named_parameters())[n])}
    assert moved == {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize("cast", ["half", "double", "bfloat16"])
def test_a_module_of_another_dtype_is_cast_to_the_runs(cast: str, tmp_path: Path) -> None:
    result = run(getattr(network(), cast)(), tmp_path / "a")
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}


def test_a_run_works_under_no_grad_and_is_refused_under_inference_mode(tmp_path: Path) -> None:
    net = network()
    plain = run(net, tmp_path / "a")
    with torch.no_grad():
        assert weights(run(net, tmp_path / "b")) == weights(plain)
    with torch.inference_mode():
        assert tlx.predict(plain.run_dir, IMAGES[:1], model=net, quiet=True)
        made_there = network()
        with pytest.raises(TlxError, match=r"nothing can train under torch.inference_mode\(\); call tlx outside of it"):
            run(net, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    run(made_there, tmp_path / "d")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_only_a_network_that_needs_it_leaves_channels_last(
    precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if precision not in tlx.backend.registry.load("torch").capabilities().precisions["cpu"]:
        pytest.skip(f"this processor has no native {precision}")

    class View(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(x.size(0), -1)

    net = network()
    assert (
        run(net, tmp_path / "a", precision=precision).model[0].weight.is_contiguous(memory_format=torch.channels_last)
    )
    net[3] = View()
    result = run(net, tmp_path / "b", precision=precision, quiet=False)
    assert result.model[0].weight.is_contiguous()
    assert "its tensors are contiguous, a little slower than channels last, with which" in capsys.readouterr().err


def test_randomness_that_cannot_be_seeded_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Noise(nn.Module):
        generator = torch.Generator()

        def __deepcopy__(self, memo: Any) -> Noise:
            return Noise()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand(x.shape, generator=self.generator) if self.training else x

    net = network()
    net[1] = Noise()
    run(net, tmp_path / "a", quiet=False)
    assert "so its run cannot be repeated bit for bit" in capsys.readouterr().err


def test_the_random_state_of_pytorch_and_numpy_is_left_alone(tmp_path: Path) -> None:
    net = network()
    net[1] = nn.RReLU()
    torch.manual_seed(3)
    np.random.seed(3)
    run(net, tmp_path / "a")
    drawn = torch.rand(3), np.random.rand(3)
    torch.manual_seed(3)
    np.random.seed(3)
    assert torch.equal(drawn[0], torch.rand(3)) and np.array_equal(drawn[1], np.random.rand(3))
