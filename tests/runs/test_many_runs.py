"""What lasts: many epochs cost no more than their number, and runs in one process leave nothing behind."""

from __future__ import annotations

import gc
import os
import threading
import warnings
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.finished_runs import FIELDS
from tlx.data.mixing import Targets, balanced_order
from tlx.data.split import pick_classes
from tlx.runs.display import print_table
from tlx.runs.evaluation import Tally
from tlx.training.loop import State, stalled
from tlx.training.metrics import EpochEnded, Metrics, better

pytestmark = pytest.mark.needs("loopback")
RUNS = 5
PHOTOS = {**FIELDS, "epochs": 1, "augment": "photo", "workers": 2, "save_seconds": 0}  # through threads, and saved


def holdings() -> tuple[Any, ...]:
    """What a run may not leave behind in the process: files, threads, objects of tlx, and filters of warnings."""
    gc.collect()
    own = Counter(type(o).__qualname__ for o in gc.get_objects() if str(type(o).__module__).startswith("tlx."))
    files = {entry: os.readlink(f"/proc/self/fd/{entry}") for entry in os.listdir("/proc/self/fd") if readable(entry)}
    return files, threading.enumerate(), own, len(warnings.filters)


def readable(entry: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{entry}") and "/proc/" not in os.readlink(f"/proc/self/fd/{entry}")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts the files in /proc")
def test_runs_leave_no_file_thread_or_object_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fields = {**PHOTOS, "data": "digits", "limit_train": 60, "limit_test": 20}

    def lap() -> weakref.ref[Any]:
        result = tlx.run(**fields)
        tlx.evaluate(result.run_dir, quiet=True)
        tlx.predict(result.run_dir, np.zeros((8, 8, 3), np.uint8), quiet=True)
        return weakref.ref(result.model)

    lap()  # loads the backend, and what else is loaded once
    before = holdings()
    models = [lap() for _ in range(RUNS)]
    assert holdings() == before
    assert [model() for model in models] == [None] * RUNS
    assert len(list(Path("runs").iterdir())) == RUNS + 1


def test_the_best_epoch_and_patience_follow_from_the_last_best_as_from_the_whole_history() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        state, seen = State(), list[Metrics]()
        for number in range(12):
            measured = Metrics(float(rng.integers(1, 4)), float(rng.integers(1, 4)), 10)
            best = all(better(measured, other) for other in seen)
            seen.append(measured)
            state.history.append(EpochEnded(number, "train", measured, measured, (0.1,), 1.0, best))
            for patience in (1, 2, 5):
                late, early = seen[-patience:], seen[:-patience]
                expected = bool(early) and max(m.accuracy for m in late) <= max(m.accuracy for m in early)
                assert stalled(state.history, patience) == expected
        first = max(range(12), key=lambda number: (seen[number].accuracy, -seen[number].loss, -number))
        assert State(state.history).best_epoch == first


def test_ten_thousand_classes_need_no_table_of_their_square() -> None:
    classes, labels = 10_000, np.array([0, 9_999, 5])
    targets = Targets(classes, label_smoothing=0.5).apply(np.zeros((3, 3, 8, 8), np.uint8), labels, 0, 0, 0)
    assert targets is not None and np.array_equal(targets, np.eye(classes)[labels] * 0.5 + 0.5 / classes)
    order = balanced_order(np.arange(2 * classes) % classes, classes, 0, 0)
    assert np.array_equal(np.sort(order), np.arange(2 * classes))


def test_classes_are_picked_in_the_order_that_is_asked_for() -> None:
    names = [f"c{number}" for number in range(10_000)]
    images = tlx.load_data(
        {"train": (np.zeros((10_000, 8, 8, 3), np.uint8), np.arange(10_000)), "classes": names},
        val_fraction=0,
        test_fraction=0,
    ).train
    picked = pick_classes(images, names, names[::-1])
    assert np.array_equal(picked.labels, np.arange(10_000)[::-1])


def test_the_first_k_are_those_of_a_stable_order() -> None:
    rng = np.random.default_rng(0)
    for k in (None, 1, 3):
        tally, hits = Tally(np.zeros((6, 6), dtype=np.int64)), 0
        for label in rng.integers(0, 6, 200):
            logits = rng.integers(0, 3, 6).astype(np.float64)
            order = np.argsort(-logits, kind="stable")
            hits += label in order[:k]
            before = tally.confusion[label, order[0]]
            tally.add(logits, label, k)
            assert tally.confusion[label, order[0]] == before + 1
        assert tally.hits == hits


def test_a_class_name_of_255_bytes_leaves_the_numbers_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("class", "images", "F1"), [("cat", "12345", "0.5678"), ("ü" * 127 + "x", "1", "1.0000")], right=(1, 2))
    out = capsys.readouterr().out
    assert out.count("ü") == 127 and "…" not in out
    assert next(line for line in out.splitlines() if "cat" in line).split() == ["cat", "12345", "0.5678"]
