"""What runs log: by the four clients, read back by readers of theirs, and by a logger from a package of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tlx
from support import loggers
from support.run_files import FIELDS, outcome, stopped
from tlx.errors import BackendUnavailable, RecipeError
from tlx.runs import logged
from tlx.training.metrics import EpochEnded

pytestmark = pytest.mark.needs("loopback")

CLIENTS = ("tensorboard", "wandb", "mlflow", "trackio")
# The run kills itself when its third epoch was logged, and not yet saved.
KILLED = """
import gc, json, os, signal, sys, tlx
from tlx.runs import job, logged

save = job.save_state

def killing(training, state, *others):
    if len(state.history) == 3:
        with open(sys.argv[2], "w") as file:
            json.dump([w.process.pid for w in gc.get_objects() if isinstance(w, logged.Worker)], file)
        os.kill(os.getpid(), signal.SIGKILL)
    save(training, state, *others)

job.save_state = killing
tlx.run(**json.loads(sys.argv[1]))
"""


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def environment(home: Path) -> dict[str, str]:
    """That of a user who is logged in nowhere."""
    mine = {name: v for name, v in os.environ.items() if not name.startswith(("WANDB", "MLFLOW", "TRACKIO", "HF_"))}
    return {
        **mine,
        "HOME": str(home),
        "MPLCONFIGDIR": str(home),
        "http_proxy": "http://127.0.0.1:9",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run that all four log, killed once an epoch was logged and not saved, and resumed to its end."""
    home = tmp_path_factory.mktemp("logged")
    run = home / "run"
    fields = {**FIELDS, "epochs": 4, "save_seconds": 0, "out": str(run), "log": list(CLIENTS), "strategy": "diff_lr"}
    start = [sys.executable, "-c", KILLED, json.dumps(fields), str(home / "pids")]
    done = subprocess.run(start, capture_output=True, text=True, env=environment(home))
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = json.loads((home / "pids").read_text())
    deadline = time.monotonic() + 60
    while not all(map(is_gone, pids)):  # they end by themselves, as nobody speaks to them any more
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(pids) == 4 and {step for step, _ in loggers.of_tensorboard(run)["train/loss"]} == {1, 2, 3}
    command = [sys.executable, "-m", "tlx", "run", "--resume", str(run), "--json"]
    return run, subprocess.run(command, capture_output=True, text=True, env=environment(home))


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def check(series: loggers.Series, run: Path, test: bool = True) -> None:
    """Each epoch is there once, with the figures that the run's history has; and the test part after the last."""
    epochs, result = history(run), json.loads((run / "result.json").read_text())
    assert len(epochs) == 4
    for part in ("train", "val"):
        for figure in ("loss", "accuracy"):
            expected: list[Any] = [
                (epoch["epoch"], pytest.approx(epoch[f"{part}_{figure}"], rel=1e-6)) for epoch in epochs
            ]
            assert series[f"{part}/{figure}"] == expected
    for place, group in enumerate(("backbone", "head")):
        rates: list[Any] = [(epoch["epoch"], pytest.approx(epoch["lr"][place], rel=1e-6)) for epoch in epochs]
        assert series[f"lr/{group}"] == rates
    assert [step for step, _ in series["train/images_per_second"]] == [1, 2, 3, 4]
    if test:
        tested: list[Any] = [(4, pytest.approx(result["test_accuracy"], rel=1e-6))]
        assert series["test/accuracy"] == tested
        assert [step for step, _ in series["test/loss"]] == [4]


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_series_and_prints_nothing_of_the_clients(
    resumed: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, done = resumed
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1, done.stderr
    assert not any("has failed" in note for note in json.loads(done.stdout)["notes"])
    for word in ("wandb", "mlflow", "trackio", "tensorboard"):
        assert word not in done.stderr.lower()
    assert sorted(path.name for path in (run / "log").iterdir()) == ["id", *sorted(CLIENTS)]


@pytest.mark.slow
def test_tensorboard_reads_each_epoch_once(resumed: tuple[Path, Any]) -> None:
    check(loggers.of_tensorboard(resumed[0]), resumed[0])
    assert len([*(resumed[0] / "log" / "tensorboard").iterdir()]) == 1


@pytest.mark.slow
def test_the_offline_run_of_wandb_holds_each_epoch_once(resumed: tuple[Path, Any]) -> None:
    series, summary, config = loggers.of_wandb(resumed[0])
    check(series, resumed[0], test=False)
    assert summary["test/accuracy"] == json.loads((resumed[0] / "result.json").read_text())["test_accuracy"]
    assert config["strategy"] == "diff_lr" and config["lr"] == 0.05


@pytest.mark.slow
def test_mlflow_reads_each_epoch_once(resumed: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    series, logged_run = loggers.of_mlflow(resumed[0])
    check(series, resumed[0])
    assert logged_run.data.params["strategy"] == "diff_lr" and logged_run.info.status == "FINISHED"
    assert logged_run.info.run_name == "run"


@pytest.mark.slow
def test_the_database_of_trackio_holds_each_epoch_once(resumed: tuple[Path, Any]) -> None:
    check(loggers.of_trackio(resumed[0]), resumed[0])


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed package that offers the logger `lines`."""
    folder = loggers.install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "tlx_lines", raising=False)
    return folder


def test_a_package_adds_a_logger_which_changes_nothing_in_the_process(package: Path, tmp_path: Path) -> None:
    plain = tlx.run(**FIELDS, out=str(tmp_path / "plain"))
    before = dict(os.environ), sys.excepthook, sorted(os.listdir("/proc/self/fd"))
    result = tlx.run(**FIELDS, out=str(tmp_path / "run"), log="lines")
    assert (dict(os.environ), sys.excepthook, sorted(os.listdir("/proc/self/fd"))) == before
    begin, *epochs, end = loggers.lines_of(result.run_dir)
    assert begin["name"] == "run" and begin["earlier"] == [] and begin["config"]["lr"] == 0.05
    assert [epoch for epoch, _ in epochs] == [1, 2, 3]
    assert end["end"]["test/accuracy"] == result.test_accuracy and end["epochs"] == 3
    assert outcome(plain.run_dir)[:3] == outcome(result.run_dir)[:3]
    assert 'log = [\n    "lines",\n]' in (result.run_dir / "recipe.toml").read_text()


@pytest.mark.parametrize(
    ("fault", "said"), [("raises", "No space left on device"), ("exits", "exit code 7"), ("hangs", "not end in time")]
)
def test_a_logger_that_fails_is_one_note_and_the_run_goes_on_with_the_same_numbers(
    fault: str, said: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(logged, "PATIENCE", 1.0)
    (package / fault).touch()
    result = tlx.run(**{**FIELDS, "quiet": False}, out=str(tmp_path / "run"), log="lines")
    (note,) = (note for note in result.notes if "has failed" in note)
    assert note.startswith("log 'lines' has failed, and the run goes on without it: ") and said in note
    streams = capsys.readouterr()
    assert streams.err.count("has failed") == 1 and "noise" not in streams.out + streams.err
    assert outcome(result.run_dir)[:3] == outcome(tlx.run(**FIELDS, out=str(tmp_path / "plain")).run_dir)[:3]


def test_a_run_that_was_stopped_logs_on_where_it_is_saved(package: Path, tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", log="lines")
    first = loggers.lines_of(run)
    assert first[-1] == {"end": None, "epochs": 2} and [line[0] for line in first[1:-1]] == [1, 2]
    tlx.run(resume=run, quiet=True)
    begin, *epochs, _ = loggers.lines_of(run)[len(first) :]
    assert begin["id"] == first[0]["id"]
    assert [epoch for epoch, _ in begin["earlier"]] == [1, 2] and [epoch for epoch, _ in epochs] == [3]
    tlx.run(resume=run, epochs=4, quiet=True, log="none")
    assert len(loggers.lines_of(run)) == len(first) + 3


def test_a_folder_that_cannot_be_written_is_one_note(package: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def occupy(event: Any) -> None:
        if isinstance(event, EpochEnded) and event.epoch == 0:
            (out / "log").write_text("no folder")

    result = tlx.run(**FIELDS, out=str(out), log="lines", on_event=occupy)
    (note,) = (note for note in result.notes if "has failed" in note)
    assert "File exists" in note and result.epochs_run == 3


def test_a_client_that_is_missing_is_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(loggers.install(tmp_path / "site", needs="no_such_client")))
    monkeypatch.delitem(sys.modules, "tlx_lines", raising=False)
    with pytest.raises(BackendUnavailable) as error:
        tlx.run(**FIELDS, out=str(tmp_path / "run"), log="lines")
    assert str(error.value) == (
        "log 'lines' needs no_such_client, which is not installed. Fix: pip install no_such_client; or leave log out"
    )
    assert not (tmp_path / "run").exists()
    (tmp_path / "site" / "no_such_client").mkdir()  # as the clients leave folders of their own names behind
    with pytest.raises(BackendUnavailable, match="needs no_such_client, which is not installed"):
        tlx.run(**FIELDS, out=str(tmp_path / "run"), log="lines")
    monkeypatch.setattr("tlx.loggers.registry.find_spec", lambda name: None)
    with pytest.raises(
        BackendUnavailable, match=r'needs wandb, which is not installed\. Fix: pip install "tlx\[wandb\]"'
    ):
        tlx.run(**FIELDS, out=str(tmp_path / "run"), log="wandb")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("tensorbord", "log is 'tensorbord', which is no logger. Did you mean 'tensorboard'?"),
        (["mlflow", "mlflow"], "expected loggers, each once"),
        (3, "log is 3; expected loggers, such as tensorboard or ['wandb', 'mlflow']"),
        ("\u202e", "Known: mlflow, tensorboard, trackio, wandb"),
    ],
)
def test_what_names_no_logger_is_refused(value: Any, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        tlx.Recipe(log=value)
    assert said in str(error.value)


def test_a_recipe_takes_loggers_as_text_or_as_a_list() -> None:
    recipe = tlx.Recipe(log="mlflow, wandb")
    assert recipe.loggers == ("mlflow", "wandb") and tlx.Recipe.from_dict({"log": ["mlflow", "wandb"]}) == recipe
    assert tlx.Recipe(log="none").log == tlx.Recipe(log=()).log == () and tlx.Recipe().loggers == ()


def test_a_run_without_loggers_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Callable[..., Any]:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    result = tlx.run(**FIELDS, out=str(tmp_path / "run"))
    assert not (result.run_dir / "log").exists()
