"""Both frameworks are fed the same photos, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.backends import FRAMEWORKS
from tlx.proof.artifact import Capture
from tlx.proof.capture import capture
from tlx.proof.compare import compare
from tlx.recipe import Recipe

pytestmark = pytest.mark.needs(*FRAMEWORKS)

PIXELS: dict[str, dict[str, Any]] = {
    "letterbox, bicubic": {"aspect": "letterbox", "interpolation": "bicubic", "mean": (0.5, 0.4, 0.3)},
    "squash, points": {"aspect": "squash", "antialias": False, "std": (0.5, 0.25, 1.0)},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(60):
        path = folder / f"{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        noise = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        noise.resize((80 + 9 * (number % 5), 200 - 7 * (number % 7)), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.mark.parametrize("pixels", PIXELS)
def test_both_frameworks_are_fed_the_same_photos(pixels: str, photos: Path, tmp_path: Path) -> None:
    """With other numbers of threads; what the device then makes of them is compared in tests/conformance."""
    fields: dict[str, Any] = {"model": "squeezenet1_1", "weights": "none", "data": str(photos), "image_size": 32}
    fields |= {"augment": "hflip", "epochs": 1, "batch_size": 4, **PIXELS[pixels]}
    folders = [
        capture(Recipe(**fields, workers=workers), name, tmp_path / name, quick=True, stages=("P1", "P2"))
        for name, workers in (("torch", 0), ("oneflow", 3))
    ]
    report = compare(*folders)
    assert [stage.passed for stage in report.stages if stage.id in ("P0", "P1", "P2")] == [True] * 3, str(report)
    images = Capture(folders[0]).records["P2/train/0000/0000"].needed("images")
    assert images.shape == (4, 3, 32, 32) and images.std() > 10
