"""TLX_BACKENDS: a backend that is not asked for is skipped with a reason, and one that does not load is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.backends import asked_for, reason_to_skip

TESTS = Path(__file__).parents[1]


def outcome_of(test: str, backends: str) -> tuple[int, str]:
    """Run a test in a pytest of its own; return its exit code and its output."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / test)]
    environment = {**os.environ, "TLX_BACKENDS": backends, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent, env=environment, check=False)
    return done.returncode, done.stdout


def test_the_variable_is_a_list_of_names() -> None:
    assert asked_for(None) == ("loopback", "torch", "oneflow")
    assert asked_for("torch, mine") == ("torch", "mine")
    for wrong in ("", "torch,", "torch,torch"):
        with pytest.raises(pytest.UsageError, match="expected names such as 'torch,loopback'"):
            asked_for(wrong)


def test_the_reason_names_what_is_missing() -> None:
    assert reason_to_skip(("torch",), ("loopback", "torch")) == ""
    assert reason_to_skip(("torch", "oneflow"), ("torch",)) == "needs oneflow, and TLX_BACKENDS asks only for torch"


@pytest.mark.parametrize("module", ["parity/test_blas.py", "parity/test_two_backends.py"])
def test_what_is_not_asked_for_is_skipped_with_its_reason(module: str) -> None:
    code, output = outcome_of(module, "loopback")
    assert code in (0, 5) and "passed" not in output and "failed" not in output
    assert "oneflow, and TLX_BACKENDS asks only for loopback" in output


def test_a_backend_that_was_asked_for_and_does_not_load_fails() -> None:
    code, output = outcome_of("conformance/test_backends.py::test_capabilities_name_what_the_backend_can_do", "missing")
    assert code == 1 and "Unknown backend 'missing'" in output and "error" in output
