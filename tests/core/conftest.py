"""Fixtures of the tests of the core."""

from __future__ import annotations

from typing import Any

import pytest

from tlx.conformance.loopback import Loopback
from tlx.training.boundary import Boundary


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """How many images each call asked for features of, and how many each training step took as pixels."""
    counts: dict[str, list[int]] = {"features": [], "pixels": []}
    compute, backward = Boundary.compute, Loopback.backward

    def counted_compute(self: Boundary, images: Any) -> Any:
        counts["features"].append(len(images))
        return compute(self, images)

    def counted_backward(self: Any, model: Any, batch: Any, scale: float = 1.0) -> Any:
        counts["pixels"] += [len(batch.labels)] * (not batch.boundary)
        return backward(self, model, batch, scale)

    monkeypatch.setattr(Boundary, "compute", counted_compute)
    monkeypatch.setattr(Loopback, "backward", counted_backward)
    return counts
