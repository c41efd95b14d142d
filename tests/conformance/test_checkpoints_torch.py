"""Checkpoints as people write them with torch give the model the values of the network that was saved."""

from __future__ import annotations

import argparse
import collections
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.backends import skip_module_without
from tlx.backend import Array, ModelSpec, ParamSpec, registry
from tlx.errors import WeightsError
from tlx.models.initial_values import initial_values
from tlx.models.weights import read_checkpoint
from tlx.models.zoo import architecture

skip_module_without("torch")

import torch
import torchvision
from safetensors.torch import save_file

ARCH = architecture("tiny-mlp")


class Net(torch.nn.Module):
    """The loopback's tiny-mlp, in torch."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(192, 32)
        self.bn1 = torch.nn.BatchNorm1d(32)
        self.fc = torch.nn.Linear(32, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.bn1(self.fc1(x)).relu())
        return logits


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    for _ in range(3):
        model(torch.randn(8, 192))  # moves the statistics
    return model


@pytest.fixture(scope="module")
def specs() -> list[ParamSpec]:
    backend = registry.load("loopback")
    return list(backend.param_specs(backend.build(ModelSpec(ARCH.name, 10, ARCH.head), "cpu", "float32")))


def check(path: Path, specs: list[ParamSpec], net: Net, change: Callable[[Array], Array] = lambda a: a) -> list[str]:
    """Hold what the backbone takes from a file to the network, bit for bit; returns the notes."""
    arrays, notes = initial_values(specs, ARCH, str(path), 0)
    for name, tensor in net.state_dict().items():
        if not name.startswith("fc."):
            expected = change(tensor.numpy())
            assert arrays[name].dtype == tensor.numpy().dtype and arrays[name].tobytes() == expected.tobytes(), name
    return notes


KEYS = (
    *("state_dict", "model", "net", "network", "weights", "params", "model_state", "model_state_dict", "model_ema"),
    *("ema", "state_dict_ema", "teacher", "student", "generator", "module"),
)
PREFIXES = (
    *("", "module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.", "0.", "module._orig_mod."),
    "model.backbone.",
)
SUFFIXES = (".pt", ".pth", ".pth.tar", ".ckpt", ".bin", "", ".safetensors")


def beside() -> dict[Any, Any]:
    """What people save beside the weights."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    return {
        "epoch": 3,
        "best_acc1": torch.tensor(0.7),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1).state_dict(),
        "args": argparse.Namespace(lr=0.1, data=Path("data"), model=Net, milestones={30, 60}),
        "metric": np.float64(0.7),
        "rng": np.random.default_rng(0).bit_generator.state,
        "history": collections.defaultdict(list, {"loss": [np.float32(1)]}),
        ("a", "tuple"): collections.Counter("abc"),
        "activation": torch.nn.functional.relu,
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("key", KEYS)
def test_every_key_prefix_and_suffix_gives_the_same_bits(
    key: str, zipped: bool, net: Net, specs: list[ParamSpec], tmp_path: Path
) -> None:
    for prefix, suffix in zip(PREFIXES, itertools.cycle(SUFFIXES), strict=False):
        state = {f"{prefix}{name}": tensor for name, tensor in net.state_dict().items()}
        path = tmp_path / f"w{suffix}"
        torch.save({**beside(), key: state}, path, _use_new_zipfile_serialization=zipped)
        notes = check(path, specs, net)
        beyond = (
            f"w{suffix}: 10 entries beside {key!r} are passed over: epoch, best_acc1, optimizer, scheduler and 6 more"
        )
        assert beyond in notes
        assert any("Python objects in it are not built: " in note and "argparse.Namespace" in note for note in notes)
        assert any(f"prefix {prefix!r}" in note for note in notes) is bool(prefix)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_the_content_and_not_the_suffix_says_what_a_file_is(
    kind: str, suffix: str, net: Net, specs: list[ParamSpec], tmp_path: Path
) -> None:
    for prefix in PREFIXES:
        state = {f"{prefix}{name}": tensor for name, tensor in net.state_dict().items()}
        if kind == "safetensors":
            save_file(state, tmp_path / f"w{suffix}")
        else:
            torch.save(state, tmp_path / f"w{suffix}", _use_new_zipfile_serialization=kind == "zip")
        check(tmp_path / f"w{suffix}", specs, net)


