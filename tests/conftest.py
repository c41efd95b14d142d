"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Containers often forbid compiled modules to be kept; then each process that a test starts would compile tlx anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data: CIFAR-10, ants and bees, ImageNet weights (the README says where)."""
    root = Path(os.environ.get("TLX_TEST_DATA", "~/.cache/tlx/test-data")).expanduser()
    if not (root / "weights").is_dir():
        pytest.skip(f"no test data in {root}; set TLX_TEST_DATA to a folder that holds it")
    return root


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the user keeps is neither used nor filled, also not by fixtures that live long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def no_cache_of_another_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that one test keeps must not spare another the work."""
    monkeypatch.setenv("TLX_CACHE", f"{tmp_path}-cache")
