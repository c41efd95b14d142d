"""`tlx run` over several processes: kills, signals and errors of each of them, and what goes on afterwards."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import tlx
from support.backends import each_backend
from support.hostile import snapshot
from support.processes import free_port, variables
from support.run_files import FIELDS, outcome, saved_step, state_file, stopped
from tlx.errors import RecipeError

RUN = [
    *("run", "--model", "tiny-mlp", "--weights", "none", "--data", "digits", "--out", "mine", "--workers", "0"),
    *("--image-size", "8", "--limit-train", "200", "--limit-test", "50", "--lr", "0.05", "--save-seconds", "0"),
    *("--precision", "float32"),
]
REST = [(signal.SIGTERM, 0), (signal.SIGTERM, 2), (signal.SIGINT, 0), (signal.SIGINT, 1), (signal.SIGHUP, 1)]
LONG = [*RUN, "--backend", "loopback", "--epochs", "3000"]


def start(folder: Path, *arguments: str, environ: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tlx", *arguments]
    return subprocess.Popen(command, cwd=folder, env={**os.environ, **(environ or {})}, stdout=-1, stderr=-1, text=True)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tlx", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def await_step(run_dir: Path, step: int, child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while (state_file(run_dir) is None or saved_step(run_dir) < step) and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children_of(parent: int) -> list[int]:
    """The processes that `tlx run --processes` has started, in the order of their ranks."""
    pids = map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    environs = {pid: Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in pids}
    return sorted(environs, key=lambda pid: [name for name in environs[pid] if name.startswith(b"RANK=")])


def told(shown: str) -> list[str]:
    assert "Traceback" not in shown, shown
    return [line for line in shown.splitlines() if line.startswith("tlx: ")]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with start(tmp_path, *LONG, "--processes", "2") as child:
        await_step(tmp_path / "mine", 1, child)
        try:
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_run_with_one_line(
    victim: int, running: subprocess.Popen[str], tmp_path: Path
) -> None:
    os.kill(children_of(running.pid)[victim], signal.SIGKILL)
    killed = time.monotonic()
    _, shown = running.communicate(timeout=60)
    assert time.monotonic() - killed < 15 and running.returncode == 2
    assert len(told(shown)) == 1 and f"process {victim} (of 0 to 1)" in told(shown)[0], shown
    assert state_file(tmp_path / "mine") is not None


@pytest.mark.parametrize(
    ("number", "receiver"),
    [
        (signal.SIGTERM, 1),
        (signal.SIGINT, 2),
        *(pytest.param(number, receiver, marks=pytest.mark.thorough) for number, receiver in REST),
    ],
)
def test_a_signal_to_any_process_saves_and_ends_all_with_its_code(
    number: int, receiver: int, running: subprocess.Popen[str], tmp_path: Path
) -> None:
    os.kill([*children_of(running.pid), running.pid][receiver], number)
    _, shown = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    (line,) = told(shown)
    said = re.fullmatch(r"tlx: stopped after step (\d+) of 9000; the run is saved. Go on with: .* mine", line)
    assert said and int(said[1]) == saved_step(tmp_path / "mine"), shown


def test_processes_whose_launcher_is_killed_save_and_end(running: subprocess.Popen[str], tmp_path: Path) -> None:
    running.kill()
    _, shown = running.communicate(timeout=60)  # of the first process, which has the same streams
    (line,) = told(shown)
    assert line.startswith("tlx: stopped after step ") and "the run is saved" in line


def test_an_error_that_one_process_meets_is_said_once(tmp_path: Path) -> None:
    """The second half of each batch is read by the second process."""
    noise = random.Random(0)
    for number in range(40):
        path = tmp_path / "photos" / ("test" if number < 8 else "train") / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (32, 32), noise.randbytes(3072)).save(path)
    whole = (tmp_path / "photos/train/b/39.png").read_bytes()
    (tmp_path / "photos/train/b/39.png").write_bytes(whole[: len(whole) // 2])
    ended = run(
        tmp_path,
        *(
            "run",
            "--backend",
            "loopback",
            "--model",
            "tiny-mlp",
            "--weights",
            "none",
            "--data",
            "photos",
            "--lr",
            "0.1",
        ),
        *("--image-size", "8", "--val-fraction", "0", "--epochs", "2", "--processes", "2", "--out", "mine"),
    )
    assert ended.returncode == 2
    assert len(told(ended.stderr)) == 1 and "39.png" in told(ended.stderr)[0], ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--processes", "0"], "processes is 0; expected a number from 1 to 256"),
        (["run", "--processes", "2", "--backend", "nope"], "nope"),
        (["run", "--processes", "2", "--lerning-rate", "1"], "Unknown option"),
    ],
)
def test_a_mistake_is_one_line_over_several_processes_too(arguments: list[str], said: str, tmp_path: Path) -> None:
    ended = run(tmp_path, *arguments)
    assert ended.returncode == 2 and len(told(ended.stderr)) == 1 and said in ended.stderr, ended.stderr


def test_other_commands_say_once_that_they_work_in_one_process(tmp_path: Path) -> None:
    port = free_port()
    both = [start(tmp_path, "evaluate", "mine", environ=variables(rank, 2, port)) for rank in (0, 1)]
    shown = [child.communicate(timeout=60)[1] for child in both]
    assert [child.returncode for child in both] == [2, 2] and shown[1] == ""
    assert told(shown[0]) == [
        "tlx: tlx evaluate works in one process, and a launcher has started 2. Fix: start it without torchrun or srun; "
        "only `tlx run` and `tlx parity capture` spread"
    ]


def arguments(backend: str) -> list[str]:
    """Six epochs of a small network that the backend has; in float64 but for the tiny one, where rounding is small."""
    framework = {"tiny-mlp": "squeezenet1_1", "8": "33", "float32": "float64", "0.05": "0.01"}
    other = {} if backend == "loopback" else framework
    return [*(other.get(word, word) for word in RUN), "--backend", backend, "--epochs", "6"]


def killed_and_continued(tmp_path: Path, backend: str, kills: int, drawn: random.Random, whole: Path) -> None:
    """Kill random processes at random steps, going on with other numbers of processes; then compare with the whole."""
    command = arguments(backend)
    for _ in range(kills):
        size = drawn.choice([2, 3])
        with start(tmp_path, *command, "--processes", str(size)) as child:
            await_step(tmp_path / "mine", saved_step(tmp_path / "mine") + drawn.randrange(1, 3), child)
            if child.poll() is None:
                os.kill(drawn.choice(children_of(child.pid)), signal.SIGKILL)
            _, shown = child.communicate(timeout=120)
        if child.returncode == 0:
            break
        assert child.returncode == 2 and len(told(shown)) == 1, shown
    ended = run(tmp_path, *command)  # in one process
    assert ended.returncode == 0 or "is not empty" in ended.stderr, ended.stderr
    (history, found, _, recipe), (expected_history, expected, _, expected_recipe) = map(
        outcome, (tmp_path / "mine", whole)
    )
    assert recipe == expected_recipe and found == expected
    for epoch, other in zip(history, expected_history, strict=True):
        assert epoch["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)


def unbroken(folder: Path, backend: str) -> Path:
    folder.mkdir()
    done = run(folder, *arguments(backend))
    assert done.returncode == 0, done.stderr
    return folder / "mine"


@pytest.mark.parametrize("backend", each_backend("loopback"))
def test_a_run_whose_processes_were_killed_goes_on_by_the_same_command_and_ends_as_the_whole_one(
    backend: str, tmp_path: Path
) -> None:
    killed_and_continued(tmp_path, backend, 1, random.Random(0), unbroken(tmp_path / "whole", backend))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("backend", "times"), [("loopback", 7), pytest.param("torch", 3, marks=pytest.mark.needs("torch"))]
)
def test_twenty_kills_of_random_processes_lose_nothing(backend: str, times: int, tmp_path: Path) -> None:
    whole, drawn = unbroken(tmp_path / "whole", backend), random.Random(1)
    for number in range(times):
        (tmp_path / str(number)).mkdir()
        killed_and_continued(tmp_path / str(number), backend, 2, drawn, whole)


def test_a_run_that_was_cut_goes_on_by_the_same_call_and_any_other_is_left_alone(tmp_path: Path) -> None:
    run_dir = stopped(tmp_path / "mine")
    before = snapshot(run_dir)
    with pytest.raises(RecipeError, match="is not empty, and tlx overwrites nothing"):
        tlx.run(**{**FIELDS, "lr": 0.06}, out=str(run_dir))
    assert snapshot(run_dir) == before
    tlx.run(**FIELDS, out=str(run_dir))
    tlx.run(**FIELDS, out=str(tmp_path / "whole"))
    assert outcome(run_dir) == outcome(tmp_path / "whole")
    with pytest.raises(RecipeError, match="is not empty, and tlx overwrites nothing"):
        tlx.run(**FIELDS, out=str(run_dir))


@pytest.mark.needs("torch")
@pytest.mark.thorough
def test_torchrun_starts_the_run_again_after_a_kill_and_it_goes_on_from_its_last_save(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2"]
    command += ["--master-port", str(free_port()), "-m", "tlx", *RUN, "--backend", "loopback", "--epochs", "40"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=-1, stderr=-1, text=True) as agent:
        await_step(tmp_path / "mine", 3, agent)
        os.kill(children_of(agent.pid)[1], signal.SIGKILL)
        _, shown = agent.communicate(timeout=300)
    assert agent.returncode == 0, shown
    assert re.search(r"(?i)go(es|ing) on|resum", shown), shown
    whole = tmp_path / "whole"
    whole.mkdir()
    assert run(whole, *RUN, "--backend", "loopback", "--epochs", "40").returncode == 0
    assert outcome(tmp_path / "mine")[1] == outcome(whole / "mine")[1]