class Lit(torch.nn.Module):
    """What a LightningModule is to its state_dict."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.criterion = torch.nn.CrossEntropyLoss(weight=torch.ones(7))


def written(net: Net) -> dict[str, Any]:
    """Contents of files, by who writes them."""
    compiled: Any = torch.compile(net)
    averaged = torch.optim.swa_utils.AveragedModel(net)
    lightning = {
        "epoch": 4,
        "global_step": 100,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": Lit(net).state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 5}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.9), "best": Path("x")}},
        "optimizer_states": [beside()["optimizer"]],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "loss": torch.nn.CrossEntropyLoss(), "args": argparse.Namespace(a=1)},
    }
    state = net.state_dict()
    shifted = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    return {
        "data parallel": torch.nn.DataParallel(net).state_dict(),
        "compiled": compiled.state_dict(),
        "data parallel, compiled": torch.nn.DataParallel(compiled).state_dict(),
        "an average": averaged.state_dict(),
        "lightning": lightning,
        "timm": {"arch": "net", "state_dict": state, "state_dict_ema": shifted, **beside()},
        "dino": {"teacher": Lit(net).state_dict(), "student": {f"module.{n}": t for n, t in shifted.items()}},
        "an ema of plain weights": {"model": state, "model_ema": {"shadow": shifted, "decay": 0.99}},
        "deepspeed": {"module": state, "dp_world_size": 4},
        "a whole module": net,
        "a whole module in a dictionary": {"model": net, "epoch": 3},
        "an ordered dictionary": collections.OrderedDict((n, torch.nn.Parameter(t, False)) for n, t in state.items()),
        "parameters alone": {**state, "config": {"depth": 1}},
        "two networks": {"classifier": {**state, "extra": torch.ones(1)}, "discriminator": {"w": torch.ones(3)}},
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("who", list(written(Net())))
def test_files_as_people_write_them(who: str, zipped: bool, net: Net, specs: list[ParamSpec], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the legacy format saves the source of the class, and complains
        torch.save(written(net)[who], tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    notes = " | ".join(check(tmp_path / "w.pth", specs, net))
    said = {
        "an average": "1 entries are not of the backbone and are left aside: n_averaged",
        "lightning": "entries are not of the backbone and are left aside: criterion.weight",
        "timm": "the weights are those under 'state_dict'; it also has some under 'state_dict_ema'",
        "dino": "the weights are those under 'teacher'; it also has some under 'student'",
        "an ema of plain weights": "the weights are those under 'model'; it also has some under 'model_ema.shadow'",
        "parameters alone": "1 entries are no tensors and are passed over: config (dict)",
        "two networks": "left aside: extra",
    }
    assert said.get(who, "") in notes


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64], ids=["float16", "bfloat16", "float64"]
)
def test_other_precisions_and_layouts_are_read_exactly(
    dtype: torch.dtype, net: Net, specs: list[ParamSpec], tmp_path: Path
) -> None:
    flat = torch.randn(40_000).to(dtype)  # one storage, of which every weight is a view

    def view(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        window = flat[17 : 17 + tensor.numel()]
        return window.reshape(tensor.shape[::-1]).T if tensor.ndim == 2 else window.reshape(tensor.shape)

    state = {name: view(tensor) for name, tensor in net.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    arrays, _ = initial_values(specs, ARCH, str(tmp_path / "w.pth"), 0)
    for name, tensor in state.items():
        if not name.startswith("fc."):
            expected = tensor.float() if tensor.is_floating_point() else tensor
            assert arrays[name].tobytes() == expected.numpy().tobytes()


def test_a_folder_of_hugging_face(net: Net, specs: list[ParamSpec], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    check(tmp_path, specs, net)


def test_damage_to_a_real_checkpoint_is_one_line_or_does_no_harm(net: Net, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for zipped in (True, False):
        torch.save({**beside(), "state_dict": net.state_dict()}, tmp_path / "w", _use_new_zipfile_serialization=zipped)
        content = (tmp_path / "w").read_bytes()
        for _ in range(120):
            damaged = bytearray(content)
            at = int(draw.integers(len(content)))
            if draw.random() < 0.5:
                del damaged[at:]
            else:
                damaged[at] ^= 1 << int(draw.integers(8))
            (tmp_path / "w").write_bytes(damaged)
            try:
                arrays = read_checkpoint(tmp_path / "w").arrays
            except WeightsError as error:
                assert "\n" not in str(error)
                continue
            if zipped:  # whose records have checksums; what is beside the weights may be damaged
                for name, tensor in net.state_dict().items():
                    assert arrays[name].tobytes() == tensor.numpy().tobytes()


@pytest.fixture(scope="module")
def resnet() -> tuple[list[ParamSpec], torch.nn.Module]:
    backend, arch = registry.load("torch"), architecture("resnet18")
    model = backend.build(ModelSpec(arch.name, 5, arch.head), "cpu", "float32")
    return list(backend.param_specs(model)), torchvision.models.resnet18(num_classes=9)


@pytest.mark.parametrize("head", ["fc", "fc.0", "fc.1.linear", "classifier.1"])
def test_a_resnet_with_a_head_of_ones_own(
    head: str, resnet: tuple[list[ParamSpec], torch.nn.Module], tmp_path: Path
) -> None:
    specs, model = resnet
    state = {name.replace("fc.", f"{head}."): tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "w.pth.tar")
    arrays, notes = initial_values(specs, architecture("resnet18"), str(tmp_path / "w.pth.tar"), 0)
    for name, tensor in model.state_dict().items():
        if not name.startswith("fc."):
            np.testing.assert_array_equal(arrays[name], tensor.numpy())
    assert arrays["fc.weight"].shape == (5, 512)
    left = f"2 entries are not of the backbone and are left aside: module.{head}.weight, module.{head}.bias"
    assert any(("'fc' of 9 outputs is left aside" if head.startswith("fc") else left) in note for note in notes)


@pytest.mark.parametrize("other", ["resnet34", "resnet50", "squeezenet1_0"])
def test_another_architecture_is_refused_with_both_sides(
    other: str, resnet: tuple[list[ParamSpec], torch.nn.Module], tmp_path: Path
) -> None:
    torch.save(torchvision.models.get_model(other).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"do not fit resnet18: .*(not in the model|missing): ") as error:
        initial_values(resnet[0], architecture("resnet18"), str(tmp_path / "w.pth"), 0)
    assert "\n" not in str(error.value)


class Wrapped(torch.nn.Module):
    """A module of one's own, all of whose names begin as those of a wrapper do."""

    def __init__(self) -> None:
        super().__init__()
        self.module = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, padding=1),
            torch.nn.AdaptiveAvgPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(16, 2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.module(x)
        return logits


def test_a_module_whose_own_names_begin_with_a_prefix_keeps_them(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        **{"data": "digits", "image_size": 8, "limit_train": 96, "limit_test": 20, "epochs": 1, "quiet": True},
        **{"head": "module.3", "strategy": "full", "precision": "float32", "classes": ("0", "1"), "val_fraction": 0},
    }
    first = tlx.run(model=Wrapped(), **fields, out=str(tmp_path / "first"))
    trained = first.model.state_dict()
    again = tlx.load_model(first.run_dir, model=Wrapped())
    assert all(torch.equal(tensor, trained[name]) for name, tensor in again.state_dict().items())
    second = tlx.run(model=Wrapped(), **fields, lr=0.0, weights=str(first.run_dir), out=str(tmp_path / "second"))
    assert all(torch.equal(tensor, trained[name]) for name, tensor in second.model.state_dict().items())
    assert tlx.run(resume=first.run_dir, epochs=2, model=Wrapped(), quiet=True).epochs_run == 2
