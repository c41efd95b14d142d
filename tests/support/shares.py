"""One process of several: computes the same steps alone and together with the others, and says how far these are apart.

`together` starts the processes, each of them runs `main`. A case is plain values, so that it travels as JSON.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tlx.backend import Array, Batch, Hyper, ModelSpec, OptimizerSpec, Preprocess
from tlx.backend.registry import load
from tlx.models.weights import read_weights
from tlx.processes import Channel, World, settle

CLASSES = 5
HEADS = {"resnet18": "fc", "mobilenet_v2": "classifier.1", "squeezenet1_0": "classifier.1"}
TIMEOUT = 300


@dataclass(frozen=True, slots=True)
class Case:
    """What is computed."""

    model: str
    rows: int
    size: int = 16
    steps: int = 1
    adapts: bool = True  # whether BatchNorm trains
    precision: str = "float64"
    micro_batch: int | None = None
    soft: bool = False  # targets instead of labels
    clip: float | None = None
    shards: int = 0  # more than 0: nothing is compared with one process, only the weights' digest is told
    weights: str = ""  # a file of pretrained ones
    lr: float = 0.01
    momentum: float = 0.0


@dataclass(frozen=True, slots=True)
class Told:
    """What one process says of a case: distances relative to the largest number of all, and the weights' digest."""

    gradient: float = 0.0
    statistics: float = 0.0
    weights: float = 0.0
    loss: float = 0.0
    correct: int = 0
    digest: str = ""
    error: str = ""


