"""`tlx run --processes`: the same command line in several processes of this machine, which end together."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tlx.errors import ProcessesError
from tlx.processes.channel import GRACE
from tlx.processes.launcher import PIPE, PORTS, TOKEN, world_of
from tlx.signals import handlers
from tlx.streams import tell

HOST = "127.0.0.1"
MOST = 256  # on one machine
ENDED = GRACE + 3.0  # seconds after the end of one in which the others must have ended by themselves


def asked_for(processes: int | None) -> int:
    """Return how many processes to start, which is none where this is one of them, or where only one was asked for.

    Raises:
        ProcessesError: the number cannot be, or another launcher has started another number.
    """
    size = world_of(os.environ).size
    if processes is None or processes == size:
        return 0
    if not 0 < processes <= MOST:
        problem = f"processes is {processes}; expected a number from 1 to {MOST}"
        raise ProcessesError(problem, fix="on several machines, start tlx with torchrun or srun")
    if size > 1:
        problem = f"processes is {processes}, and a launcher has started {size} processes of this command"
        raise ProcessesError(problem, fix="leave the option out")
    return processes


def start_all(size: int, arguments: Sequence[str], *, inner: bool = False) -> int:
    """Run `tlx` with these arguments in so many processes; returns the exit code of the first one.

    The first has this process's streams. What the others write is kept in files, which are named if one of them fails.
    Signals are passed on to all.

    Args:
        size: how many processes.
        arguments: of the command line.
        inner: the call is part of another command, or of a script; what the first process prints is dropped.
    """
    logs = Path(tempfile.mkdtemp(prefix="tlx-processes-"))
    token, port, children = secrets.token_hex(16), _free_port(), list[subprocess.Popen[bytes]]()
    pipe, held = os.pipe()
    with _passing_on(children):
        try:
            for rank in range(size):
                children.append(_child(rank, size, port, token, arguments, logs, inner, pipe))
            codes = _await(children)
        finally:
            _end(children, signal.SIGKILL)
            os.close(pipe)
            os.close(held)
    if not any(codes):
        shutil.rmtree(logs)
        return 0
    return _said(codes, logs)


def _child(
    rank: int, size: int, port: int, token: str, arguments: Sequence[str], logs: Path, inner: bool, pipe: int
) -> subprocess.Popen[bytes]:
    # `python -m tlx` finds tlx as this process did, and so does the script that pip installs.
    program = ["-m", "tlx"] if inner or Path(sys.argv[0]).name == "__main__.py" else [sys.argv[0]]
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    environ = {**os.environ, **{name: str(n) for name, n in place.items()}, "MASTER_ADDR": HOST, TOKEN: token}
    environ[PIPE] = str(pipe)
    environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // size)))
    command = [sys.executable, *program, *arguments]
    if rank == 0:
        stdout = subprocess.DEVNULL if inner else None
        return subprocess.Popen(command, env=environ, stdout=stdout, pass_fds=(pipe,))
    with (logs / f"process-{rank}.log").open("wb") as log:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        return subprocess.Popen(command, env=environ, pass_fds=(pipe,), **streams)


def _cores() -> int:
    from joblib import cpu_count  # type: ignore[import-untyped]  # of the cores, those that a container may use

    return int(cpu_count())


def _free_port() -> int:
    """Return a port that is free with those after it, which the frameworks and the channel take."""
    for _ in range(100):
        with socket.create_server((HOST, 0)) as probe:
            port = int(probe.getsockname()[1])
        with suppress(OSError, OverflowError):
            for number in range(port, port + PORTS):
                socket.create_server((HOST, number)).close()
            return port
    raise ProcessesError(f"no {PORTS} ports in a row are free on {HOST}")


@contextmanager
def _passing_on(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass on the signals that end a run: the processes save and say so; this one waits for them."""
    before = handlers()

    def pass_on(number: int, frame: Any) -> None:
        for child in children:
            child.send_signal(number)

    try:
        for number in before:
            signal.signal(number, pass_on)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _await(children: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Wait until all have ended; once one has failed, the others have a few seconds."""
    deadline = float("inf")
    while None in (codes := [child.poll() for child in children]):
        if any(codes) and deadline == float("inf"):
            deadline = time.monotonic() + ENDED
        if time.monotonic() > deadline:
            _end(children, signal.SIGKILL)
        time.sleep(0.02)
    return [code for code in codes if code is not None]


def _end(children: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)
            child.wait()


def _said(codes: Sequence[int], logs: Path) -> int:
    """Say what the first process could not, and where the others' words are; return the exit code."""
    first = codes[0]
    written = [log for log in sorted(logs.iterdir()) if log.stat().st_size]
    if first <= 0:
        rank = next(rank for rank, code in enumerate(codes) if code)
        how = f"was ended by {signal.Signals(-codes[rank]).name}" if codes[rank] < 0 else f"failed ({codes[rank]})"
        tell(f"tlx: process {rank} (of 0 to {len(codes) - 1}) {how}. Fix: start the same command again: it goes on "
             "from the last save, where out names its folder")  # fmt: skip
    if written and first not in [128 + number for number in handlers()]:
        tell(f"note: what the other processes wrote is in {logs}")
    else:
        shutil.rmtree(logs)
    return first if first > 0 else 2
