"""What a run says of the processor, against processes that really work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tlx.backend.threads import Others, cores, settle_threads

linux = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux counts what its cores do")


@linux
def test_a_busy_neighbour_is_noticed_and_own_work_is_not() -> None:
    others = Others()
    assert others.share() is None  # too soon to tell
    with ExitStack() as stack:
        for _ in cores():
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
        time.sleep(2.5)
        crowded = others.share()
    assert crowded is not None and crowded > 0.5
    until = time.perf_counter() + 2.5
    while time.perf_counter() < until:
        pass
    alone = others.share()
    assert alone is not None and alone < crowded - 1 / len(cores()) / 2


def test_threads_are_settled_before_a_framework_comes_and_the_environment_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)  # as in a container with a quota
    monkeypatch.setattr("tlx.backend.threads.cores", lambda: {0, 1, 2, 3})
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "was")
        monkeypatch.delenv(name)
    settle_threads()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("1", "PASSIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    settle_threads()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("3", "ACTIVE")
