"""A run that is killed at any moment leaves a folder that is whole: it ends bit for bit as the run that was not."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tlx
from support.hostile import snapshot
from support.killed import in_a_process
from support.run_files import FIELDS, outcome, stopped
from tlx.errors import RunNotFound, TlxError
from tlx.manifest import read_manifest
from tlx.runs.folder import _locked
from tlx.training.metrics import Event, Progress

SMALL = {**FIELDS, "val_fraction": 0.3, "batch_size": 64, "epochs": 1, "save_seconds": 0}


def whole(run: Path) -> None:
    """Each file that the manifest names is there, and no other; the readers find what the run wrote."""
    manifest = read_manifest(run)
    assert manifest is not None
    names = {name for name, kind in snapshot(run).items() if kind != "folder"}
    assert names == {*manifest.files, "manifest.json"}


def go_on(run: Path, expected: Any, start: Callable[[], object]) -> None:
    """Resume a run that was killed, or start it again if it had not begun; it ends as `expected`."""
    try:
        tlx.run(resume=run, quiet=True)
    except RunNotFound:
        start()
    except TlxError as error:
        assert "is finished after" in str(error)
    else:
        whole(run)
    assert outcome(run) == expected


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("runs")
    for epochs, name in ((1, "one"), (2, "two"), (3, "three")):
        tlx.run(**{**SMALL, "epochs": epochs}, out=str(home / name))
    return home


@pytest.mark.slow
def test_a_run_killed_at_any_operation_on_its_folder_ends_as_the_whole_one(runs: Path, tmp_path: Path) -> None:
    expected, moment = outcome(runs / "one"), 0
    while True:
        out = tmp_path / f"run-{moment}"

        def start(out: Path = out) -> object:
            return tlx.run(**SMALL, out=str(out))

        code = in_a_process(start, out, killed_at=moment)
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
        go_on(out, expected, start)
        moment += 1
    assert moment > 20


@pytest.mark.slow
@pytest.mark.thorough
def test_a_run_killed_at_any_operation_while_epochs_are_added_loses_neither_result(runs: Path, tmp_path: Path) -> None:
    old, new, moment = outcome(runs / "one"), outcome(runs / "two"), 0
    accuracies = {run[1]["test_accuracy"] for run in (old, new)}
    while True:
        run = Path(shutil.copytree(runs / "one", tmp_path / f"run-{moment}"))
        code = in_a_process(lambda run=run: tlx.run(resume=run, epochs=2, quiet=True), run, moment)  # type: ignore[misc]
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
        if moment % 3 == 0:
            evaluation = tlx.evaluate(run, quiet=True)
            assert evaluation["test_accuracy"] == evaluation["recorded_accuracy"] in accuracies
        try:
            tlx.run(resume=run, epochs=2, quiet=True)
        except TlxError as error:
            assert "is finished after 2 epochs" in str(error)
        assert outcome(run) == new
        moment += 1
    assert moment > 20


def test_a_resume_killed_at_any_operation_finishes_what_the_first_kill_left(runs: Path, tmp_path: Path) -> None:
    """The first was killed within the last commit of added epochs: files wait to be renamed."""
    run = Path(shutil.copytree(runs / "one", tmp_path / "run"))

    def renames(event: str, arguments: tuple[Any, ...]) -> bool:
        return event == "os.rename" and os.fsdecode(arguments[1]) == str(run / "model.safetensors")

    assert in_a_process(lambda: tlx.run(resume=run, epochs=2, quiet=True), run, renames) == -signal.SIGKILL
    assert outcome(run)[2] == outcome(runs / "one")[2] != outcome(runs / "two")[2]
    evaluation, moment = tlx.evaluate(run, quiet=True), 0
    assert evaluation["test_accuracy"] == evaluation["recorded_accuracy"] == outcome(runs / "two")[1]["test_accuracy"]
    while moment < 12:  # later ones are like those of any run that goes on
        again = Path(shutil.copytree(run, tmp_path / f"again-{moment}"))
        code = in_a_process(lambda run=again: tlx.run(resume=run, epochs=3, quiet=True), again, moment)  # type: ignore[misc]
        assert code == -signal.SIGKILL
        tlx.run(resume=again, epochs=3, quiet=True)
        assert outcome(again) == outcome(runs / "three")
        moment += 1


def test_a_run_killed_at_random_times_ends_as_the_whole_one(tmp_path: Path) -> None:
    fields = {**SMALL, "epochs": 12, "batch_size": 15}
    tlx.run(**fields, out=str(tmp_path / "whole"))
    drawn = random.Random(0)
    for number in range(4):
        run = tmp_path / str(number)

        def work(run: Path = run) -> object:
            return tlx.run(**fields, out=str(run)) if not (run / "recipe.toml").exists() else tlx.run(resume=run)

        for _ in range(3):  # again and again
            if (child := os.fork()) == 0:
                try:
                    work()
                finally:
                    os._exit(0)
            time.sleep(drawn.uniform(0.01, 0.4))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        go_on(run, outcome(tmp_path / "whole"), work)


def test_a_run_about_to_finish_is_not_trained_again_by_a_second_process(tmp_path: Path) -> None:
    """The second is refused while the first is in its test; once the first has ended it says that it is finished."""
    run = stopped(tmp_path / "run")
    in_test, told = os.pipe()
    wait, release = os.pipe()

    def first() -> None:
        def hold(event: Event) -> None:
            if isinstance(event, Progress) and event.part == "test":
                os.write(told, b"x")
                os.read(wait, 1)

        tlx.run(resume=run, quiet=True, on_event=hold)

    if (child := os.fork()) == 0:
        try:
            first()
        finally:
            os._exit(0)
    os.read(in_test, 1)
    before = snapshot(run)
    with pytest.raises(TlxError, match="run is in use by another run"):
        tlx.run(resume=run, quiet=True)
    assert snapshot(run) == before
    if (second := os.fork()) == 0:  # it tries until it holds the folder
        os.write(release, b"x")
        while True:
            try:
                tlx.run(resume=run, quiet=True)
            except TlxError as error:
                if "in use" not in str(error):
                    os._exit(3 if "is finished after 3 epochs" in str(error) else 1)
            else:
                os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finished = snapshot(run)
    assert os.waitstatus_to_exitcode(os.waitpid(second, 0)[1]) == 3
    assert {name for name in finished if re.search("json|toml|safetensors", name)} >= {"result.json"}
    assert {**finished, ".lock": ""} == {**snapshot(run), ".lock": ""}


def test_two_processes_never_hold_a_folder_together(tmp_path: Path) -> None:
    """Each deletes the file that it locked, which another may have opened already."""
    mark, children = tmp_path / "held", []
    (tmp_path / "run").mkdir()
    for _ in range(4):
        if (child := os.fork()) == 0:
            held = 0
            try:
                while held < 150:
                    try:
                        with _locked(tmp_path / "run"):
                            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))  # fails if another holds the folder
                            time.sleep(0.0002)
                            mark.unlink()
                            held += 1
                    except TlxError:
                        continue
            finally:
                os._exit(0 if held == 150 else 1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert not list((tmp_path / "run").iterdir())
