"""Captures that a stranger wrote: every value of the manifest, of the trace and of the arrays altered."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.altered import DEEP, alterations, arrays, fewer_inputs, mutated, to_json, workplace
from support.hostile import Outcome, call, check
from tlx.proof.artifact import Capture
from tlx.proof.capture_writer import CaptureWriter, Reference

RECIPE = (
    *("--backend", "loopback", "--model", "tiny-mlp", "--data", "digits", "--weights", "none", "--image-size", "8"),
    *("--strategy", "head_then_full", "--schedule", "step", "--step-size", "1", "--epochs", "4", "--workers", "0"),
)
PAIRS = [
    *(("A", "B"), ("B", "A"), ("A", "float64"), ("float64", "A"), ("A", "float32"), ("float32", "A")),
    *(("float64", "float64"), ("float32", "float32")),
]
COMMANDS = {
    "compare": ("compare", "A", "B"),
    "compare with the altered one as reference": ("compare", "B", "A"),
    "json": ("compare", "A", "B", "--json"),
    "html": ("compare", "A", "B", "--html", "page.html"),
    "capture": ("capture", "--backend", "loopback", "--reference", "B", "-o", "C"),
}
commands = st.sampled_from(sorted(COMMANDS))
DTYPES = ("<f8", "<f4", "<i8", "|u1", "|b1", "<c16", "|V8", "<U4", "|S8", "<M8[s]")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with captures: one, one that it served, and two of an engine that began from it."""
    home = tmp_path_factory.mktemp("captures")
    assert call("parity", "capture", "-o", "A", *RECIPE, folder=home).code == 0
    assert call("parity", "capture", "--backend", "loopback", "--reference", "A", "-o", "B", folder=home).code == 0
    for precision in ("float64", "float32"):
        engine(home / "A", home / precision, precision)
    return home


def engine(reference: Path, folder: Path, precision: str) -> None:
    """What an engine would record that does exactly what the reference does, with a record of each kind."""
    served, capture = Reference(reference), Capture(reference)
    steps = [record for record in capture.stage("P6") if re.fullmatch(r"P6/\d+", record.key)]
    with CaptureWriter(folder, "by hand 1", precision, served) as cap:
        cap.weights(served.weights)
        for stage in ("P3", "P4"):
            for record in capture.stage(f"{stage}/visit"):
                cap.output(record.facts["path"], record.needed("output"), training=stage == "P4")
        cap.logits(capture.records["P3/logits"].needed("logits"))
        gradients = capture.records["P4/gradients"].arrays()
        for number in range(2):
            cap.loss(float.fromhex(capture.records["P4/loss"].facts["loss"]) / 8, number)
            for name, gradient in gradients.items():
                cap.gradient(name, gradient, number)
            cap.buffer("bn1.running_mean", served.weights["bn1.running_mean"], number)
        for nudged in (False, True):
            for record, batch in zip(steps, served.steps(), strict=True):
                loss = float.fromhex(record.facts["loss"]) / len(batch.labels)
                values = {"fc.weight": served.weights["fc.weight"]}
                state = {"fc.weight/momentum": served.weights["fc.weight"]}
                cap.step(loss, values, state, gradients=values, average=values, lr=0.1, batch=batch, nudged=nudged)


def copied(pair: Path, folder: Path, data: st.DataObject | None = None) -> Path:
    """Two captures as links to their files, where `A` is either of them and `B` the one to alter."""
    names = ("A", "B") if data is None else data.draw(st.sampled_from(PAIRS))
    for name, original in zip(("A", "B"), names, strict=True):
        shutil.copytree(pair / original, folder / name, copy_function=os.link)
    return folder / "B"


def replace(file: Path, content: bytes) -> None:
    file.unlink()  # it is linked
    file.write_bytes(content)


