"""`make gpu` on a machine without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/gpu.py"


@pytest.mark.needs("torch")
def test_without_a_gpu_it_says_so_in_one_line_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "-o", str(tmp_path / "gpu.json")]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "gpu: PyTorch sees no GPU here, so there is nothing to measure\n"
    assert done.stdout == "" and list(tmp_path.iterdir()) == []
