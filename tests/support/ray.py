"""A Ray of this machine with two CPUs, and the processes that work on its tasks."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = """
import ray
context = ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20,
                   configure_logging=False, log_to_driver=False)
print(context.address_info["gcs_address"], flush=True)
input()
"""


@contextmanager
def ray_cluster() -> Iterator[dict[str, str]]:
    """Start a cluster in a process of its own, and give the environment in which others find it."""
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {
        **os.environ,
        **own,
        "RAY_USAGE_STATS_ENABLED": "0",  # a test tells nobody that it ran
        "RAY_memory_monitor_refresh_ms": "0",  # else Ray kills workers where others have filled the machine's memory
    }
    command = [sys.executable, "-c", PROGRAM]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            address = process.stdout.readline().strip()
            assert address, "Ray does not start"
            yield {**own, "RAY_ADDRESS": address}
            process.communicate("\n", timeout=60)
        finally:
            process.kill()


def workers(folder: Path) -> list[int]:
    """Return the processes that work on a task of Ray in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cmdline").read_bytes().startswith(b"ray::tlx") and (path / "cwd").samefile(folder):
                found.append(int(path.name))
        except OSError:  # it has ended, or is another's
            continue
    return found
