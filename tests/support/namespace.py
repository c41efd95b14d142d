"""Small and read-only file systems in a namespace of their own: no rights are needed, and nothing is left."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def in_namespace(mount: Path, options: str, *, fill: bool = False) -> list[str]:
    """The beginning of a command that sees a new file system in memory at `mount`; with `fill` it has no room left.

    Skips the test where the kernel does not allow that.
    """
    tried = subprocess.run(["unshare", "-rm", "true"], capture_output=True) if shutil.which("unshare") else None
    if tried is None or tried.returncode:
        pytest.skip("unshare -rm does not work here, so there are no small file systems")
    filled = 'cat /dev/zero > "$0/filler" 2> /dev/null; ' if fill else ""
    script = f'mount -t tmpfs -o {options} tlx "$0" || exit 99; {filled}exec "$@"'
    return ["unshare", "-rm", "sh", "-c", script, str(mount)]
