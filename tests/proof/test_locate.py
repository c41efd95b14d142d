"""The search for the culprit in captures whose modules were recorded in part, as by other tools."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlx.proof.artifact import Capture, Record
from tlx.proof.calls import Call, paired
from tlx.proof.compare import compare
from tlx.proof.replays import odd_size
from tlx.proof.result import Between

pytestmark = pytest.mark.needs("loopback")


def edited(folder: Path, copy: Path, edit: Callable[[dict[str, Any]], bool]) -> Path:
    """Copy a capture; `edit` changes each record and says whether it stays."""
    shutil.copytree(folder, copy)
    lines = (copy / "trace.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if edit(record)]
    (copy / "trace.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    return copy


def without_inputs(record: dict[str, Any]) -> bool:
    """Take away what entered the modules, and what they gave by themselves."""
    if "/visit/" in record["key"]:
        record["files"].pop("input", None)
    return "/replay/" not in record["key"]


def changed(folder: Path, key: str, name: str) -> None:
    """Change every number of an array, which gets a file of its own, as others may share the one it had."""
    record = Capture(folder).records[key]
    file = f"{999999 - len(list(folder.glob('9*.npy'))):06d}.npy"
    np.save(folder / file, record.needed(name) * 1.01 + 0.1)
    text = (folder / "trace.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [line.replace(record.files[name], file) if json.loads(line)["key"] == key else line for line in text]
    assert lines != text
    (folder / "trace.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_module_whose_input_was_not_recorded_is_not_convicted(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = (edited(folder, tmp_path / folder.name, without_inputs) for folder in pair)
    changed(other, "P3/visit/0001", "output")
    changed(other, "P3/logits", "logits")
    report = compare(one, other)
    assert report.difference is not None and isinstance(report.difference.replay, Between)
    between = report.difference.replay
    assert (between.previous, between.path, between.including) == ("fc1", "bn1", True), report.first
    assert report.first.endswith("between fc1 and bn1, or in bn1, which could not be judged by itself.")


def test_equal_outputs_and_other_logits_lie_after_the_last_module(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = shutil.copytree(pair[1], tmp_path / "B")
    changed(other, "P3/logits", "logits")
    report = compare(pair[0], other)
    assert report.first.endswith("the fault lies between fc and the logits.")
    assert report.difference is not None and report.difference.replay == Between("", "fc")


def test_a_capture_without_the_second_size_is_compared_at_the_first(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = edited(pair[1], tmp_path / "B", lambda record: "/@" not in record["key"])
    report = compare(pair[0], other)
    stages = {stage.id: stage for stage in report.stages}
    assert report.verdict == 0 and stages["P3"].facts["sizes"] == [16] and stages["P4"].facts["not_run"] == [29]


def test_an_equal_output_that_is_not_shared_out_alike_is_no_difference(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = shutil.copytree(pair[1], tmp_path / "B")
    changed(other, "P3/visit/0000", "output")
    report = compare(pair[0], other)
    row = next(row for stage in report.stages if stage.id == "P3" for row in stage.rows if row.path == "fc1")
    assert report.verdict == 0 and row.passed and row.cause == "made up for"


def test_calls_of_one_module_are_paired_by_what_entered_them(tmp_path: Path) -> None:
    def call(number: int, value: float) -> Call:
        folder = tmp_path / f"{number}-{value}"
        folder.mkdir()
        np.save(folder / "000000.npy", np.full(3, value))
        files = {"input": "000000.npy", "output": "000000.npy"}
        return Call(Record(folder, "P3/visit/0000", {}, files), "mix", "Linear", number, 0)

    ours = [call(1, 1.0), call(2, 2.0), call(3, 3.0)]
    others, turned = [call(1, 2.5), call(2, 3.5), call(3, 1.5)], [call(1, 3.1), call(2, 1.0), call(3, 2.0)]
    assert [pair.b.number for pair in paired(ours, others) if pair.b] == [1, 2, 3]  # nothing fits, so in order
    assert [pair.b.number for pair in paired(ours, turned) if pair.b] == [2, 3, 1]
    assert [pair.b and pair.b.number for pair in paired(ours, turned[1:])] == [2, 3, None]


@pytest.mark.parametrize("size", [1, 8, 32, 33, 64, 224])
def test_the_second_size_is_odd_and_larger(size: int) -> None:
    assert odd_size(size) > size and odd_size(size) % 2 == 1
