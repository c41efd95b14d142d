"""Fixtures of the tests of the core."""

from __future__ import annotations

from typing import Any

import pytest

from tlx.conformance.loopback import Loopback
from tlx.training import features


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """How many images each call computed features of, and how many each training step took as pixels."""
    counts: dict[str, list[int]] = {"features": [], "pixels": []}
    compute_features, backward = features.compute_features, Loopback.backward

    def counted_features(backend: Any, model: Any, loader: Any, images: Any, boundary: str) -> Any:
        counts["features"].append(len(images))
        return compute_features(backend, model, loader, images, boundary)

    def counted_backward(self: Any, model: Any, batch: Any, scale: float = 1.0) -> Any:
        counts["pixels"] += [len(batch.labels)] * (not batch.boundary)
        return backward(self, model, batch, scale)

    monkeypatch.setattr(features, "compute_features", counted_features)
    monkeypatch.setattr(Loopback, "backward", counted_backward)
    return counts
