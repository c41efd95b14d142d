"""Where a framework rounds an image otherwise in another batch, or cannot begin in the middle, a run stays the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.features import FIELDS, outcome
from tlx.backend import Array
from tlx.conformance import reference
from tlx.conformance.loopback import Loopback
from tlx.training.metrics import FeaturesKept, FeaturesNotKept

LINEAR = reference.linear


def tail(y: Array) -> Array:
    """As matrix products do that take four rows at a time: the last few are summed in another order."""
    y[len(y) - len(y) % 4 :] *= 1 + np.float32(2**-23)
    return y


def few(y: Array) -> Array:
    """As where another kernel takes over."""
    return y * (1 + np.float32(2**-23)) if len(y) < 10 else y


def first(y: Array) -> Array:
    """As where what lies otherwise in memory is summed in another order."""
    y[::2] *= 1 + np.float32(2**-23)
    return y


def results(fields: dict[str, Any], folder: Path) -> tuple[Any, Any, list[str], int]:
    """The outcome without caching and with it, the notes of the latter, and how many parts it cached."""
    events: list[Any] = []
    without = tlx.run(fields, feature_cache="off", quiet=True, out=str(folder / "off"))
    cached = tlx.run(fields, feature_cache="run", quiet=True, out=str(folder / "run"), on_event=events.append)
    notes = [str(event) for event in events if isinstance(event, FeaturesNotKept)]
    return outcome(without), outcome(cached), notes, sum(isinstance(event, FeaturesKept) for event in events)


@pytest.mark.parametrize("last", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("rounding", [tail, few])
def test_a_last_batch_that_rounds_otherwise_changes_no_bit(
    last: int, rounding: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "linear", lambda x, w, b: rounding(LINEAR(x, w, b)))
    without, cached, notes, parts = results({**FIELDS, "limit_train": round((48 + last) / 0.8)}, tmp_path)
    assert cached == without
    assert parts == 2 - len(notes) and not any("train" in note for note in notes)


@pytest.mark.parametrize(
    ("rounding", "fields", "said"),
    [
        (first, {}, "loopback rounds what enters dropout otherwise in another place of a batch"),
        (tail, {"batch_size": 10}, "loopback rounds what enters dropout otherwise in another place of a batch"),
        (tail, {"micro_batch": 6}, "train images go through the whole model: loopback rounds what enters dropout"),
    ],
)
def test_where_all_batches_round_otherwise_nothing_is_cached_and_a_note_says_so(
    rounding: Any, fields: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "linear", lambda x, w, b: rounding(LINEAR(x, w, b)))
    without, cached, notes, _ = results({**FIELDS, **fields}, tmp_path)
    assert cached == without
    assert any(said in note for note in notes)


@pytest.mark.parametrize("method", ["features", "logits"])
@pytest.mark.parametrize("error", [ValueError, IndexError, AssertionError, ZeroDivisionError])
def test_a_boundary_that_raises_anything_is_no_boundary(
    method: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model's own code may raise what it likes where its pass is divided; the run goes on, and says so."""
    whole = getattr(Loopback, method)

    def fails(self: Any, model: Any, batch: Any, boundary: str = "") -> Any:
        if boundary or batch.boundary:
            raise error("Input dimension should be at least 3")
        return whole(self, model, batch)

    monkeypatch.setattr(Loopback, method, fails)
    without, cached, notes, parts = results(FIELDS, tmp_path)
    assert cached == without and not parts
    assert notes == [f"features are not cached: dropout: {error.__name__}: Input dimension should be at least 3"]


def test_a_boundary_that_takes_only_some_batches_is_no_boundary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the images do not come first in what enters the module."""
    take, calls = Loopback.features, list[str]()

    def fails(self: Any, model: Any, batch: Any, boundary: str = "") -> Any:
        calls.append(boundary)
        if len(calls) > 1:
            raise ValueError("8 images were expected")
        return take(self, model, batch, boundary)

    monkeypatch.setattr(Loopback, "features", fails)
    without, cached, notes, parts = results(FIELDS, tmp_path)
    assert cached == without and not parts
    assert notes == ["features are not cached: dropout: ValueError: 8 images were expected"]


def test_a_boundary_that_gives_other_logits_is_no_boundary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a model that uses more than what enters the module."""
    take = Loopback.features
    monkeypatch.setattr(Loopback, "features", lambda *args: take(*args) + 1e-3)
    without, cached, notes, parts = results(FIELDS, tmp_path)
    assert cached == without and not parts
    assert notes == ["features are not cached: from dropout on the logits are not those of the whole model"]
