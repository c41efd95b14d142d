"""`tlx parity` from end to end on the reference backend, where no framework is needed."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from tlx.backend import registry
from tlx.conformance.loopback import Loopback
from tlx.errors import TlxError
from tlx.proof.artifact import Capture
from tlx.proof.capture import capture
from tlx.proof.compare import compare
from tlx.proof.faults import Fault, faults
from tlx.proof.measure import relative, sketch
from tlx.proof.result import Verdict
from tlx.proof.selftest import selftest
from tlx.recipe import Recipe

FIELDS: dict[str, Any] = {
    "model": "tiny-mlp",
    "backend": "loopback",
    "data": "digits",
    "weights": "none",
    "image_size": 16,
    "strategy": "head_then_full",
    "schedule": "step",
    "step_size": 1,
    "epochs": 4,
}
COMMAND = [
    *("--model", "tiny-mlp", "--data", "digits", "--weights", "none", "--image-size", "16"),
    *("--strategy", "head_then_full", "--schedule", "step", "--step-size", "1", "--epochs", "4"),
]


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", "from tlx.cli import main; main()", "parity", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80"})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two captures of one recipe, made by two processes; the second one has nothing but the first."""
    home = tmp_path_factory.mktemp("captures")
    first = command("capture", "--backend", "loopback", "-o", home / "A", *COMMAND)
    second = command("capture", "--backend", "loopback", "-o", home / "B", "--plan", home / "A")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    return home / "A", home / "B"


