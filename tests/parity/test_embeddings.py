"""The vectors of one run are the same on both frameworks, and models by their names give what their frameworks give."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.backends import each_backend
from support.tiny_zoo import tiny_models

RUN: dict[str, Any] = {
    **{"weights": "none", "data": "digits", "image_size": 32, "limit_train": 40, "limit_test": 20, "val_fraction": 0},
    **{"epochs": 1, "batch_size": 10, "lr": 0.01, "precision": "float32", "quiet": True},
}


def images(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, 40, 36, 3), np.uint8)


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    with tiny_models():
        yield


@pytest.mark.needs("torch", "oneflow")
@pytest.mark.parametrize(
    ("trained_on", "model", "width"),
    [
        ("torch", "tiny_convnext", 32),
        pytest.param("oneflow", "tiny_vit", 32, marks=pytest.mark.thorough),
        pytest.param("torch", "resnet18", 512, marks=pytest.mark.thorough),
        pytest.param("oneflow", "squeezenet1_1", 512, marks=pytest.mark.thorough),
    ],
)
def test_both_frameworks_give_the_vectors_of_a_run(
    trained_on: str, model: str, width: int, tiny: None, tmp_path: Path
) -> None:
    run = tlx.run(**RUN, backend=trained_on, model=model, out=str(tmp_path / "run"))
    vectors = {}
    for backend in ("torch", "oneflow"):
        done = tlx.embed(run.run_dir, images(12), tmp_path / f"{backend}.parquet", backend=backend, quiet=True)
        vectors[backend] = tlx.load_embeddings(done.out).vectors
    scale = np.linalg.norm(vectors["torch"], axis=1)
    apart = np.linalg.norm(vectors["torch"] - vectors["oneflow"], axis=1) / scale
    assert vectors["torch"].shape == (12, width) and scale.min() > 0 and apart.max() < 1e-5
    # What one wrote is searched with the other.
    found = tlx.similar(run.run_dir, images(12), tmp_path / "torch.parquet", top=1, backend="oneflow", quiet=True)
    assert [row["neighbors"][0]["index"] for row in found] == [*range(12)]


@pytest.mark.needs("torch")
def test_a_model_by_its_name_gives_what_torchvision_gives_before_its_head(test_data: Path, tmp_path: Path) -> None:
    import torch
    import torchvision

    weights = test_data / "weights" / "resnet18-imagenet-backbone.safetensors"
    pixels = images(3)
    out = tlx.embed("resnet18", pixels, tmp_path / "e.parquet", weights=str(weights), quiet=True).out
    from safetensors.torch import load_file

    module = torchvision.models.resnet18()
    module.load_state_dict(load_file(weights), strict=False)
    module.fc = torch.nn.Identity()
    module.eval()
    from PIL import Image
    from torchvision.transforms import v2

    seen = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
    x = torch.stack([seen(Image.fromarray(one)) for one in pixels]) / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        expected = module(x).numpy()
    found = tlx.load_embeddings(out).vectors
    # The core crops and then resizes, Resize resizes and then crops: a few pixels at the edge differ.
    assert (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(
        expected, axis=1
    ) == pytest.approx(1, abs=0.01)


@pytest.mark.needs("torch")
def test_a_model_of_timm_by_its_name(tmp_path: Path) -> None:
    out = tmp_path / "e.parquet"
    done = tlx.embed("timm:test_vit", images(3), out, weights="none", quiet=True)
    assert done.width == 64 and done.facts["model"] == "timm:test_vit" and done.facts["preprocessing"]["size"] == 160
    (found,) = tlx.similar("timm:test_vit", images(1), out, weights="none", top=1, quiet=True)
    assert found["neighbors"][0]["index"] == 0 and found["neighbors"][0]["cosine"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("backend", each_backend("torch", "oneflow"))
def test_a_module_of_ones_own_is_passed_again(backend: str, tmp_path: Path) -> None:
    nn: Any = import_module(f"{backend}.nn")
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 12), nn.ReLU(), nn.Linear(12, 10))
    fields = {**RUN, "image_size": 8, "model": module, "head": "3", "weights": "own"}
    run = tlx.run(**fields, backend=backend, out=str(tmp_path / "run"))
    done = tlx.embed(run.run_dir, images(3), tmp_path / "e.parquet", model=module, quiet=True)
    assert done.width == 12 and tlx.load_embeddings(done.out).vectors.min() >= 0
    assert len(tlx.similar(run.run_dir, images(1), done.out, model=module, quiet=True)[0]["neighbors"]) == 3
