"""The .pth reader on what torch itself writes."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from support.backends import skip_module_without
from tlx.errors import WeightsError
from tlx.models.weights import read_checkpoint, read_weights

skip_module_without("torch")

import torch

both = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@both
def test_layouts_and_dtypes(tmp_path: Path, zipped: bool) -> None:
    base = torch.randn(4, 6, 5)
    tensors = {
        "plain": base,
        "transposed": base.permute(2, 0, 1),
        "slice": base[1:3, ::2],
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "double": base.double(),
        "bool": base > 0,
        "parameter": torch.nn.Parameter(base.clone()),
    }
    torch.save(tensors, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    read = read_weights(tmp_path / "w.pth")
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        expected = tensor.detach().float().numpy() if name == "bfloat16" else tensor.detach().numpy()
        assert read[name].dtype == expected.dtype and read[name].shape == expected.shape
        np.testing.assert_array_equal(read[name], expected)


@both
def test_a_training_checkpoint(tmp_path: Path, zipped: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    content = {"epoch": 3, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    read = read_weights(tmp_path / "w.pt")
    assert list(read) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(read[name], tensor.numpy())


class Masked(torch.nn.Module):
    """With what a state_dict leaves out, and a module within a module."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4))
        self.fc = torch.nn.Linear(4, 2)
        self.register_buffer("mask", torch.ones(3), persistent=False)
        self.empty = None
        self.callback = print


@both
def test_a_pickled_module_gives_what_its_state_dict_holds(tmp_path: Path, zipped: bool) -> None:
    model = Masked()
    for content in (model, {"epoch": 3, "model": model, "optimizer": torch.optim.SGD(model.parameters()).state_dict()}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the legacy format saves the source of the class, and complains
            torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        read = read_weights(tmp_path / "w.pth")
        assert sorted(read) == sorted(model.state_dict())
        for name, tensor in model.state_dict().items():
            np.testing.assert_array_equal(read[name], tensor.numpy())


@both
def test_tensors_with_attributes_and_of_classes_of_their_own(tmp_path: Path, zipped: bool) -> None:
    marked = torch.nn.Parameter(torch.randn(3))
    marked.axes = ("out",)  # type: ignore[attr-defined]
    shared = torch.randn(10)
    tensors = {"marked": marked, "head": shared[:4], "tail": shared[4:], "whole": shared, "complex": shared + 1j}
    torch.save(tensors, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    read = read_weights(tmp_path / "w.pth")
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor.detach().numpy())


def test_quantized_and_sparse_tensors_are_named_and_not_read(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are declared to be on their way out
        odd = {"q": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "s": torch.eye(2).to_sparse()}
        torch.save({**odd, "w": torch.ones(2)}, tmp_path / "w.pth")
    checkpoint = read_checkpoint(tmp_path / "w.pth")
    assert list(checkpoint.arrays) == ["w"]
    assert any("2 entries are no tensors and are passed over: q (torch." in note for note in checkpoint.notes)


def test_torchscript_is_named_with_the_way_out(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"a TorchScript archive.* Fix: .*torch\.save\(model\.state_dict\(\)"):
        read_weights(tmp_path / "w.pt")


def test_an_exported_program_is_named(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "w.pt2")
    with pytest.raises(WeightsError, match=r"w\.pt2: a program that torch\.export saved"):
        read_weights(tmp_path / "w.pt2")


@both
def test_truncation_anywhere_is_refused(tmp_path: Path, zipped: bool) -> None:
    torch.save({"w": torch.randn(50)}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "w.pth").read_bytes()
    for length in range(0, len(content) - 1, 7):
        (tmp_path / "w.pth").write_bytes(content[:length])
        with pytest.raises(WeightsError):
            read_weights(tmp_path / "w.pth")
