"""Real processes in which a backend trains together, and what each of them tells: for the tests in `processes`.

Each process computes every case twice, with the others and by itself, so that only distances and hashes travel back.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tlx.backend import Array, Backend, Batch, Hyper, OptimizerSpec, Reduces
from tlx.backend.registry import load
from tlx.conformance.subject import PLAIN, WITH_DROPOUT, Subject, batch, choose, renewed, soft_targets
from tlx.errors import TlxError
from tlx.processes import Alone, Channel, World, connected

SECONDS = 300  # for all cases of a backend that takes long to import
SHARDS = 4
START = "import sys; from tlx.conformance.peers import main; main(*sys.argv[1:])"


@dataclass(frozen=True, slots=True)
class Case:
    """One step on a batch of `rows`."""

    rows: int
    adapts: bool = False  # whether BatchNorm normalises by the batch
    drops: bool = False  # a model with dropout
    soft: bool = False  # targets in place of labels
    micro_batch: int | None = None
    head_only: bool = False  # all else is frozen
    shards: int | None = None


CASES = {
    "kept": Case(7, soft=True),
    "adapting": Case(7, adapts=True),
    "fewer": Case(2, adapts=True),
    "parts": Case(7, adapts=True, micro_batch=4),
    "dropout": Case(7, drops=True, micro_batch=3),
    "frozen": Case(7, head_only=True),
    "shards": Case(7, shards=SHARDS, micro_batch=5, soft=True),
}


@dataclass(frozen=True, slots=True)
class Told:
    """What a process says of a case. Distances are relative to the size of what is expected."""

    gradient: float  # from the gradient of the whole batch in one process
    statistics: float
    loss: float
    correct: int  # how many more or fewer than in one process
    frozen_moved: list[str]  # what was frozen and has moved
    digest: str  # of the gradients after `reduce`, and of the statistics
    counted: float  # loss and correct count that an absent row gave


def together(backend: Backend, size: int) -> list[dict[str, Told]]:
    """Return what each of `size` processes tells of each case."""
    try:
        registered = type(load(backend.name)) is type(backend)
    except TlxError:
        registered = False
    kind = type(backend)
    return _together(backend.name if registered else f"{kind.__module__}:{kind.__qualname__}", size)


@cache
def _together(name: str, size: int) -> list[dict[str, Told]]:
    port = _free_port()
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / str(rank) for rank in range(size)]
        for rank, out in enumerate(outs):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            variables = {key: str(value) for key, value in {**place, "MASTER_PORT": port}.items()}
            paths = {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            environ = {"OMP_NUM_THREADS": "1", **os.environ, **variables, **paths}
            command = [sys.executable, "-c", START, name, str(out)]
            processes.append(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE))
        try:
            ends = [process.communicate(timeout=SECONDS)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        codes = [process.returncode for process in processes]
        assert not any(codes), f"{size} processes ended with {codes}: {ends[0].decode(errors='replace')[-2000:]}"
        return [{case: Told(**told) for case, told in json.loads(out.read_text()).items()} for out in outs]


def _free_port() -> int:
    """Return a port that is free, as are the next two: of the framework's, of another's and of the channel."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second, socket.socket() as third:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
                third.bind(("127.0.0.1", port + 2))
            except (OSError, OverflowError):
                continue
            return port
    raise AssertionError("no three free ports follow each other")


def main(name: str, out: str) -> None:
    """Compute all cases as one of several processes, which the environment's variables describe."""
    with connected() as channel:
        module, _, kind = name.partition(":")
        backend = getattr(import_module(module), kind)() if kind else load(name)
        told = {case: asdict(tell(backend, CASES[case], channel)) for case in CASES}
        Path(out).write_text(json.dumps(told))


def alone(backend: Backend, case: Case) -> str:
    """Return the digest of a case of shards in the process that asks."""
    return _step(_subject(backend, case), case, Alone())[3]


