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
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from tlx.backend import Array, Batch, Hyper, ModelSpec, OptimizerSpec, Preprocess
from tlx.backend.module import shared_norm, sums
from tlx.backend.registry import load
from tlx.errors import BackendError
from tlx.models.weights import digests, joint_digest, read_weights
from tlx.processes import Alone, Channel, connected
from tlx.training.division import Division

CLASSES = 5
HEADS = {"resnet18": "fc", "mobilenet_v2": "classifier.1", "squeezenet1_0": "classifier.1"}
TIMEOUT = 1200  # seconds, where much else runs


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
    shards: int = 0  # of exact="bits"; 0: none
    weights: str = ""  # a file of pretrained ones
    lr: float = 0.01
    momentum: float = 0.0
    tried: bool = False  # as a run tries a module of somebody's own
    fault: str = ""  # one of `FAULTS`: what is broken on purpose


@dataclass(frozen=True, slots=True)
class Told:
    """What one process says of a case: distances relative to the largest number, and the digests of all values."""

    gradient: float
    statistics: float
    weights: float
    loss: float
    digest: str
    digest_alone: str
    refusal: str = ""


def together(backend: str, count: int, cases: Sequence[Case], folder: Path) -> list[list[Told]]:
    """Run the cases in `count` processes; returns what each process told, case by case."""
    job = json.dumps({"backend": backend, "cases": [asdict(case) for case in cases]})
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(first_of_free_ports())}
    common["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    processes = []
    for rank in range(count):
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "support.shares", job, str(folder / f"{rank}.json")]
        with (folder / f"{rank}.err").open("wb") as error:
            processes.append(subprocess.Popen(command, env={**os.environ, **common, **variables}, stderr=error))
    try:
        codes = [process.wait(TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert not any(codes), [(folder / f"{rank}.err").read_text()[-2000:] for rank in range(count)]
    texts = [(folder / f"{rank}.json").read_text() for rank in range(count)]
    return [[Told(**told) for told in json.loads(text)] for text in texts]


def first_of_free_ports() -> int:
    """Return a port that is free, as the next two are."""
    for _ in range(100):
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
        with socket.socket() as second, socket.socket() as third:
            try:
                second.bind(("127.0.0.1", port + 1))
                third.bind(("127.0.0.1", port + 2))
            except (OSError, OverflowError):
                continue
        return port
    raise AssertionError("no three free ports in a row")


def spec_of(backend: Any, case: Case) -> ModelSpec:
    if case.model in HEADS:
        return ModelSpec(case.model, CLASSES, HEADS[case.model])
    from support import shared_nets

    module = shared_nets.make(backend.name, case.model)
    return ModelSpec(case.model, CLASSES, "fc", module=module, image_size=case.size if case.tried else 0)


def first_values(specs: Sequence[Any], case: Case) -> dict[str, Array]:
    """Weights after He et al. 2015, scales and variances near 1, the rest small; or pretrained but for the head."""
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

    def __init__(self, backend: Any, case: Case, channel: Channel) -> None:
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
        for s in Division(self.case.micro_batch, self.channel, self.case.shards or None).stretches(len(whole)):
            among = self.channel if self.channel.world.size > 1 else None
            part = whole.between(s.start, s.end, among=among, whole=s.whole, absent=s.absent, shard=s.shard)
            handle, scale = self.backend.put(self.model, part), 0.0 if s.absent else len(part) / len(whole)
            results.append(self.backend.backward(self.model, handle, scale))
        self.backend.reduce(self.model, self.channel)
        values = [float(v) for v in self.backend.fetch([v for pair in results for v in pair])]
        return sum(values[::2]), int(sum(values[1::2]))

    def gradients(self) -> dict[str, Array]:
        gradients: dict[str, Array] = self.backend.probe(self.model).gradients()
        return gradients

    def update(self) -> None:
        self.backend.update(self.model, self.optimizer, self.case.clip)


# What the tests must notice, by the name of the fault.
FAULTS = ("mean", "local statistics", "absent statistics", "own masks")


@contextmanager
def broken(backend: Any, fault: str) -> Iterator[None]:
    """Break a backend in one way."""
    summed, put, total = sums.summed, backend.put, shared_norm.SharedNorm.sum

    def counted(self: Any, *values: Any) -> Any:
        self.batch.absent, before = False, self.batch.absent
        try:
            return total(self, *values)
        finally:
            self.batch.absent = before

    faults: dict[str, Any] = {
        "": (sums, "summed", summed),
        "mean": (sums, "summed", lambda backend, rows, channel: summed(backend, rows, channel) / channel.world.size),
        "local statistics": (backend, "batch_norm_functions", lambda normalise: []),
        "absent statistics": (shared_norm.SharedNorm, "sum", counted),
        "own masks": (backend, "put", lambda model, batch: put(model, replace(batch, key=(*batch.key[:2], 0)))),
    }
    with patch.object(*faults[fault]):
        yield


def distance(actual: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """Return the largest difference, relative to the largest number; infinite where names differ."""
    if actual.keys() != expected.keys():
        return float("inf")
    largest = max((np.abs(array).max() for array in expected.values()), default=0.0)
    differences = [np.abs(actual[name] - array).max() for name, array in expected.items()]
    return float(max(differences, default=0.0) / (largest or 1.0))


def run(backend: Any, case: Case, channel: Channel) -> Told:
    """Take the steps of a case together with the others, and then alone."""
    together, alone = Trainee(backend, case, channel), Trainee(backend, case, Alone())
    gradient = loss_distance = 0.0
    for step in range(case.steps):
        loss, correct = together.backward(step)
        told = [json.loads(part) for part in channel.gather(json.dumps([loss, correct]).encode())]
        expected, expected_correct = alone.backward(step)
        assert sum(part[1] for part in told) == expected_correct or case.fault
        loss_distance = max(loss_distance, abs(sum(part[0] for part in told) - expected) / abs(expected))
        if step == 0:
            gradient = distance(together.gradients(), alone.gradients())
        together.update()
        alone.update()
    values, expected_values = (backend.dump_arrays(trainee.model) for trainee in (together, alone))
    statistics = [s.name for s in together.specs if s.role == "statistic"]
    return Told(
        gradient,
        max((distance({n: values[n]}, {n: expected_values[n]}) for n in statistics), default=0.0),
        distance(values, expected_values),
        loss_distance,
        joint_digest(digests(values)),
        joint_digest(digests(expected_values)),
    )


def main() -> None:
    job, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    shared_norm.AT_ONCE = 3000  # so that small batches have several parts, of several rows
    with connected() as channel:
        backend, told = load(job["backend"]), []
        for case in (Case(**each) for each in job["cases"]):
            with broken(backend, case.fault):
                try:
                    told.append(asdict(run(backend, case, channel)))
                except BackendError as error:
                    told.append(asdict(Told(0.0, 0.0, 0.0, 0.0, "", "", str(error))))
    out.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
