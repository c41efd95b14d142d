"""The matrix of models and strategies: what a cell finds, what is done again, and what ends a process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlx.models.zoo import ARCHITECTURES
from tlx.proof import matrix
from tlx.proof.matrix import STRATEGIES, Cell, Row, complete, examine, rows, table
from tlx.training.boundary import Boundary

FIELDS: dict[str, Any] = {
    **{"data": "digits", "classes": ("0", "1"), "val_fraction": 0.2, "limit_test": 4, "weights": "none"},
    **{"image_size": 8, "batch_size": 8, "augment": "none"},
}
TINY = Row("tiny", "tiny-mlp", FIELDS)


def test_every_cell_of_a_network_holds_and_is_run_once(tmp_path: Path) -> None:
    cells = complete(TINY, "loopback", tmp_path)
    assert list(cells) == list(STRATEGIES) and not any(cell.why for cell in cells.values())
    # Its backbone is one stage, which `partial` trains.
    assert {name for name, cell in cells.items() if cell.cached} == {*matrix.FREEZING} - {"partial"}
    (file,) = tmp_path.glob("*.jsonl")
    lines = file.read_text(encoding="utf-8").splitlines()
    failed = Cell("tiny", "loopback", "partial", "it failed before")
    matrix.append(file, failed)
    again = complete(TINY, "loopback", tmp_path)
    assert {name: cell for name, cell in again.items() if name != "partial"} == {
        name: cell for name, cell in cells.items() if name != "partial"
    }
    assert not again["partial"].why and len(lines) == 2 * len(STRATEGIES)


def test_a_cell_fails_where_caching_changes_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Boundary.compute
    monkeypatch.setattr(Boundary, "compute", lambda *args: compute(*args) * np.float32(1 + 1e-6))
    why = examine(TINY, "loopback", "feature_extract").why  # whether the history differs too depends on the processor
    assert why.removeprefix("differ where features are cached: ") in ("history, weights", "weights")


def test_a_cell_fails_where_what_is_frozen_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    beginning = matrix.beginning

    def another(*args: Any) -> Any:
        arch, specs, start = beginning(*args)
        return arch, specs, {**start, "fc1.weight": start["fc1.weight"] + 1}

    monkeypatch.setattr(matrix, "beginning", another)
    assert examine(TINY, "loopback", "feature_extract").why == "1 arrays are frozen and moved, first fc1.weight"
    assert not examine(TINY, "loopback", "full").why
    assert examine(TINY, "loopback", "lora").why == "the base of the adapters moved"


def test_a_cell_that_ends_or_holds_up_its_process_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell is tried, in a process of its own where the one before it was killed."""
    monkeypatch.setattr(matrix, "SECONDS", 0.001)
    cells = complete(TINY, "loopback", tmp_path)
    assert list(cells) == list(STRATEGIES)
    assert {cell.why for cell in cells.values()} == {"it took more than 0 s"}
    log = (
        "F20261126 shape.cpp:30] Check failed: index < tp()->NumAxes() (2 vs. 2)\n*** Check failure stack trace: ***\n"
    )
    assert matrix.ended(-6, log) == (
        "the process ended with signal 6: F20261126 shape.cpp:30] Check failed: index < tp()->NumAxes() (2 vs. 2)"
    )


def test_the_table_has_a_line_for_each_model_and_says_what_fails_and_what_was_not_run() -> None:
    listed = rows()
    assert {row.model for row in listed} == {arch.name for arch in ARCHITECTURES.values() if arch.imagenet}
    cells = {
        ("resnet18", "torch"): {
            "full": Cell("resnet18", "torch", "full"),
            "partial": Cell("resnet18", "torch", "partial", cached=True),
            "gradual": Cell("resnet18", "torch", "gradual", "the losses are nan"),
        }
    }
    text = table(listed, cells, {"vgg16": "there was no memory"})
    assert "| resnet18 | 11.7 M | 32 | - | ok | - | - | = | - | **fails** | - | - |" in text
    assert "- resnet18, gradual, torch: the losses are nan" in text
    assert "- vgg16: there was no memory" in text
    assert text.count("\n| ") == 2 * (len(listed) + 1)


def test_a_row_that_needs_more_memory_than_is_free_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    by_name = {row.name: row for row in rows()}
    monkeypatch.setattr(matrix, "free_memory", lambda: 10**10)
    assert matrix.obstacle(by_name["regnet_y_128gf"]) == "it takes about 26 GB of memory, and 10 GB were free"
    assert not matrix.obstacle(by_name["resnet18"])
