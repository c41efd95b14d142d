"""`tlx parity --processes`: one process against several."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tlx
from tlx.errors import TlxError
from tlx.processes import World
from tlx.proof.capture import capture
from tlx.proof.compare import compare
from tlx.proof.result import Verdict
from tlx.recipe import Recipe

RECIPE: dict[str, Any] = {
    "model": "tiny-mlp-dropout",
    "data": "digits",
    "strategy": "full",
    "optimizer": "adamw",
    "image_size": 16,
}


@dataclass(frozen=True)
class Echo:
    """A channel whose other process gives whatever this one does, and so the gradients of the same rows."""

    world: World = World(0, 2)  # noqa: RUF009 (frozen)

    def gather(self, part: bytes) -> list[bytes]:
        return [part, part]


def test_two_processes_compute_what_one_does() -> None:
    report = tlx.parity(reference="loopback", processes=2, quick=True, weights="none", **RECIPE)
    assert report.verdict == Verdict.EQUAL, str(report)
    assert "in 2 processes" in report.candidate
    assert [stage.id for stage in report.stages if stage.passed is not None] == ["P0", "P1", "P2", "P6", "P7"]


def test_rows_that_count_twice_are_found(tmp_path: Path) -> None:
    recipe = Recipe(backend="loopback", weights="none", **RECIPE)
    first = capture(recipe, "loopback", tmp_path / "A", quick=True)
    second = capture(None, "loopback", tmp_path / "B", first, quick=True, channel=Echo())
    report = compare(first, second)
    assert report.verdict == Verdict.DIFFERENT
    assert "step 0" in report.first


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"processes": 1}, "processes is 1; expected 2 or more"),
        ({"processes": 2, "seeds": 5}, "leave seeds out"),
    ],
)
def test_what_cannot_be_asked_for_is_said(options: dict[str, Any], text: str) -> None:
    with pytest.raises(TlxError, match=text):
        tlx.parity(reference="loopback", quick=True, **RECIPE, **options)
