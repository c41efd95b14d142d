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
    computed, backward = features.computed, Loopback.backward

    def counted_features(backend: Any, model: Any, loader: Any, images: Any, cut: str) -> Any:
        counts["features"].append(len(images))
        return computed(backend, model, loader, images, cut)

    def counted_backward(self: Any, model: Any, batch: Any, scale: float = 1.0) -> Any:
        counts["pixels"] += [len(batch.labels)] * (not batch.cut)
        return backward(self, model, batch, scale)

    monkeypatch.setattr(features, "computed", counted_features)
    monkeypatch.setattr(Loopback, "backward", counted_backward)
    return counts
