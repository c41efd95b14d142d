"""A run's model is the framework's own module, on the backend that trained and on the other one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.backends import FRAMEWORKS, skip_module_without

skip_module_without(*FRAMEWORKS)

import oneflow as flow
import torch


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_a_model_gives_what_the_run_predicts_on_both_backends(precision: Any, tolerance: float, tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    small: Any = {"image_size": 32, "limit_train": 200, "limit_test": 20, "epochs": 1, "batch_size": 32}
    small |= {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.5, 1.0), "interpolation": "bicubic"}
    model = "shufflenet_v2_x0_5"
    tlx.run(small, data="digits", model=model, weights="none", precision=precision, quiet=True, out=run_dir)
    images = np.random.Generator(np.random.Philox(0)).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    expected = [prediction["probability"] for prediction in tlx.predict(run_dir, images, top=1)]

    native, ported = tlx.load_model(run_dir), tlx.load_model(run_dir, "oneflow")
    modules = (torch.nn.Module, flow.nn.Module)
    assert all(isinstance(model, kind) for model, kind in zip((native, ported), modules, strict=True))
    assert not native.training and not ported.training
    assert native.classes == ported.classes == tuple("0123456789")
    pixels = native.preprocess(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    assert pixels.dtype == precision and pixels.shape == (4, 3, 32, 32)
    with torch.no_grad():
        logits = [native(torch.from_numpy(pixels)).numpy(), ported(flow.tensor(pixels)).numpy()]
    for array in logits:
        odds = np.exp(array.astype(np.float64) - array.max(axis=1, keepdims=True))
        probabilities = (odds / odds.sum(axis=1, keepdims=True)).max(axis=1)
        assert np.allclose(probabilities, expected, rtol=tolerance, atol=0)
    averaged = [
        [prediction["probability"] for prediction in tlx.predict(run_dir, images, backend, top=1, tta="hflip")]
        for backend in FRAMEWORKS
    ]
    assert np.allclose(averaged[0], averaged[1], rtol=tolerance, atol=0)
    assert not np.allclose(averaged[0], expected, rtol=tolerance)
