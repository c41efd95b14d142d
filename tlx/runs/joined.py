"""What the processes of a run share: they start from the first one's state, and end with its result.

The first alone has the folder and the display.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tlx.backend import Backend, Reduces
from tlx.data import Data
from tlx.errors import BackendError, DataError
from tlx.processes import Channel, of_first
from tlx.recipe import Recipe
from tlx.runs.display import Listener, follow
from tlx.runs.interrupt import AFTER_STEP, Stop
from tlx.runs.leaving import leave
from tlx.runs.result import Result
from tlx.training.build import make_loader
from tlx.training.fit import fit, judge
from tlx.training.loop import SUMS, State, Training, held_out, train
from tlx.training.metrics import EpochEnded, Event, Meter, Metrics, Stepped
from tlx.training.together import arrays_of_first, take_over


def check_backend(backend: Backend, channel: Channel) -> None:
    """Raise BackendError where a backend of one process is asked to work with others."""
    if channel.world.size > 1 and not isinstance(backend, Reduces):
        problem = f"backend {backend.name!r} has no method reduce, and cannot train over {channel.world.size} processes"
        raise BackendError(problem, fix="run it in one process, or add the method: see docs/backends.md")


def check_data(data: Data, channel: Channel) -> None:
    """Raise DataError unless all processes see the same data."""
    prints = channel.gather(data.fingerprint.encode())
    others = [rank for rank, own in enumerate(prints) if own != prints[0]]
    if others:
        problem = f"process {others[0]} of the run sees other data under {data.name!r} than process 0"
        raise DataError(problem, fix="give all machines the same files")


def share_state(training: Training, state: State) -> None:
    """Give all processes the state in which the first one starts or goes on."""
    channel, first = training.channel, training.channel.world.rank == 0
    if channel.world.size == 1:
        return
    take_over(training.backend, training.model, training.optimizer, training.shadow, channel)
    facts = {
        "history": [asdict(epoch) for epoch in state.history],
        "step": state.step,
        "frozen": state.frozen,
        "best_epoch": state.best_epoch,
        "meter": None if state.meter is None else {name: getattr(state.meter, name) for name in SUMS},
    }
    best, facts = arrays_of_first(channel, state.best, facts)
    if first:
        return
    state.history, state.step, state.frozen = [*map(_epoch, facts["history"])], facts["step"], facts["frozen"]
    state.best, state.best_epoch = best, facts["best_epoch"]
    if facts["meter"] is not None:
        state.meter = Meter(training.backend, training.model, "train", len(state.history), training.loader.steps)
        for name, value in facts["meter"].items():
            setattr(state.meter, name, value)


def _epoch(facts: Mapping[str, Any]) -> EpochEnded:
    val = facts["val"]
    metrics = {"train": Metrics(**facts["train"]), "val": None if val is None else Metrics(**val)}
    return EpochEnded(**{**facts, **metrics, "lr": tuple(facts["lr"]), "fit": None})


def stopping(stop: Stop, text: str, channel: Channel) -> Listener:
    """Return a listener that ends all processes, between two steps, where one of them got a signal."""

    def listener(event: Event) -> None:
        if isinstance(event, Stepped):
            stop.hear(channel)
            stop.check(text)

    return listener


def join(stop: Stop, recipe: Recipe, training: Training, data: Data, listeners: Sequence[Listener]) -> Result:
    """Take part in a run that the first of several processes leads; return its result."""
    channel, state, text = training.channel, State(), "stopped together with process 0, which says what is saved"
    share_state(training, state)
    stop.at(text, AFTER_STEP)
    if training.fit is not None:
        follow(fit(training, state), [*listeners, stopping(stop, text, channel)])
    else:
        follow(train(training, state), [*listeners, _saving(stop, state, text, channel)])
    model, adapted = training.model, recipe.lora is not None
    if training.fit is None or training.fit.kind == "probe":
        model = leave(recipe, training, state, len(data.classes)).model
    if data.test is not None and recipe.evaluate_test:
        loader = make_loader(recipe, data.test)
        batches = loader if adapted else held_out(training, state, loader)
        follow(judge(training, model, state.bank, batches, "test"), [*listeners, stopping(stop, text, channel)])
    values = json.loads(of_first(channel))
    return Result(**{**values, "recipe": recipe, "run_dir": Path(values["run_dir"]), "model": model.module})


def _saving(stop: Stop, state: State, text: str, channel: Channel) -> Listener:
    """Return a listener that is there when the first process saves: what was measured is fetched by all."""

    def listener(event: Event) -> None:
        if isinstance(event, (EpochEnded, Stepped)) and stop.hear(channel):
            if state.meter is not None:
                state.meter.fetch()
            stop.check(text)

    return listener
