"""One recipe, two backends: the same batches, and in float64 the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import tlx
from support.backends import FRAMEWORKS
from support.distance import relative_distance
from tlx.backend import Batch, Hyper, ModelSpec, OptimizerSpec, Preprocess, registry
from tlx.models.initial_values import initial_values
from tlx.models.zoo import architecture
from tlx.strategy.schedule import float32_exact

# Float64 rounding grows over 40 steps to about 1e-13; a change of meaning is at least 1e-7.
LIMIT = 1e-9

pytestmark = [pytest.mark.slow, pytest.mark.needs(*FRAMEWORKS)]

DIGITS = {
    "data": "digits",
    "limit_train": 160,
    "limit_test": 20,
    "val_fraction": 0,
    "batch_size": 8,
    "epochs": 2,
    "image_size": 32,
    "weights": "none",
    "augment": "flips",
    "schedule": "cosine",
    "precision": "float64",
    "quiet": True,
}
JOBS: dict[str, dict[str, Any]] = {
    "every parameter, batch statistics": {"strategy": "full"},
    "a rate for each stage, Adam, warm-up": {"strategy": "layer_decay", "optimizer": "adam", "warmup": 0.5},
    "frozen backbone that adapts its statistics": {"strategy": "feature_extract", "frozen_norm": "adapt"},
    "last stage and head, AdamW, clipped": {
        **{"strategy": "partial", "optimizer": "adamw", "clip_norm": 0.5, "decay_on": "weights", "micro_batch": 4},
        **{"augment": "flips+rotate", "label_smoothing": 0.1},
    },
    "an unfreeze, RMSprop, averaged, mixed": {
        **{"strategy": "head_then_full", "optimizer": "rmsprop", "ema": 0.9, "schedule": "one_cycle"},
        **{"mixup": 0.4, "cutmix": 1.0, "class_weights": "balanced", "sampler": "balanced"},
    },
    "stage by stage": {"strategy": "gradual", "epochs": 5, "limit_train": 64},
    "convolutional head behind dropout": {
        "strategy": "feature_extract",
        "model": "squeezenet1_0",
        "optimizer": "adam",
        "image_size": 48,
    },
}


SAMPLED = ("frozen backbone that adapts its statistics", "convolutional head behind dropout")


@pytest.mark.parametrize(
    "job", [job if job in SAMPLED else pytest.param(job, marks=pytest.mark.thorough) for job in JOBS]
)
def test_forty_float64_steps_agree(job: str, tmp_path: Path) -> None:
    runs = [tlx.run(**{**DIGITS, **JOBS[job]}, backend=backend, out=str(tmp_path / backend)) for backend in FRAMEWORKS]
    assert [run.epochs_run * run.recipe.limit_train // 8 for run in runs] == [40, 40]
    reference, candidate = (load_file(run.run_dir / "model.safetensors") for run in runs)
    assert reference.keys() == candidate.keys() and len(reference) >= 52
    apart = {name: relative_distance(reference[name], candidate[name]) for name in reference}
    worst = max(apart, key=lambda name: apart[name])
    assert apart[worst] <= LIMIT, f"{worst}: {apart[worst]:.1e}"
    for a, b in zip(runs[0].history, runs[1].history, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=LIMIT)
        assert a["train_accuracy"] == b["train_accuracy"]
    assert runs[0].test_accuracy == runs[1].test_accuracy


@contextmanager
def recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """Keep what crosses into a backend, and what its device then holds."""
    backend = registry.load(name)
    put, batches = backend.put, []

    def record(model: Any, batch: Batch) -> Any:
        on_device = put(model, batch)
        pixels = backend.fetch([on_device.images])[0]
        batches.append((batch.images.copy(), batch.labels.copy(), batch.indices.copy(), batch.key, pixels))
        return on_device

    with monkeypatch.context() as patch:
        patch.setattr(backend, "put", record)
        yield batches


def test_both_backends_receive_bit_identical_batches(
    test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for backend in FRAMEWORKS:
        with recorded(backend, monkeypatch) as batches:
            tlx.run(
                backend=backend,
                data="cifar10",
                data_root=str(test_data),
                limit_train=50,
                limit_test=20,
                val_fraction=0.2,
                batch_size=12,
                epochs=2,
                image_size=32,
                strategy="feature_extract",
                weights="none",
                precision="float32",
                feature_cache="off",
                out=str(tmp_path / backend),
                quiet=True,
            )
        seen.append(batches)
    assert len(seen[0]) == len(seen[1]) == 2 * (4 + 1) + 2  # 40 train (4 batches) and 10 val, twice; then 20 test
    for reference, candidate in zip(*seen, strict=True):
        for a, b in zip(reference, candidate, strict=True):
            assert np.array_equal(a, b)
    first, second = (np.concatenate([batch[2] for batch in seen[0][i : i + 4]]) for i in (0, 5))
    assert not np.array_equal(first, second) and np.array_equal(np.sort(first), np.sort(second))


@pytest.mark.parametrize(
    "optimizer", ["sgd", "adamw", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("adam", "rmsprop"))]
)
def test_a_run_continues_on_the_other_backend(optimizer: str) -> None:
    """Values and optimizer state move from torch to OneFlow in the middle of six steps."""
    arch = architecture("resnet18")
    spec = OptimizerSpec(optimizer, float32_exact(0.9))
    hyper = Hyper(float32_exact(1e-3), float32_exact(5e-4))

    def start(name: str) -> tuple[Any, Any, Any]:
        backend = registry.load(name)
        model = backend.build(ModelSpec("resnet18", 10, arch.head), "cpu", "float64")
        names = tuple(s.name for s in backend.param_specs(model) if s.role != "statistic")
        norms = frozenset(s.module for s in backend.param_specs(model) if s.role == "statistic")
        backend.load_arrays(model, initial_values(backend.param_specs(model), arch, "none", 0)[0])
        handle = backend.optimizer(model, spec, [names])
        backend.set_phase(model, frozenset(names), norms)
        return backend, model, handle

    def steps(backend: Any, model: Any, handle: Any, numbers: range) -> None:
        for i in numbers:
            rng = np.random.default_rng(i)
            images = rng.integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
            batch = Batch(images, rng.integers(0, 10, 8), np.arange(8), Preprocess(32), (0, i, 0))
            backend.set_hyper(handle, [hyper])
            backend.backward(model, backend.put(model, batch))
            backend.update(model, handle)

    whole = start("torch")
    steps(*whole, range(6))
    first, second = start("torch"), start("oneflow")
    steps(*first, range(3))
    second[0].load_arrays(second[1], first[0].dump_arrays(first[1]))
    second[0].load_optimizer(second[2], first[0].dump_optimizer(first[2]))
    steps(*second, range(3, 6))
    expected, continued = whole[0].dump_arrays(whole[1]), second[0].dump_arrays(second[1])
    assert max(relative_distance(expected[name], continued[name]) for name in expected) <= LIMIT
