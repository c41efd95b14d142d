"""Real processes that talk over the channel of a run, each of them a fresh Python."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# What a process does besides its work: it prints how it ended, as the command line would.
_FRAME = """
import os, signal, sys, time
from tlx.errors import Interrupted, TlxError
from tlx.processes import connected, highest, of_first
limits = {limits}
try:
    with connected(**limits) as channel:
        rank, size = channel.world.rank, channel.world.size
{work}
except TlxError as error:
    print("told" if error.told else "tlx:", error, flush=True)
    os._exit(2)
except Interrupted as error:
    print("told" if error.told else "tlx:", error, flush=True)
    os._exit(128 + error.signum)
"""


def free_port() -> int:
    """A port that is free now, as are the two after it."""
    for port in range(21000 + os.getpid() % 7000, 32000, 3):
        try:
            for number in range(port, port + 3):
                socket.create_server(("127.0.0.1", number)).close()
        except OSError:
            continue
        return port
    raise AssertionError("no port is free")


def variables(rank: int, size: int, port: int, **others: str) -> dict[str, str]:
    """The variables that a launcher sets."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {**{name: str(value) for name, value in place.items()}, "MASTER_ADDR": "127.0.0.1", **others}


@contextmanager
def started(
    work: str, size: int, port: int | None = None, limits: Mapping[str, float] | None = None, skip: tuple[int, ...] = ()
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes that do some work, a text of Python that knows `channel`, `rank` and `size`."""
    port = free_port() if port is None else port
    body = textwrap.indent(textwrap.dedent(work).strip(), " " * 8)
    program = _FRAME.format(work=body, limits=dict(limits or {}))
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, **variables(rank, size, port)},
            stdout=-1,
            stderr=-1,
            text=True,
        )
        for rank in range(size)
        if rank not in skip
    ]
    try:
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def outcomes(children: list[subprocess.Popen[str]], seconds: float = 60) -> list[tuple[int, str, str]]:
    """Wait for the ends; return exit codes, stdout and stderr."""
    texts = [child.communicate(timeout=seconds) for child in children]
    return [(child.returncode, *text) for child, text in zip(children, texts, strict=True)]
