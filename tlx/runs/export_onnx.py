"""A finished run as an ONNX file, which is kept only where ONNX Runtime computes with it what the run does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx import rng
from tlx.atomic import write_atomic
from tlx.backend import Batch, registry
from tlx.data.geometry import from_planes, planes
from tlx.errors import TlxError
from tlx.runs.evaluation import own_test_part
from tlx.runs.export_code import onnx_code, resizing
from tlx.runs.export_source import Source
from tlx.runs.finished import Finished, restore
from tlx.runs.inputs import of_part

LIMIT = 1e-4  # of the largest difference of two logits, relative to the largest logit: float32's rounding is far below
CHECKED = 64  # images of the test part, spread evenly; a batch of one more tells whether N is free
DRAWN = 16  # images, where the run's data is gone
BATCH = 16


def write_onnx(source: Source, target: Path, out: str) -> tuple[str, str]:
    """Write the file; return code that uses it, and what it was compared with.

    Raises:
        TlxError: ONNX Runtime computes something else than the run.
    """
    registry.load("torch")
    twin = restore(source.run_dir, "torch", single=True, **source.objects)
    exporter = registry.exporter("torch")
    content = exporter.onnx(twin.model, source.card.preprocess, list(_metadata(source).items()))
    run, of = _reference(source, twin)
    images, what = _images(run)
    parts = list(_parts(images))
    expected = np.concatenate([_logits(run, part) for part in parts])
    actual = np.concatenate(exporter.run_onnx(content, [part.transpose(0, 2, 3, 1).copy() for part in parts]))
    error = _distance(expected, actual)
    check = f"ONNX Runtime and {of} differ by {error:.1e} of the largest logit, on {what}"
    if not error <= LIMIT:
        raise TlxError(f"{check}; at most {LIMIT:g} is right, so nothing was written", fix="export .safetensors")
    write_atomic(target, content)
    return onnx_code(source.framing, out, several=source.card.thresholds is not None), check


def _metadata(source: Source) -> dict[str, str]:
    """Return what a reader of the file needs, as ONNX's custom metadata."""
    plain, preprocess, thresholds = source.plain, source.card.preprocess, source.card.thresholds
    several = {} if thresholds is None else {"thresholds": json.dumps(thresholds), "probabilities": "sigmoid"}
    return {
        **several,
        "classes": json.dumps(list(plain.classes)),
        "model": plain.model,
        "input": f"images: uint8 [N, {plain.size}, {plain.size}, 3], RGB; mean and std are applied within",
        "resizing": resizing(source.framing),
        "image_size": str(plain.size),
        "interpolation": preprocess.interpolation,
        "antialias": json.dumps(source.framing.resampling.antialias),
        "crop_fraction": json.dumps(source.framing.crop_fraction),
        "aspect": source.framing.aspect,
        "mean": json.dumps(list(preprocess.mean)),
        "std": json.dumps(list(preprocess.std)),
    }


def _reference(source: Source, twin: Finished) -> tuple[Finished, str]:
    """Return the run on the backend that trained it, in float32; where that is not installed, its twin on PyTorch."""
    home = source.recipe.backend
    if home == "torch":
        return twin, "the run on torch"
    working = {entry.name for entry in registry.available() if entry.problem is None}
    if home in working:
        return restore(source.run_dir, home, single=True, **source.objects), f"the run on {home}"
    return twin, f"its twin on torch ({home} is not installed)"


def _images(run: Finished) -> tuple[NDArray[np.uint8], str]:
    """Return images of the model's size, uint8 [N, 3, size, size], and what they are."""
    size = run.preprocess.size
    try:
        part = own_test_part(run)
        chosen = np.unique(np.linspace(0, len(part) - 1, CHECKED + 1).astype(np.int64))
        part = part.select(chosen, part.labels[chosen])
        pixels = [_sized(run.framing.pixels(item.open), size) for item in of_part(part, run.recipe.max_pixels)]
        return np.stack(pixels), f"{len(pixels)} images of its test part"
    except TlxError as error:
        drawn = rng.uniform(0, "export", (DRAWN + 1, 3, size, size)) * 256
        return drawn.astype(np.uint8), f"{DRAWN + 1} images of noise ({error.problem.rstrip('.')})"


def _sized(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Enlarge on the host what a run would enlarge on the device: the two sides then get the same pixels."""
    if pixels.shape[1:] == (size, size):
        return pixels
    return planes(from_planes(pixels).resize((size, size)))


def _parts(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]


def _logits(run: Finished, images: NDArray[np.uint8]) -> NDArray[Any]:
    labels, places = np.zeros(len(images), np.int64), np.arange(len(images))
    lazy = run.outputs(Batch(np.ascontiguousarray(images), labels, places, run.preprocess))
    return np.asarray(run.backend.fetch([lazy])[0])


def _distance(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    """Return the largest difference of two logits relative to the largest logit; NaN where one is not finite."""
    largest = float(np.abs(expected).max())
    return float(np.abs(expected.astype(np.float64) - actual).max() / (largest or 1.0))
