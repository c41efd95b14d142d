"""What may be written where: names, folders of runs, and runs that nothing but tlx can use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tlx
from support.finished_runs import FIELDS
from tlx.errors import RunNotFound, TlxError
from tlx.runs.export import format_of

TLX = Path(sys.executable).with_name("tlx")


@pytest.mark.parametrize(
    ("out", "kind"),
    [
        *(("m.pth", "torch"), ("m.PT", "torch"), ("a.b/m.safetensors", "safetensors"), ("m.onnx", "onnx")),
        *(("folder", "oneflow"), ("a.b/folder", "oneflow"), ("model.v2/", "oneflow"), (Path("x/model"), "oneflow")),
    ],
)
def test_the_name_says_what_is_written(out: str | Path, kind: str) -> None:
    assert format_of(out) == kind


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (
            "m.gguf",
            r"nothing is written as '\.gguf'\. Expected \.pth, \.safetensors, \.onnx, or a name without a suffix",
        ),
        ("m.onx", r"nothing is written as '\.onx'\. Did you mean '\.onnx'\? Expected"),
        ("model.v2", r"nothing is written as '\.v2'"),
        ("", "expected the name of a file or of a new folder"),
        ("/", "expected the name of a file or of a new folder"),
        ("..", "expected the name of a file or of a new folder"),
    ],
)
def test_any_other_name_is_refused_with_those_that_there_are(out: str, said: str) -> None:
    with pytest.raises(TlxError, match=said):
        format_of(out)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("model.safetensors", r"is a name of the run in .*, whose files it may not replace"),
        ("adapters.safetensors", "is a name of the run in"),  # also of files that this run has not
        ("last/state-9.safetensors", "is a name of the run in"),
        ("last/more", "is a name of the run in"),
        ("last", "is a name of the run in"),
        ("link.safetensors", "is a name of the run in"),
        ("", "is not empty, and tlx replaces no folder"),
        ("own.pth", "torchvision has no model 'tiny-mlp'"),  # its place is free
    ],
)
def test_a_runs_own_files_are_not_replaced(out: str, said: str, of_arrays: tlx.Result) -> None:
    run = Path(of_arrays.run_dir)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    link = run / "link.safetensors"
    link.symlink_to("model.safetensors")
    try:
        with pytest.raises(TlxError, match=said):
            tlx.export(run, run / out)
    finally:
        link.unlink()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("out", ["m.pth", "m.safetensors", "m.onnx", "folder"])
def test_what_no_framework_has_is_refused_by_name(out: str, of_arrays: tlx.Result, tmp_path: Path) -> None:
    with pytest.raises(TlxError, match=r"(torchvision|flowvision) has no model 'tiny-mlp'"):
        tlx.export(of_arrays.run_dir, tmp_path / out)
    assert not list(tmp_path.iterdir())


def test_neighbours_that_vote_are_refused_for_every_file(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    fields: dict[str, Any] = {**FIELDS, "strategy": "knn", "neighbors": 5}
    for name in ("epochs", "lr"):
        del fields[name]
    tlx.run(**fields, data="digits", limit_train=60, limit_test=20, out=run)
    for out in ("m.onnx", "m.pth", "m.safetensors", "folder"):
        with pytest.raises(TlxError, match=r"of strategy knn: its neighbours vote, .*Fix: use tlx\.predict, or train"):
            tlx.export(run, tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_there_has_to_be_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound, match="holds no finished run"):
        tlx.export(tmp_path, tmp_path / "m.pth")


def test_a_file_where_a_folder_should_be_and_a_folder_where_a_file_should(
    of_arrays: tlx.Result, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "m.pth").mkdir()
    for out, said in (("file", "is a file, and a name without a suffix is a folder"), ("m.pth", "is a folder; choose")):
        with pytest.raises(TlxError, match=said):
            tlx.export(of_arrays.run_dir, tmp_path / out)
    assert (tmp_path / "file").read_text() == "x"


def test_the_command_fails_in_one_line(of_arrays: tlx.Result, tmp_path: Path) -> None:
    environment = {**os.environ, "COLUMNS": "80"}
    command = [str(TLX), "export", str(of_arrays.run_dir), "m\x1b[31m.h5"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("tlx: ") and done.stderr.count("\n") == 1
    assert "nothing is written as '.h5'" in done.stderr and "\x1b" not in done.stderr
    assert not list(tmp_path.iterdir())
