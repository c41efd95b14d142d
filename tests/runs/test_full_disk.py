"""A full disk is one line or a note, and many runs share a cache; `benchmarks/` has both at length."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.namespace import in_namespace

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.needs("loopback")
@pytest.mark.parametrize(
    "kind", ["resume", *(pytest.param(kind, marks=pytest.mark.thorough) for kind in ("full", "cache"))]
)
def test_a_disk_that_fills_up_tears_nothing(kind: str, tmp_path: Path) -> None:
    in_namespace(tmp_path, "size=1m")  # skips where there is none
    command = [sys.executable, str(BENCHMARKS / "full_disk.py"), "--levels", "2", "--limits", "4096", "--kinds", kind]
    ended = subprocess.run(["unshare", "-rm", *command], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "one line" in ended.stdout and "finished" in ended.stdout


FEATURES_ON_DISK = """
import sys, tlx
from tlx.training import features
features.MEMORY_PART, features.DISK_PART = 0, 1e9
tlx.run(backend="loopback", model="tiny-mlp", weights="none", data="digits", image_size=8, val_fraction=0, epochs=2,
        strategy="feature_extract", out=sys.argv[1], feature_cache=sys.argv[2])
"""


@pytest.mark.needs("loopback")
def test_features_that_find_no_room_on_the_disk_are_not_cached(tmp_path: Path) -> None:
    """The file is taken whole before it is mapped; a mapped one that finds no room later ends the process."""
    (tmp_path / "disk").mkdir()
    before = in_namespace(tmp_path / "disk", "size=200k")
    environment = {**os.environ, "TLX_CACHE": str(tmp_path / "disk")}
    runs = []
    for use in ("run", "off"):
        command = [*before, sys.executable, "-c", FEATURES_ON_DISK, str(tmp_path / use), use]
        runs.append(subprocess.run(command, env=environment, capture_output=True, text=True))
    assert [run.returncode for run in runs] == [0, 0], runs
    assert "features are not cached: " in runs[0].stderr and "No space left on device" in runs[0].stderr
    weights = [(tmp_path / use / "model.safetensors").read_bytes() for use in ("run", "off")]
    assert weights[0] == weights[1]


@pytest.mark.thorough
@pytest.mark.needs("loopback")
def test_runs_that_share_a_cache_and_are_killed_give_the_result_of_one_without(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "crowd.py"), "--processes", "3", "--rounds", "2", "--kills", "1"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 finished" in ended.stdout