def test_two_processes_agree_and_every_boundary_is_crossed(pair: tuple[Path, Path]) -> None:
    done = command("compare", *pair, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["verdict"] == "equal" and report["first"] == ""
    stages = {stage["id"]: stage for stage in report["stages"]}
    assert all(stages[f"P{i}"]["passed"] for i in range(9)) and stages["P9"]["passed"] is None
    assert stages["P10"]["figure"] is None and "--seeds" in stages["P10"]["summary"]
    steps = stages["P6"]["rows"]
    events = [row["note"] for row in steps if row["note"]]
    assert len(steps) >= 40 and len(events) == 3  # the rate falls with each epoch, and one of them unfreezes
    assert "arrays unfreeze, 1 norm layers begin to adapt, the learning rate changes" in " ".join(events)


def test_the_screen_fits_and_the_page_has_each_module(pair: tuple[Path, Path], tmp_path: Path) -> None:
    done = command("compare", *pair, "--html", tmp_path / "page.html")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("EQUAL") and len(lines) < 40 and max(map(len, lines)) <= 80
    page = (tmp_path / "page.html").read_text()
    assert "fc1" in page and "step 39" in page and "http" not in page


def test_what_was_not_asked_alike_is_not_comparable(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = command("capture", "--backend", "loopback", "-o", tmp_path / "C", *COMMAND, "--lr", "0.5")
    assert other.returncode == 0, other.stderr
    done = command("compare", pair[0], tmp_path / "C")
    assert done.returncode == 2 and done.stdout.startswith("NOT COMPARABLE") and "lr: " in done.stdout


def test_too_few_steps_show_nothing(tmp_path: Path) -> None:
    few = Recipe(**{**FIELDS, "strategy": "full", "epochs": 1, "data": few_images()})
    for name in ("A", "B"):
        capture(few, Loopback(), tmp_path / name)
    report = compare(tmp_path / "A", tmp_path / "B")
    assert report.verdict == Verdict.UNDERPOWERED
    stage = next(stage for stage in report.stages if stage.id == "P6")
    assert stage.figure == 8 and "only 8 of 40 steps" in stage.summary


def few_images() -> dict[str, Any]:
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    labels = np.arange(60) % 3
    return {"train": (images, labels), "test": (images[:9], labels[:9])}


@pytest.fixture(scope="module")
def findings() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in selftest(Loopback()):
        found.setdefault(each.name, []).append(each)
    return found


def test_no_clean_pair_is_blamed(findings: dict[str, Any]) -> None:
    assert len(findings[""]) == 2 and all(each.report.verdict == Verdict.EQUAL for each in findings[""])


@pytest.mark.parametrize("fault", [fault.name for fault in faults(Loopback())])
def test_each_planted_fault_is_found(fault: str, findings: dict[str, Any]) -> None:
    (finding,) = findings[fault]
    assert finding.report.verdict == Verdict.DIFFERENT and finding.report.first


# The stage that must convict, and what it must say: a fault that is found by luck elsewhere is not understood.
SAID = {
    "a weight is missing": ("P1", "fc1.weight (missing in the candidate)"),
    "one wrong label": ("P2", "the label of sample"),
    "two batches are swapped": ("P2", "the samples of the reference's train/0000/0001"),
    "a sample is dropped": ("P2", "without sample"),
    "the random stream of another seed": ("P2", "another random stream"),
    "channels are swapped (BGR)": ("P3", "what enters the model differs"),
    "label smoothing is forgotten": ("P4", "the loss function differs"),
    "the loss is summed, not averaged": ("P4", "Outputs and loss are equal and gradients are not"),
    "a frozen BatchNorm adapts": ("P6", "bn1."),
    "unfreezing comes one step late": ("P6", "where 4 arrays unfreeze"),
    "the rate is inside the momentum": ("P5", "optimizer slot momentum"),
    "Adam counts one step for all parameters": ("P5", "optimizer slot step"),
}


@pytest.mark.parametrize("fault", SAID)
def test_the_fault_is_named(fault: str, findings: dict[str, Any]) -> None:
    (finding,) = findings[fault]
    stage, words = SAID[fault]
    assert finding.stage == stage and words in finding.report.first


def test_the_selftest_fails_where_a_fault_is_missed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from tlx.proof import selftest as module

    harmless = [Fault("no fault at all")]
    monkeypatch.setattr(module, "faults", lambda backend: harmless)
    assert module.show(Loopback()) == 1
    assert "WRONG" in capsys.readouterr().out


def test_seeds_are_paired(tmp_path: Path) -> None:
    fields = {**FIELDS, "limit_train": 200, "limit_test": 50, "val_fraction": 0}
    fields.pop("backend")
    report = tlx.parity(fields, reference="loopback", candidate="loopback", seeds=5, margin=0.01)
    stage = report.stages[-1]
    assert stage.id == "P10" and stage.passed and report.verdict == Verdict.EQUAL
    assert tlx.parity(fields, reference="loopback", candidate="loopback", seeds=2).verdict == Verdict.UNDERPOWERED


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("compare", "nowhere", "nowhere"), "holds no finished capture: manifest.json is missing"),
        (("--backend", "loopback"), "parity has no backend; use reference and candidate"),
        (("--reference", "torhc"), "Unknown backend 'torhc'. Did you mean 'torch'"),
        (("capture", "--backend", "loopback", "-o", "{A}", "--model", "tiny-mlp"), "is not empty"),
        (("selftest", "--backend", "nosuch"), "Unknown backend 'nosuch'"),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], said: str, pair: tuple[Path, Path]) -> None:
    done = command(*(argument.format(A=pair[0]) for argument in arguments))
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("manifest.json", b"{", "damaged JSON"),
        ("manifest.json", b'{"format": 99}', "a capture of format 99; this tlx reads 1"),
        ("manifest.json", b"[" * 100_000, "damaged JSON"),
        ("manifest.json", b'{"format": 1}', "the manifest lacks"),
        ("trace.jsonl", b'{"key": "P1", "facts": {}, "files": {"a": "../../etc/passwd"}}\n', "is no array file"),
        ("trace.jsonl", b'{"key": "P1"}\n', "a line lacks key, facts or files"),
        ("trace.jsonl", b"", "lacks the record 'P1'"),
        ("000000.npy", b"\x80\x04\x95", "cannot read the array"),
        (
            "000000.npy",
            b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n",
            "cannot read",
        ),
        ("000000.npy", None, "cannot read the array"),
    ],
)
def test_a_damaged_capture_is_refused(
    file: str, content: bytes | None, said: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(pair[1], tmp_path / "B")
    if content is None:
        (tmp_path / "B" / file).unlink()
    else:
        (tmp_path / "B" / file).write_bytes(content)
    with pytest.raises(TlxError) as error:
        compare(pair[0], tmp_path / "B")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_an_array_that_is_a_link_is_not_followed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(pair[1], tmp_path / "B")
    secret = tmp_path / "secret.npy"
    np.save(secret, np.zeros(3))
    (tmp_path / "B" / "000000.npy").unlink()
    (tmp_path / "B" / "000000.npy").symlink_to(secret)
    with pytest.raises(TlxError, match="a link"):
        compare(pair[0], tmp_path / "B")


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
        gradients = record.array("gradients")
        assert gradients is not None
        np.save(tmp_path / "C" / record.files["gradients"], gradients * factor)
    stage = next(s for s in compare(pair[0], tmp_path / "C").stages if s.id == "P8")
    assert stage.passed is passed
    assert (f"{apart} of 5 batches outside" in stage.rows[0].note) is (apart > 0)


@pytest.mark.parametrize("size", [1, 1024, 1025, 5000, 300_000])
def test_a_sketch_keeps_distances(size: int) -> None:
    drawn = np.random.default_rng(size)
    a, noise = drawn.normal(size=size), drawn.normal(size=size)
    for scale in (1e-12, 1e-3, 1.0):
        found, exact = relative(sketch(a), sketch(a + scale * noise)), relative(a, a + scale * noise)
        assert found == pytest.approx(exact, rel=0.2)
    one = a.copy()
    one[size // 2] += 1e-6
    moved = np.linalg.norm(sketch(a) - sketch(one))
    assert moved == pytest.approx(1e-6, rel=1e-3)


def test_distances_know_what_cannot_be_compared() -> None:
    a = np.array([1.0, np.nan, 2.0])
    assert relative(a, a) == 0
    assert relative(a, np.array([1.0, 1.0, 2.0])) == np.inf
    assert relative(np.zeros(0), np.zeros(0)) == np.inf
    assert relative(None, a) == relative(a, a[:2]) == np.inf
    assert registry.load("loopback").name == "loopback"
