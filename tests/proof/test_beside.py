"""A quick proof computes both sides at the same time: what it finds is what one after the other finds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tlx.backend import registry
from tlx.errors import TlxError
from tlx.proof import beside
from tlx.proof.artifact import Capture
from tlx.proof.beside import Unfinished, capture_both
from tlx.proof.capture import STAGES, capture
from tlx.proof.compare import compare
from tlx.proof.prove import defaults
from tlx.proof.result import Verdict
from tlx.recipe import Recipe, as_recipe


@pytest.fixture
def recipe(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A small job, where this process may have two threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(beside, "cores", lambda: {0, 1})
    return as_recipe(None, defaults(fields))


def same(one: Path, other: Path) -> bool:
    """Whether two captures hold the same records and agree; last bits depend on where numbers lie in memory."""
    records = [{key: {*record.files} for key, record in Capture(folder).records.items()} for folder in (one, other)]
    return records[0] == records[1] and compare(one, other).verdict is Verdict.EQUAL


def one_after_the_other(recipe: Recipe, home: Path) -> Path:
    first = capture(recipe, "loopback", home / "reference", quick=True)
    return capture(recipe, "loopback", home / "candidate", first, quick=True)


def test_the_candidate_is_captured_in_another_process_as_it_would_be_here(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = list[Path]()

    def noted(recipe: Any, backend: Any, out: Path, *rest: Any, **options: Any) -> Path:
        captured.append(out)
        return capture(recipe, backend, out, *rest, **options)

    monkeypatch.setattr(beside, "capture", noted)
    first, second = capture_both(recipe, "loopback", "loopback", tmp_path / "both")
    assert captured == [first], "the other one is of another process"
    assert same(one_after_the_other(recipe, tmp_path / "alone"), second)
    assert same(tmp_path / "alone" / "reference", first)


@pytest.mark.parametrize(
    "code",
    [
        "raise SystemExit(2)",
        # It has begun to write when it is killed.
        "import os; from tlx.proof.artifact import Writer; Writer.close = lambda *_: os.kill(os.getpid(), 9)\n"
        + beside.CODE,
    ],
)
def test_what_the_other_process_does_not_do_is_done_here(
    code: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "CODE", code)
    _, second = capture_both(recipe, "loopback", "loopback", tmp_path / "both")
    assert same(one_after_the_other(recipe, tmp_path / "alone"), second)


def test_a_backend_that_is_no_name_and_one_thread_need_no_other_process(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    capture_both(recipe, "loopback", registry.load("loopback"), tmp_path / "object")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    capture_both(recipe, "loopback", "loopback", tmp_path / "one")
    assert {path.name for path in tmp_path.glob("*/*")} == {"reference", "candidate"}


def test_a_mistake_is_one_line_and_leaves_no_process(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, popen = list[Any](), subprocess.Popen

    def noted(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "mine.txt").write_text("mine")
    with pytest.raises(TlxError, match="is not empty, and tlx overwrites nothing"):
        capture_both(recipe, "loopback", "loopback", tmp_path)
    assert len(started) == 1 and started[0].poll() is not None
    assert [path.name for path in (tmp_path / "reference").iterdir()] == ["mine.txt"]
    with pytest.raises(TlxError, match="Unknown backend 'lopback'"):
        capture_both(recipe, "loopback", "lopback", tmp_path / "typo")


WAITING = """
import sys, time
from pathlib import Path
from tlx.proof import beside
from tlx.proof.prove import defaults
from tlx.proof.result import Verdict
from tlx.recipe import as_recipe
recipe = as_recipe(None, defaults({"model": "tiny-mlp", "image_size": 8}))
with beside._following((recipe, "loopback", Path(sys.argv[1]) / "b", Path(sys.argv[1]) / "a", False)) as process:
    print(process.pid, flush=True)
    time.sleep(600)  # the reference is never written
"""


def test_it_ends_with_the_process_that_has_started_it(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", WAITING, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    other = int(process.stdout.readline())
    deadline = time.monotonic() + 60
    while not (tmp_path / "b").exists():  # it has read its job, and waits
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    while Path(f"/proc/{other}/cmdline").exists() and Path(f"/proc/{other}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_asked_of_an_unfinished_capture_is_answered_once_it_is_there(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    lines = (pair[0] / "trace.jsonl").read_bytes().splitlines(keepends=True)
    keys = [json.loads(line)["key"] for line in lines]
    visits = [key for key in keys if key.startswith("P4/visit/")]
    capture, answers = Unfinished(tmp_path, STAGES), list[Any]()

    def ask() -> None:
        answers.append(capture.records["P3/logits"].key)  # itself is enough
        answers.append([record.key for record in capture.stage("P4/visit")])  # the stage has to pass
        answers.append(capture.records.get("P4/none"))  # and of one that never comes too
        answers.append(capture.manifest["backend"])

    thread = threading.Thread(target=ask)
    thread.start()
    with (tmp_path / "trace.jsonl").open("wb", 0) as trace:
        for key, line in zip(keys, lines, strict=True):
            trace.write(line[:5])
            if key == "P3/logits":
                expect(answers, 0)
            trace.write(line[5:])
            if key in ("P3/logits", visits[-1], "P4/gradients"):
                expect(answers, 1)
            elif key == "P5/script":
                expect(answers, 3)
    expect(answers, 3)
    shutil.copyfile(pair[0] / "manifest.json", tmp_path / "manifest.json")
    thread.join(30)
    assert answers == ["P3/logits", visits, None, "loopback"]


def expect(answers: list[Any], count: int) -> None:
    """So many answers are there soon, and no more."""
    deadline = time.monotonic() + 30
    while len(answers) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(answers) == count
