"""What the core defines of pixels is what the frameworks do: resampling, normalising and enlarging."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.backends import each_backend, skip_module_without
from tlx.backend import Batch, ModelSpec, Preprocess, registry
from tlx.data import FileImages, Loader
from tlx.data.geometry import planes
from tlx.data.view import Resampling

skip_module_without("torch")

import torch
from torchvision.transforms import InterpolationMode, v2

both = pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])


def noise(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


@both
@pytest.mark.parametrize("to", [(24, 24), (20, 31), (90, 100)])
def test_points_without_antialias_are_those_of_torch(interpolation: Any, to: tuple[int, int]) -> None:
    """In float64, rounded to whole numbers as torchvision rounds them."""
    image = noise(70, 80, 3)
    made = Resampling(interpolation, antialias=False).resize(Image.fromarray(image), (0, 0, 80, 70), to[1], to[0])
    pixels = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float64))[None]
    expected = torch.nn.functional.interpolate(pixels, size=to, mode=interpolation, align_corners=False)
    assert np.abs(planes(made) - expected[0].clamp(0, 255).numpy()).max() <= 0.5 + 1e-9


@both
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("width", "height"), [(400, 300), (130, 201), (40, 90)])
def test_a_cropped_photo_is_torchvisions_within_rounding(
    interpolation: Any, antialias: bool, width: int, height: int, tmp_path: Path
) -> None:
    """Resize and CenterCrop, by Pillow with antialias, on tensors without; they round once more, between the axes."""
    image = Image.fromarray(noise(height // 8 + 3, width // 8 + 3, 3)).resize((width, height), Image.Resampling.BICUBIC)
    image.save(tmp_path / "a.png")
    part = FileImages(tmp_path, np.zeros(1, np.int64), ["a.png"])
    preprocess = Preprocess(56, interpolation=interpolation)
    (batch,) = Loader(part, preprocess, batch_size=1, antialias=antialias, workers=0).epoch(0)
    given = image if antialias else v2.functional.pil_to_tensor(image)
    resize = v2.Resize(64, InterpolationMode(interpolation), antialias=antialias)
    expected = np.asarray(v2.CenterCrop(56)(resize(given)))
    apart = batch.images[0].astype(int) - (planes(Image.fromarray(expected)) if antialias else expected)
    assert np.abs(apart).max() <= 1


@both
@pytest.mark.parametrize("name", each_backend("torch", "oneflow"))
def test_a_batch_enters_the_network_as_the_core_defines_it(name: str, interpolation: Any) -> None:
    """To 1e-12 in float64: enlarged by whole factors and others, along both axes."""
    backend: Any = registry.load(name)
    model = backend.build(ModelSpec("squeezenet1_1", 3, "classifier.1"), "cpu", "float64")
    for (height, width), size in product(((8, 8), (13, 32)), (32, 45, 64)):
        preprocess = Preprocess(size, (0.1, 0.5, 0.7), (0.9, 0.25, 0.3), interpolation)
        batch = Batch(noise(2, 3, height, width), np.zeros(2, np.int64), np.arange(2), preprocess)
        (entering,) = backend.fetch([backend.put(model, batch).images])
        assert np.abs(entering - preprocess.apply(batch.images, np.float64)).max() <= 1e-12
