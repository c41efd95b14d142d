"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data: CIFAR-10, ants and bees, ImageNet weights (the README says where)."""
    root = Path(os.environ.get("TLX_TEST_DATA", "~/.cache/tlx/test-data")).expanduser()
    if not (root / "weights").is_dir():
        pytest.skip(f"no test data in {root}; set TLX_TEST_DATA to a folder that holds it")
    return root
