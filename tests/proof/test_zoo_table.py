"""The table of all models: what a cell says, what is done again, and what cannot be measured here."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tlx.conformance.loopback import Loopback
from tlx.models.zoo import ARCHITECTURES
from tlx.proof import selftest, zoo_table
from tlx.proof.capture import capture
from tlx.proof.report import Report
from tlx.proof.result import Stage, Verdict
from tlx.proof.zoo_table import Cell, complete, main, obstacle, read, sizes, table

pytestmark = pytest.mark.needs("loopback")

EQUAL: dict[str, Any] = {"parameters": 700_000, "verdict": "EQUAL", "figures": {"P1": 0.0, "P6": 4.0}, "unseen": 1e-7}


def test_each_model_is_measured_at_an_even_and_an_odd_size_that_it_takes() -> None:
    assert sizes("resnet18") == (64, 49) and sizes("inception_v3") == (80, 75) and sizes("alexnet") == (68, 63)
    assert sizes("vit_b_16") == (64, 48) and sizes("vit_b_32") == (64, 96) and sizes("vit_h_14") == (70, 42)
    for arch in ARCHITECTURES.values():
        if arch.imagenet:
            even, odd = sizes(arch.name)
            assert even % 2 == 0 and odd // (arch.patch or 1) % 2 == 1
            assert arch.fitting(even) == even and arch.fitting(odd) == odd


def test_what_is_equal_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[tuple[str, int]] = []

    def measured(model: str, optimizer: str, size: int) -> Cell:
        run.append((optimizer, size))
        return (
            Cell(model, optimizer, size, why="differs", verdict="DIFFERENT")
            if size == 64
            else Cell(model, optimizer, size, **EQUAL)
        )

    monkeypatch.setattr(zoo_table, "measured", measured)
    wanted = [("sgd", 64), ("sgd", 49)]
    assert [cell.equal for cell in complete("resnet18", tmp_path, wanted)] == [False, True]
    complete("resnet18", tmp_path, wanted)
    assert run == [("sgd", 64), ("sgd", 49), ("sgd", 64)]
    assert len((tmp_path / "resnet18.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    assert main(["resnet18", "--optimizer", "sgd", "--odd", "--results", str(tmp_path)]) == 0
    assert main(["resnet18", "--optimizer", "sgd", "--results", str(tmp_path)]) == 1


def test_a_model_that_does_not_fit_has_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo_table, "free_memory", lambda: 8 * 10**9)
    assert obstacle(11_000_000) == ""
    cell = zoo_table.measured("regnet_y_128gf", "sgd", 64)
    assert "not measured: it takes about 61 GB of memory, and 8 GB were free" in str(cell)
    monkeypatch.setattr(zoo_table, "free_disk", lambda: 10**9)
    assert "GB of disk" in obstacle(11_000_000)


def test_a_cell_is_made_of_two_processes_and_one_that_fails_is_a_row() -> None:
    cell = zoo_table.measured("tiny-mlp", "sgd", 17, "loopback", "loopback")
    assert cell.equal and cell.locked == 8 and cell.unseen is not None and cell.silent is None, str(cell)
    assert cell.figures.keys() == {"P0", *zoo_table.STAGES}
    assert "backend 'loopback' has no model" in zoo_table.measured("resnet18", "sgd", 64, "loopback", "loopback").why


@pytest.mark.thorough  # as the self-test itself
def test_what_a_cell_runs_finds_every_planted_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "capture", partial(capture, serves=False, whole=False))
    monkeypatch.setattr(selftest, "STAGES", zoo_table.STAGES)
    findings = list(selftest.selftest(Loopback()))
    assert len(findings) > 30
    assert [finding.name for finding in findings if not finding.right] == []


@pytest.mark.parametrize(
    ("verdict", "why"), [("DIFFERENT", "layer1.0"), ("EQUAL", "somewhere"), ("", "somewhere")], ids=str
)
def test_what_differs_is_run_again_in_whole_and_stays(verdict: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[bool] = []

    def measured(*job: Any, whole: bool) -> Cell:
        run.append(whole)
        found, place = (verdict, "layer1.0") if whole else ("DIFFERENT", "somewhere")
        return Cell("resnet18", "sgd", 64, verdict=found, why=place)

    monkeypatch.setattr(zoo_table, "_measured", measured)
    cell = zoo_table.measured("resnet18", "sgd", 64)
    assert (cell.verdict, cell.why, run) == ("DIFFERENT", why, [False, True])


def test_a_cell_that_shows_too_little_says_so() -> None:
    report = Report("torch", "oneflow", "swin_s", Verdict.UNDERPOWERED, (Stage("P6", 16.0, 40.0, None, enough=False),))
    cell = zoo_table._cell(report, "swin_s", "sgd", 64, 1, 1.0)
    assert not cell.equal and str(cell).endswith("| too little was run to show equality or a difference |")


def test_the_table_has_every_model(tmp_path: Path) -> None:
    (tmp_path / "squeezenet1_1.jsonl").write_text("", encoding="utf-8")
    zoo_table.append(tmp_path / "squeezenet1_1.jsonl", Cell("squeezenet1_1", "sgd", 49, locked=9, silent=22, **EQUAL))
    lines = table(tmp_path, ["resnet18", "squeezenet1_1"]).splitlines()
    assert lines[-2].startswith("| resnet18 | 11.7 M | - | 0 |") and "not run yet" in lines[-2]
    assert lines[-1] == "| squeezenet1_1 | 0.7 M | sgd | 49 | 0 | - | - | - | - | 4 | 9 | 1.0e-7 | 22 | equal |"
    assert lines[-2].count("|") == lines[-1].count("|") == lines[-3].count("|")
    assert read(tmp_path / "none.jsonl") == {}
