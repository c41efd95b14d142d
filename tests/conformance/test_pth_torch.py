"""The .pth reader on what torch itself writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.backends import skip_module_without
from tlx.errors import WeightsError
from tlx.models.weights import read_weights

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


@both
def test_a_pickled_module_is_refused(tmp_path: Path, zipped: bool) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="state_dict"):
        read_weights(tmp_path / "w.pth")


@both
def test_truncation_anywhere_is_refused(tmp_path: Path, zipped: bool) -> None:
    torch.save({"w": torch.randn(50)}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "w.pth").read_bytes()
    for length in range(0, len(content) - 1, 7):
        (tmp_path / "w.pth").write_bytes(content[:length])
        with pytest.raises(WeightsError):
            read_weights(tmp_path / "w.pth")
