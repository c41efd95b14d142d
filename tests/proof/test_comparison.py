"""`tlx parity` from end to end on the NumPy backend, where no framework is needed."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from tlx.conformance.loopback import Loopback
from tlx.proof import words
from tlx.proof.artifact import Capture
from tlx.proof.capture import capture
from tlx.proof.compare import compare
from tlx.proof.report import Report
from tlx.proof.result import Row, Stage, Verdict
from tlx.recipe import Recipe

pytestmark = pytest.mark.needs("loopback")

Command = Callable[..., Any]


def stage_of(report: Report, id: str) -> Stage:
    return next(stage for stage in report.stages if stage.id == id)


def test_two_processes_agree_and_every_boundary_is_crossed(parity: Command, pair: tuple[Path, Path]) -> None:
    done = parity("compare", *pair, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, "one object on one line"
    report = json.loads(done.stdout)
    assert report["verdict"] == "equal" and report["first"] == "" and report["difference"] is None
    stages = {stage["id"]: stage for stage in report["stages"]}
    assert all(stages[f"P{i}"]["passed"] for i in range(9)) and stages["P9"]["passed"] is None
    assert stages["P10"]["figure"] is None and "--seeds" in stages["P10"]["summary"]
    steps = [row for row in stages["P6"]["rows"] if row["kind"] == "step"]
    events = [row["events"] for row in steps if "events" in row]
    assert len(steps) >= 40 and len(events) == 3  # the rate falls with each epoch, and one of them unfreezes
    assert ["4 arrays unfreeze", "1 norm layer begins to adapt", "the learning rate changes"] in events


def test_the_screen_fits_and_the_page_has_each_module(parity: Command, pair: tuple[Path, Path], tmp_path: Path) -> None:
    done = parity("compare", *pair, "--html", tmp_path / "page.html")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("EQUAL") and len(lines) < 40 and max(map(len, lines)) <= 80
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "fc1" in page and "step 39" in page and "http" not in page


def test_a_capture_that_knows_its_data_as_tlx_0_1_0_did_is_compared(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old = shutil.copytree(pair[0], tmp_path / "old")
    manifest = json.loads((old / "manifest.json").read_text())
    for first, same in ((manifest.pop("first_data"), True), ("0" * 64, False)):
        manifest["must"]["data"] = first
        (old / "manifest.json").write_text(json.dumps(manifest))
        for captures in ((old, pair[1]), (pair[1], old)):
            assert stage_of(compare(*captures), "P0").passed is same


def test_captures_of_different_recipes_are_not_comparable(
    parity: Command, pair: tuple[Path, Path], options: list[str], tmp_path: Path
) -> None:
    other = parity("capture", "--backend", "loopback", "-o", tmp_path / "C", *options, "--lr", "0.5")
    assert other.returncode == 0, other.stderr
    done = parity("compare", pair[0], tmp_path / "C")
    assert done.returncode == 2 and done.stdout.startswith("NOT COMPARABLE")
    assert "lr: 0.001 against 0.5" in done.stdout


def test_too_few_steps_show_nothing(fields: dict[str, Any], tmp_path: Path) -> None:
    few = Recipe(**{**fields, "backend": "loopback", "strategy": "full", "epochs": 1, "data": few_images()})
    for name in ("A", "B"):
        capture(few, Loopback(), tmp_path / name)
    report = compare(tmp_path / "A", tmp_path / "B")
    assert report.verdict == Verdict.UNDERPOWERED and report.first == ""
    stage = stage_of(report, "P6")
    assert stage.figure == 8 and words.outcome(stage) == "underpowered"
    assert "P6 underpowered: only 8 of 40 steps" in str(report)


def few_images() -> dict[str, Any]:
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    labels = np.arange(60) % 3
    return {"train": (images, labels), "test": (images[:9], labels[:9])}


def test_runs_with_several_seeds_are_compared_in_pairs(fields: dict[str, Any]) -> None:
    short = {**fields, "limit_train": 200, "limit_test": 50, "val_fraction": 0}
    report = tlx.parity(short, reference="loopback", candidate="loopback", seeds=5, margin=0.01)
    stage = report.stages[-1]
    assert stage.id == "P10" and stage.passed and report.verdict == Verdict.EQUAL
    assert tlx.parity(short, reference="loopback", candidate="loopback", seeds=2).verdict == Verdict.UNDERPOWERED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "nowhere", "nowhere"), "holds no finished capture: manifest.json is missing"),
        (("compare", "x" * 5000, "nowhere"), "holds no finished capture: manifest.json is missing"),
        (("--backend", "loopback"), "parity has no backend; use reference and candidate"),
        (("--reference", "torhc"), "Unknown backend 'torhc'. Did you mean 'torch'"),
        (("capture", "--backend", "loopback", "-o", "{A}", "--model", "tiny-mlp"), "is not empty"),
        (("selftest", "--backend", "nosuch"), "Unknown backend 'nosuch'"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], message: str, parity: Command, pair: tuple[Path, Path]
) -> None:
    done = parity(*(argument.format(A=pair[0]) for argument in arguments))
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("apart", "factor", "passed"), [(0, 1, True), (2, 1.01, True), (3, 1.01, False), (1, math.nan, False)]
)
def test_one_float32_step_is_judged_by_most_batches(
    apart: int, factor: float, passed: bool, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """A ReLU input within rounding of zero sets a batch or two apart; a change of meaning sets all apart."""
    shutil.copytree(pair[1], tmp_path / "C")
    records = Capture(tmp_path / "C").stage("P8/float32")
    assert len(records) == 5
    for record in records[:apart]:
        np.save(tmp_path / "C" / record.files["gradients"], record.needed("gradients") * factor)
    report = compare(pair[0], tmp_path / "C")
    stage = stage_of(report, "P8")
    distances = stage.rows[0].distances
    assert stage.passed is passed and distances is not None and distances.inside is passed
    assert (distances.outside, distances.batches) == (apart, 5)
    assert report.first.startswith("One float32 step differs by more than rounding") is not passed


@pytest.mark.parametrize(("kept", "quick", "passed"), [(3, True, True), (2, True, False), (3, False, False)])
def test_batches_may_lack_in_a_quick_capture_alone(
    kept: int, quick: bool, passed: bool, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(pair[1], tmp_path / "C")
    lines = (pair[1] / "trace.jsonl").read_text().splitlines(keepends=True)
    keys = [json.loads(line)["key"] for line in lines]
    stay = [not (key.startswith("P8/") and int(key.rpartition("/")[2]) >= kept) for key in keys]
    (tmp_path / "C" / "trace.jsonl").write_text("".join(itertools.compress(lines, stay)))
    manifest = json.loads((pair[1] / "manifest.json").read_text())
    (tmp_path / "C" / "manifest.json").write_text(json.dumps({**manifest, "quick": quick}))
    assert stage_of(compare(pair[0], tmp_path / "C"), "P8").passed is passed


def test_every_kind_of_row_that_a_comparison_makes_has_a_name(pair: tuple[Path, Path]) -> None:
    rows = [row for stage in compare(*pair).stages for row in stage.rows]
    assert all(words.name(row) for row in rows)
    assert {"weight", "batch", "output", "gradient", "update", "step", "count", "ratio"} <= {row.kind for row in rows}


def edited(pair: tuple[Path, Path], folder: Path, **facts: Any) -> Path:
    """Copy the second capture and replace facts of its first step."""
    shutil.copytree(pair[1], folder)
    lines = (folder / "trace.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        if record["key"] == "P6/0000":
            record["facts"].update(facts)
    (folder / "trace.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    return folder


def test_a_name_that_looks_like_a_message_is_only_a_name(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """No reader takes facts from words: an array may be called whatever its author likes."""
    other = edited(pair, tmp_path / "C", slots=[["stopped; boundary: G = missing in the/momentum", [3], 3]])
    stage = stage_of(compare(pair[0], other), "P6")
    row: Row = next(row for row in stage.rows if row.kind == "step")
    assert row.kind == "step" and not row.passed and row.quantity == "slots" and not row.stopped and not row.missing
    assert [row.passed for row in stage.rows].count(False) == 1
