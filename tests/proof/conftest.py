"""Two captures of one recipe on the NumPy backend, which most tests of the proof begin from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# The recipe of the captures, as fields and as options; each epoch changes the rate, and one of them unfreezes.
FIELDS: dict[str, Any] = {
    "model": "tiny-mlp",
    "data": "digits",
    "weights": "none",
    "image_size": 16,
    "strategy": "head_then_full",
    "schedule": "step",
    "step_size": 1,
    "epochs": 4,
}
OPTIONS = [word for name, value in FIELDS.items() for word in (f"--{name.replace('_', '-')}", str(value))]

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def _parity(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", "from tlx.cli import main; main()", "parity", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80"})


@pytest.fixture(scope="session")
def parity() -> Command:
    """`tlx parity` in a process of its own, on a terminal of 80 columns."""
    return _parity


@pytest.fixture(scope="session")
def fields() -> dict[str, Any]:
    """The recipe of the captures as fields."""
    return FIELDS


@pytest.fixture(scope="session")
def options() -> list[str]:
    """The recipe of the captures as options."""
    return OPTIONS


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two captures of one recipe, made by two processes; the second one has nothing but the first."""
    home = tmp_path_factory.mktemp("captures")
    first = _parity("capture", "--backend", "loopback", "-o", home / "A", *OPTIONS)
    second = _parity("capture", "--backend", "loopback", "-o", home / "B", "--reference", home / "A")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    return home / "A", home / "B"
