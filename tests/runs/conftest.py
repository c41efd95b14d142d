"""Fixtures of the tests of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

import tlx
from support.finished_runs import FIELDS, load_digits, save_as_photos
from tlx.data.images import ArrayImages
from tlx.runs.embeddings import embed as embed_module


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


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches in a part, so that a hundred images have several."""
    monkeypatch.setattr(embed_module, "PART_ROWS", 32)