def together(backend: str, count: int, cases: Sequence[Case], folder: Path, fault: str = "") -> list[list[Told]]:
    """Run the cases in `count` processes; returns what each process told, case by case."""
    port = free_port()
    job = json.dumps({"backend": backend, "fault": fault, "port": port, "cases": [asdict(case) for case in cases]})
    processes = []
    for rank in range(count):
        variables = {"RANK": str(rank), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "support.shares", job, str(folder / f"{rank}.json")]
        error = (folder / f"{rank}.err").open("wb")
        processes.append(subprocess.Popen(command, env={**os.environ, **variables}, stderr=error))
    try:
        codes = [process.wait(TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert not any(codes), [(folder / f"{rank}.err").read_text()[-2000:] for rank in range(count)]
    texts = [(folder / f"{rank}.json").read_text() for rank in range(count)]
    return [[Told(**told) for told in json.loads(text)] for text in texts]


def free_port() -> int:
    """Return a port of which the next two are free as well."""
    for port in range(20000 + os.getpid() % 20000, 60000, 3):
        try:
            for offset in range(3):
                with socket.socket() as attempt:
                    attempt.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        return port
    raise AssertionError("no free ports")


class Star:
    """The smallest channel: rank 0 collects and hands out."""

    def __init__(self, world: World) -> None:
        from multiprocessing.connection import Client, Listener

        self.world = world
        address = (world.host, world.port + 2)
        if world.rank == 0:
            with Listener(address) as listener:
                arrived = [listener.accept() for _ in range(world.size - 1)]
            self.others = dict(sorted((int(peer.recv_bytes()), peer) for peer in arrived))
        else:
            for _ in range(600):
                try:
                    self.others = {0: Client(address)}
                    break
                except ConnectionRefusedError:
                    import time

                    time.sleep(0.1)
            self.others[0].send_bytes(str(world.rank).encode())

    def gather(self, part: bytes) -> list[bytes]:
        if self.world.rank:
            self.others[0].send_bytes(part)
            return [self.others[0].recv_bytes() for _ in range(self.world.size)]
        parts = [part, *(peer.recv_bytes() for peer in self.others.values())]
        for peer in self.others.values():
            for each in parts:
                peer.send_bytes(each)
        return parts


def share(batch: Batch, channel: Channel) -> Batch:
    start, end = channel.world.share(len(batch))
    absent = start == end
    if absent:
        start, end = 0, 1
    return replace(rows_of(batch, start, end), among=channel, whole=len(batch), absent=absent)


def rows_of(batch: Batch, start: int, end: int) -> Batch:
    seed, step, row = batch.key
    return replace(
        batch,
        images=batch.images[start:end],
        labels=batch.labels[start:end],
        indices=batch.indices[start:end],
        key=(seed, step, row + start),
        targets=None if batch.targets is None else batch.targets[start:end],
    )


def spec_of(backend: Any, case: Case) -> ModelSpec:
    if case.model in HEADS:
        return ModelSpec(case.model, CLASSES, HEADS[case.model])
    from support import shared_nets

    module = shared_nets.make(backend.name, case.model)
    return ModelSpec(case.model, CLASSES, "fc", module=module)


def first_values(specs: Sequence[Any], case: Case) -> dict[str, Array]:
    """Weights after He et al. 2015, scales and variances near 1, the rest small; or pretrained, but for the head."""
    known: Mapping[str, Array] = read_weights(case.weights) if case.weights else {}
    values = {}
    for number, spec in enumerate(specs):
        noise = np.random.Generator(np.random.Philox(number)).uniform(-1, 1, spec.shape)
        if spec.name in known and known[spec.name].shape == spec.shape:
            noise = known[spec.name]
        elif spec.dtype == "int64":
            noise = np.full(spec.shape, 7)
        elif len(spec.shape) > 1:
            noise = noise * np.sqrt(6 / np.prod(spec.shape[1:]))
        else:
            noise = noise * 0.2 + (1.0 if spec.name.endswith(("running_var", "weight")) else 0.0)
        values[spec.name] = np.asarray(noise, spec.dtype)
    return values


def batch_of(case: Case, step: int) -> Batch:
    rng = np.random.Generator(np.random.Philox([step, case.rows]))
    images = rng.integers(0, 256, (case.rows, 3, case.size, case.size), np.uint8)
    labels = rng.integers(0, CLASSES, case.rows, np.int64)
    targets = rng.uniform(0, 1, (case.rows, CLASSES)) if case.soft else None
    return Batch(images, labels, np.arange(case.rows), Preprocess(case.size), (3, step, 0), targets)


class Trainee:
    """A model in training, alone or with others."""

    def __init__(self, backend: Any, case: Case, channel: Channel | None) -> None:
        self.backend, self.case, self.channel = backend, case, channel
        self.model = backend.build(spec_of(backend, case), "cpu", case.precision)
        self.specs = specs = backend.param_specs(self.model)
        backend.load_arrays(self.model, first_values(specs, case))
        params = tuple(s.name for s in specs if s.role != "statistic")
        norms = {s.module for s in specs if s.role == "statistic"} if case.adapts else set()
        spec = OptimizerSpec("sgd", momentum=case.momentum)
        self.optimizer = backend.optimizer(self.model, spec, [params])
        backend.set_phase(self.model, frozenset(params), frozenset(norms))
        backend.set_hyper(self.optimizer, [Hyper(case.lr, 0.0)])

    def backward(self, step: int) -> tuple[float, int]:
        """Run one step up to its gradients; returns the loss and the correct count of this process."""
        whole, results = batch_of(self.case, step), []
        for part in whole.parts(self.case.micro_batch):
            for own in self.shares(part):
                handle = self.backend.put(self.model, own)
                results.append(self.backend.backward(self.model, handle, len(own) / len(whole)))
        if self.channel is not None:
            self.backend.reduce(self.model, self.channel)
        values = [float(v) for v in self.backend.fetch([v for pair in results for v in pair])]
        return sum(values[::2]), int(sum(values[1::2]))

    def shares(self, part: Batch) -> Iterator[Batch]:
        if self.channel is None:
            yield part
        elif not self.case.shards:
            yield share(part, self.channel)
        else:
            mine, at = range(*self.channel.world.share(self.case.shards)), 0
            for number, count in enumerate(divided_into(len(part), self.case.shards)):
                if number in mine and count:
                    yield replace(rows_of(part, at, at + count), among=self.channel, whole=len(part), shard=number)
                at += count

    def gradients(self) -> dict[str, Array]:
        gradients: dict[str, Array] = self.backend.probe(self.model).gradients()
        return gradients

    def update(self) -> None:
        self.backend.update(self.model, self.optimizer, self.case.clip)

    def statistics(self) -> dict[str, Array]:
        arrays = self.backend.dump_arrays(self.model)
        return {s.name: arrays[s.name] for s in self.specs if s.role == "statistic"}


def divided_into(count: int, parts: int) -> list[int]:
    return [count * (i + 1) // parts - count * i // parts for i in range(parts)]


def distance(actual: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """Return the largest difference, relative to the largest number; infinite where names differ."""
    if actual.keys() != expected.keys():
        return float("inf")
    largest = max((np.abs(array).max() for array in expected.values()), default=0.0)
    differences = [np.abs(actual[name] - array).max() for name, array in expected.items()]
    return float(max(differences, default=0.0) / (largest or 1.0))


def run(backend: Any, case: Case, channel: Channel) -> Told:
    with_others = Trainee(backend, case, channel)
    gradient = loss_distance = 0.0
    correct = 0
    alone = None if case.shards else Trainee(backend, case, None)
    for step in range(case.steps):
        loss, count = with_others.backward(step)
        told = [json.loads(part) for part in channel.gather(json.dumps([loss, count]).encode())]
        if alone is not None:
            expected, expected_count = alone.backward(step)
            loss_distance = max(loss_distance, abs(sum(part[0] for part in told) - expected) / abs(expected))
            correct = max(correct, abs(sum(part[1] for part in told) - expected_count))
            if step == 0:
                gradient = distance(with_others.gradients(), alone.gradients())
            alone.update()
        with_others.update()
    values = backend.dump_arrays(with_others.model)
    digest = sha256(b"".join(array.tobytes() for array in values.values())).hexdigest()
    if alone is None:
        return Told(digest=digest)
    statistics = [
        distance({name: array}, {name: alone.statistics()[name]}) for name, array in with_others.statistics().items()
    ]
    weights = distance(values, backend.dump_arrays(alone.model))
    return Told(gradient, max(statistics, default=0.0), weights, loss_distance, correct, digest)


def main() -> None:
    job, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    world = World(rank, size, rank, size, "127.0.0.1", job["port"])
    settle(world)
    channel = Star(world)
    backend = load(job["backend"])
    if job["fault"]:
        from support import shared_nets

        shared_nets.break_it(backend, job["fault"])
    told = []
    for case in job["cases"]:
        told.append(asdict(run(backend, Case(**case), channel)))
    out.write_text(json.dumps(told))


if __name__ == "__main__":
    main()
