"""Several real processes compute together what one computes alone: gradients, statistics, losses and weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from support.backends import FRAMEWORKS, each_backend
from support.shares import FAULTS, Case, Told, together
from tlx.errors import BackendError
from tlx.processes import World

GRADIENT, STATISTICS, STEPS = 1e-12, 1e-12, 1e-9  # relative, in float64; the last after 40 steps
BATCHES = (64, 7, 2)
NETS = ("resnet18", "mobilenet_v2", "conv", "vit")
BITS = tuple(
    Case(name, 7, 32, steps=2, adapts=False, shards=4, precision=precision, momentum=0.9)
    for name in ("squeezenet1_0", "resnet18")
    for precision in ("float32", "float64")
)
SMALL = [
    *(Case("conv", rows, steps=2) for rows in (7, 2)),
    Case("maps", 1, steps=2),  # one row of two processes
    Case("conv", 7, steps=2, micro_batch=3, soft=True, clip=0.1, momentum=0.9),
    Case("plain", 7, steps=2),  # without weight and bias
    Case("untracked", 7, steps=2),  # without running statistics, in training and in evaluation
    Case("dropout", 7, steps=2),
    Case("conv", 7, steps=2, adapts=False),
    Case("vit", 7),
]
BROKEN = [
    Case("conv", 7, fault="mean"),
    Case("conv", 7, fault="local statistics"),
    Case("maps", 1, fault="absent statistics"),
    Case("dropout", 7, fault="own masks"),
]

REFUSED = {
    "functional": "(ConvNorm) draws random numbers that are not tlx's",
    "homemade": "each image's outputs depend on the others of its batch",
    "instance": "'other' is a InstanceNorm2d that updates running statistics",
    "sync": "'other' is a SyncBatchNorm",
}


def of(backend: str, cases: list[Case]) -> list[Case]:
    return [*cases, Case("cumulative", 7, steps=2)] if backend == "torch" else cases  # OneFlow has no momentum=None


def assert_as_one(cases: list[Case], told: list[list[Told]]) -> None:
    for number, case in enumerate(cases):
        for own in (each[number] for each in told):
            assert not own.refusal
            assert own.gradient <= GRADIENT, case
            assert own.loss <= GRADIENT, case
            assert own.statistics <= (STATISTICS if case.steps < 10 else STEPS), case
            assert own.weights <= (GRADIENT if case.steps < 10 else STEPS), case
            assert own.digest == told[0][number].digest, case  # every process has the same bits


def assert_same_bits(told: list[list[Told]]) -> None:
    for each in told:
        assert all(own.digest == own.digest_alone for own in each)


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_two_processes_compute_what_one_does_and_every_fault_shows(backend: str, tmp_path: Path) -> None:
    assert {case.fault for case in BROKEN} == set(FAULTS)
    cases = of(backend, SMALL)
    bits = [Case(name, 7, adapts=False, shards=4, precision="float32", steps=2) for name in ("dropout", "vit")]
    narrow = [Case("conv", 8, precision=precision) for precision in ("float32", "bfloat16")[: 1 + (backend == "torch")]]
    refused = [Case(name, 4, tried=name == "homemade") for name in REFUSED]
    tried = [Case("untracked", 4, tried=True)]
    told = together(backend, 2, [*cases, *bits, *narrow, *refused, *tried, *BROKEN], tmp_path)
    assert_as_one(cases, told)
    at = len(cases)
    assert_same_bits([each[at : at + len(bits)] for each in told])
    at += len(bits)
    # Single precision rounds otherwise; what matters is that statistics and gradients are of the whole batch.
    limits = {"float32": 1e-4, "bfloat16": 0.1}
    assert all(each[at + i].gradient < limits[case.precision] for each in told for i, case in enumerate(narrow))
    at += len(narrow)
    for name, own, other in zip(REFUSED, told[0][at:], told[1][at:], strict=False):
        assert REFUSED[name] in own.refusal and own.refusal == other.refusal
    at += len(refused)
    assert_as_one(tried, [each[at : at + 1] for each in told])
    at += 1
    assert [own.gradient > 1e-3 for own in told[0][at:]] == [True] * len(BROKEN)


@pytest.mark.needs("torch")
def test_each_process_has_a_gpu_of_its_own() -> None:
    from tlx_torch.processes import gpu_of

    second = World(5, 8, 1, 4)
    assert gpu_of(second, 4) == 1
    assert gpu_of(second, 1) == 0  # which is another one than the others see
    with pytest.raises(BackendError, match=r"4 processes run on this machine, which has 2 GPUs"):
        gpu_of(second, 2)


@pytest.mark.thorough
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_any_number_of_processes_computes_what_one_does(backend: str, count: int, tmp_path: Path) -> None:
    # Of two images of 32 pixels the last maps hold two numbers a channel, which no rounding survives.
    sizes = {name: {64: 32, 7: 32, 2: 64} for name in NETS[:2]}
    cases = [Case(name, rows, sizes.get(name, {}).get(rows, 16)) for name in NETS for rows in BATCHES]
    assert_as_one(cases, together(backend, count, cases, tmp_path))


@pytest.mark.thorough
@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_forty_steps_from_pretrained_weights_stay_together(backend: str, test_data: Path, tmp_path: Path) -> None:
    weights = str(test_data / "weights/resnet18-imagenet-backbone.safetensors")
    case = Case("resnet18", 7, 64, steps=40, weights=weights, momentum=0.9)
    for count in (2, 3):
        assert_as_one([case], together(backend, count, [case], tmp_path))


@pytest.mark.thorough
@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_a_fixed_number_of_shards_gives_the_same_bits_on_1_2_and_4_processes(backend: str, tmp_path: Path) -> None:
    told = [together(backend, count, list(BITS), tmp_path) for count in (1, 2, 4)]
    for each in told:
        assert_same_bits(each)
    for number, _ in enumerate(BITS):
        assert len({own[number].digest for each in told for own in each}) == 1
    assert len({own.digest for own in told[0][0]}) == len(BITS)
    without = [replace(case, shards=0) for case in BITS[:1]]
    assert together(backend, 2, without, tmp_path)[0][0].digest != told[0][0][0].digest  # the shards decide the bits