def tell(backend: Backend, case: Case, channel: Channel) -> Told:
    """Take a step by oneself and with others, and say how they differ."""
    subject = _subject(backend, case)
    expected, statistics, sums, _, _, _ = _step(subject, case, None)
    subject = _subject(backend, case)
    gradients, own_statistics, own_sums, digest, counted, moved = _step(subject, case, channel)
    parts = [json.loads(part) for part in channel.gather(json.dumps(own_sums).encode())]
    loss, correct = sum(part[0] for part in parts), sum(part[1] for part in parts)
    return Told(
        gradient=_distance(gradients, expected),
        statistics=_distance(own_statistics, statistics),
        loss=abs(loss - sums[0]) / sums[0],
        correct=correct - sums[1],
        frozen_moved=moved,
        digest=digest,
        counted=counted,
    )


def _subject(backend: Backend, case: Case) -> Subject:
    subject = renewed(backend, choose(backend, WITH_DROPOUT if case.drops else PLAIN))
    subject.free(subject.head if case.head_only else None, subject.norms if case.adapts else ())
    return subject


Outcome = tuple[dict[str, Array], dict[str, Array], tuple[float, int], str, float, list[str]]


def _step(subject: Subject, case: Case, channel: Channel | None) -> Outcome:
    """Return gradients, statistics, loss and count of this process, a digest, what absent rows gave, and what moved."""
    backend, model = subject.backend, subject.model
    whole = batch(case.rows, targets=soft_targets(case.rows) if case.soft else None, key=(3, 5, 0))
    loss, correct, counted = 0.0, 0, 0.0
    for part in whole.parts(case.micro_batch):
        for piece in [part] if channel is None else _pieces(part, case, channel):
            total, right = subject.backward(backend.put(model, piece), len(piece) / len(whole))
            loss, correct = loss + total, correct + right
            counted += abs(total) + right if piece.absent else 0.0
    if channel is not None:
        assert isinstance(backend, Reduces)
        backend.reduce(model, channel)
    statistics = {name: array for name, array in subject.dump().items() if name in subject.statistics}
    gradients = subject.probe()
    digest = hashlib.sha256()
    for name, array in sorted({**gradients, **statistics}.items()):
        digest.update(name.encode() + np.ascontiguousarray(array + 0).tobytes())
    moved = _frozen_that_move(subject, whole, case, channel) if case.head_only and channel is not None else []
    return gradients, statistics, (loss, correct), digest.hexdigest(), counted, moved


def _pieces(part: Batch, case: Case, channel: Channel) -> list[Batch]:
    """Divide as a run does: into shards, or a share for each process, an absent row where there is none."""
    world = channel.world
    if case.shards is not None:
        numbers = range(*world.share(case.shards))
        spans = [(number, World(number, case.shards).share(len(part))) for number in numbers]
        among = channel if world.size > 1 else None
        return [
            part.between(*span, among=among, whole=len(part), shard=number)
            for number, span in spans
            if span[0] < span[1]
        ]
    first, end = world.share(len(part))
    absent = first == end
    span = (0, 1) if absent else (first, end)
    return [part.between(*span, among=channel, whole=len(part), absent=absent)]


def _frozen_that_move(subject: Subject, whole: Batch, case: Case, channel: Channel) -> list[str]:
    """Take a step with momentum and decay, which move whatever has a gradient, were it zero."""
    optimizer = subject.optimizer(OptimizerSpec("sgd", momentum=0.5), Hyper(0.125, 0.125))
    before = subject.dump()
    for piece in _pieces(whole, case, channel):
        subject.backward(subject.backend.put(subject.model, piece), len(piece) / len(whole))
    assert isinstance(subject.backend, Reduces)
    subject.backend.reduce(subject.model, channel)
    subject.backend.update(subject.model, optimizer)
    after = subject.dump()
    return [name for name in subject.backbone if before[name].tobytes() != after[name].tobytes()]


def _distance(actual: Mapping[str, Array], expected: Mapping[str, Any]) -> float:
    """Return the largest of the relative L2 distances; arrays that are tiny are held to 1e-3 of it."""
    return max(
        (
            float(np.linalg.norm(actual[name] - array)) / max(float(np.linalg.norm(array)), 1e-3)
            for name, array in expected.items()
        ),
        default=0.0,
    )