def use(target: str, folder: Path, command: str) -> Outcome:
    return check(
        f"capture: {target}", "parity", *COMMANDS[command], folder=folder, writes=("page.html", "C"), verdict=True
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_captures_that_nobody_touched_are_used(command: str, pair: Path, tmp_path: Path) -> None:
    copied(pair, tmp_path)
    assert use("untouched", tmp_path, command).code == 0


@pytest.mark.parametrize("names", PAIRS)
def test_captures_of_engines_are_compared(names: tuple[str, str], pair: Path, tmp_path: Path) -> None:
    for name, original in zip(("A", "B"), names, strict=True):
        shutil.copytree(pair / original, tmp_path / name, copy_function=os.link)
    assert use("engines", tmp_path, "compare").code == 0


@fewer_inputs
@given(data=st.data())
def test_values_of_the_manifest(pair: Path, tmp_path: Path, data: st.DataObject) -> None:
    with workplace(tmp_path) as folder:
        file = copied(pair, folder, data) / "manifest.json"
        replace(file, to_json(data.draw(alterations(json.loads(file.read_bytes())))))
        use("manifest", folder, data.draw(commands))


@fewer_inputs
@given(data=st.data())
def test_values_of_the_trace(pair: Path, tmp_path: Path, data: st.DataObject) -> None:
    with workplace(tmp_path) as folder:
        file = copied(pair, folder, data) / "trace.jsonl"
        lines = [json.loads(line) for line in file.read_bytes().splitlines()]
        # One of each kind of record, so that the many steps do not take all.
        kinds = {line["key"].rstrip("0123456789"): number for number, line in enumerate(lines)}
        number = data.draw(st.sampled_from(sorted(kinds.values())) | st.integers(0, len(lines) - 1))
        lines[number] = data.draw(alterations(lines[number]))
        replace(file, b"\n".join(map(to_json, lines)) + b"\n")
        use("trace", folder, data.draw(commands))


@fewer_inputs
@given(data=st.data())
def test_arrays_of_a_capture(pair: Path, tmp_path: Path, data: st.DataObject) -> None:
    with workplace(tmp_path) as folder:
        capture = copied(pair, folder, data)
        records = [json.loads(line) for line in (capture / "trace.jsonl").read_bytes().splitlines()]
        kinds = {(r["key"].rstrip("0123456789"), name): file for r in records for name, file in r["files"].items()}
        file = capture / data.draw(st.sampled_from(sorted(set(kinds.values()))))
        array: Any = data.draw(arrays(np.load(file), DTYPES))
        if data.draw(st.booleans()):
            array = np.asfortranarray(array)
        file.unlink()
        np.save(file, array)
        use("arrays", folder, data.draw(commands))


@fewer_inputs
@given(data=st.data())
def test_files_of_a_capture(pair: Path, tmp_path: Path, data: st.DataObject) -> None:
    with workplace(tmp_path) as folder:
        capture = copied(pair, folder, data)
        named = (capture / "manifest.json", capture / "trace.jsonl", *sorted(capture.glob("*.npy")))
        file = data.draw(st.sampled_from(named[:12]) | st.sampled_from(named))
        content = file.read_bytes()
        kind = data.draw(st.sampled_from(("bytes", "bytes", "missing", "folder", "pipe", "circle", "zero", "deep")))
        file.unlink()
        if kind == "bytes":
            file.write_bytes(data.draw(mutated(content)))
        elif kind == "folder":
            file.mkdir()
        elif kind == "pipe":
            os.mkfifo(file)
        elif kind == "circle":
            file.symlink_to(file.name)
        elif kind == "zero":
            file.symlink_to("/dev/zero")
        elif kind == "deep":
            file.write_text(f'{{"key": {DEEP}}}')
        use("files", folder, data.draw(commands))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (0, 4611686018427387904, 9), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '|V0', 'fortran_order': False, 'shape': (4000000000,), }",
        "{'descr': [('x', '<f8')], 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "1, " * 40 + "), }",
        "__import__('os').system('touch executed')",
        "(" * 5000,
        "-" * 9000 + "1",
    ],
)
def test_a_header_of_an_array_that_lies_is_refused(header: str, pair: Path, tmp_path: Path) -> None:
    capture = copied(pair, tmp_path)
    record = json.loads((capture / "trace.jsonl").read_bytes().splitlines()[0])
    for file in record["files"].values():
        content = header.encode() + b"\n"
        replace(capture / file, b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content + bytes(8))
    assert use("arrays", tmp_path, "compare").code == 2
