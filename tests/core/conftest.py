"""Fixtures of the tests of the core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tlx
from support.finished_runs import FIELDS, load_digits, save_as_photos
from tlx.conformance.loopback import Loopback
from tlx.data.images import ArrayImages
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


@pytest.fixture(scope="session")
def digits() -> dict[str, ArrayImages]:
    return load_digits()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, ArrayImages]) -> Path:
    """The digits as photos of many sizes and shapes."""
    return save_as_photos(digits, tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def of_photos(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tlx.Result:
    return tlx.run(**FIELDS, data=str(photos), out=str(tmp_path_factory.mktemp("run") / "photos"))


@pytest.fixture(scope="session")
def of_arrays(tmp_path_factory: pytest.TempPathFactory) -> tlx.Result:
    out = str(tmp_path_factory.mktemp("run") / "arrays")
    return tlx.run(**FIELDS, data="digits", limit_train=300, limit_test=100, out=out)
