"""What a run tells its loggers, each of which works in a process of its own: see `tlx.loggers`."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tlx.atomic import write_atomic
from tlx.errors import TlxError, one_line, printable
from tlx.loggers.registry import load
from tlx.recipe import Recipe
from tlx.runs.folder import RunFolder
from tlx.training.loop import Training
from tlx.training.metrics import EpochEnded, Event, Metrics

Say = Callable[[Sequence[str]], object]
LOG, ID = "log", "id"
PATIENCE = 60.0  # seconds for which the end of a run waits for its loggers
INTERRUPTED = 10.0  # seconds for which an interrupted one does
# The worker finds what this process finds, whatever changed that.
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from tlx.loggers.worker import main; main(sys.argv[1])"
)


class Worker:
    """A logger's process, and what it was not told yet: a pipe that is full delays no step."""

    def __init__(self, name: str) -> None:
        self.name, self.pending, self._closing = name, b"", False
        command = [sys.executable, "-c", START, name, json.dumps(sys.path)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run, which then says how the series ends
        )
        assert self.process.stdin is not None
        self._pipe = self.process.stdin.fileno()
        os.set_blocking(self._pipe, False)

    @property
    def ended(self) -> bool:
        """Whether it has ended, which it does by itself only where something went wrong."""
        return self.process.poll() is not None

    def tell(self, message: Mapping[str, Any] | None = None) -> None:
        """Say something, as far as it is taken now."""
        if message is not None:
            self.pending += json.dumps(message).encode() + b"\n"
        with suppress(BlockingIOError, BrokenPipeError):
            while self.pending:
                self.pending = self.pending[os.write(self._pipe, self.pending) :]

    def finish(self, seconds: float) -> str:
        """Say the rest, and wait for the end; return what went wrong, or ""."""
        rest, self._closing = (None if self._closing else self.pending or None), True
        try:
            answer, _ = self.process.communicate(rest, timeout=max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            self.kill()
            return "it did not end in time"
        try:
            said = json.loads(answer.splitlines()[-1])
            return "" if said["ok"] else str(said["why"])
        except (IndexError, ValueError, KeyError, TypeError):
            return f"its process ended with exit code {self.process.returncode}"

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


class Log:
    """Listens to a run, and tells its loggers the figures of each epoch. One that fails is left out, with a note."""

    def __init__(self, begin: Callable[[str], dict[str, Any]], groups: Sequence[str], say: Say) -> None:
        self.workers: list[Worker] = []
        self.notes: list[str] = []
        self._begin, self._groups, self._say, self._begun = begin, groups, say, False

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, EpochEnded):
            self._tell({"epoch": event.epoch + 1, "figures": figures_of(event, self._groups)})
            return
        for worker in self.workers:
            if worker.pending:
                worker.tell()

    def _tell(self, message: Mapping[str, Any]) -> None:
        for worker in [*self.workers]:
            if worker.ended:
                self._leave(worker, worker.finish(0))
                continue
            try:
                if not self._begun:
                    worker.tell({"begin": self._begin(worker.name)})
                worker.tell(message)
            except (OSError, ValueError, TlxError) as error:
                self._leave(worker, f"{type(error).__name__}: {error}")
        self._begun = True

    def end(self, test: Metrics | None) -> None:
        """Tell the figures of the test part, and wait for the loggers."""
        self._tell({"end": {} if test is None else {"test/loss": test.loss, "test/accuracy": test.accuracy}})
        self.close(PATIENCE)

    def close(self, seconds: float = INTERRUPTED) -> None:
        """Let the loggers end; those that cannot within some seconds are stopped."""
        until = time.monotonic() + seconds
        for worker in [*self.workers]:
            if why := worker.finish(until - time.monotonic()):
                self._leave(worker, why)
            else:
                self.workers.remove(worker)

    def _leave(self, worker: Worker, why: str) -> None:
        worker.kill()
        self.workers.remove(worker)
        note = printable(f"log {worker.name!r} has failed, and the run goes on without it: {one_line(why)}")
        self.notes.append(note)
        self._say([note])


def check_loggers(recipe: Recipe) -> None:
    """Raise BackendUnavailable where the client of a logger is missing."""
    for name in recipe.loggers:
        load(name)


@contextmanager
def logged(
    recipe: Recipe, training: Training, folder: RunFolder, history: Sequence[EpochEnded], say: Say
) -> Iterator[Log]:
    """Log a run while the block runs, after whose end nothing is left of it in the process.

    The loggers write nothing before an epoch has ended, so that a run that fails earlier leaves no folder.

    Args:
        recipe: names the loggers.
        training: what trains.
        folder: of the run.
        history: the epochs that are done.
        say: shows notes.
    """
    groups = [printable(group.name) for group in training.plan.strategy.groups]
    earlier = [(epoch.epoch + 1, figures_of(epoch, groups)) for epoch in history]

    def begin(name: str) -> dict[str, Any]:
        return {
            "folder": str(folder.path / LOG / name),
            "id": _id(folder.path / LOG / ID),
            "name": printable(folder.path.resolve().name),
            "config": _config(recipe, training),
            "recipe": "\n".join(printable(line) for line in recipe.to_toml().split("\n")),
            "earlier": earlier,
        }

    log = Log(begin, groups, say)
    try:
        for name in recipe.loggers:
            log.workers.append(Worker(name))
        yield log
    finally:
        log.close()


def figures_of(epoch: EpochEnded, groups: Sequence[str]) -> dict[str, float]:
    """Return what is logged of an epoch, by name: see `tlx.loggers.protocol`."""
    figures = {"train/loss": epoch.train.loss, "train/accuracy": epoch.train.accuracy}
    if epoch.val is not None:
        figures |= {"val/loss": epoch.val.loss, "val/accuracy": epoch.val.accuracy}
        if epoch.val.average_precision is not None:
            figures["val/average_precision"] = epoch.val.average_precision
    figures["train/images_per_second"] = epoch.train.images / epoch.seconds
    return {**figures, **{f"lr/{group}": lr for group, lr in zip(groups, epoch.lr, strict=False)}}


def _config(recipe: Recipe, training: Training) -> dict[str, Any]:
    values = {name: value for name, value in recipe.to_dict().items() if value is not None and name != "log"}
    plain = {name: printable(value) if isinstance(value, str) else value for name, value in values.items()}
    facts = {
        "trainable_parameters": training.plan.trainable_parameters(),
        "total_parameters": training.plan.total_parameters(),
    }
    return {**plain, **facts}


def _id(path: Path) -> str:
    """Return the digits by which loggers know the run, drawn when it is first logged."""
    with suppress(OSError, UnicodeDecodeError):
        text = path.read_text("ascii").strip()
        if re.fullmatch(r"[0-9a-f]{16}", text):
            return text
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, (digits := secrets.token_hex(8)).encode() + b"\n")
    return digits
