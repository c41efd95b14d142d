"""Training and fitting as a run's folder sees them: what is saved when, and where a signal ends them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tlx.recipe import Recipe
from tlx.runs.display import Listener, follow
from tlx.runs.folder import RunFolder
from tlx.runs.interrupt import AFTER_STEP, Stop, standing
from tlx.runs.resume import history_line
from tlx.training.fit import fit
from tlx.training.loop import State, Training, train
from tlx.training.metrics import EpochEnded, Event, Stepped

EPOCH_SECONDS = 5.0  # an epoch's end is a good place to save, unless epochs are so short that saving would cost more


def train_in_folder(
    training: Training,
    state: State,
    folder: RunFolder,
    save: Callable[[], None],
    recipe: Recipe,
    listeners: Sequence[Listener],
    stop: Stop,
) -> None:
    """Train to the end; `save` every `save_seconds`, earlier at an epoch's end, and when a signal says stop."""
    saved, save_seconds = time.monotonic(), recipe.save_seconds
    before = f" as it stood after step {state.step}" if folder.state else None
    stop.at(f"stopped at once; {standing(recipe, folder.path, before)}", AFTER_STEP)

    def after(event: Event) -> None:
        nonlocal saved
        if isinstance(event, EpochEnded):
            folder.append(history_line(event))
        elif not isinstance(event, Stepped):
            return
        patience = min(save_seconds, EPOCH_SECONDS) if isinstance(event, EpochEnded) else save_seconds
        if stop.hear(training.channel, time.monotonic() - saved >= patience):
            with stop.held():
                save()
                where = f" as it stood after step {state.step}"
                stop.text = f"stopped at once; {standing(recipe, folder.path, where)}"
            saved = time.monotonic()
            total = training.plan.schedule.epochs * training.loader.steps
            stop.check(f"stopped after step {state.step} of {total}; {standing(recipe, folder.path, '')}")

    follow(train(training, state), [*listeners, after])


def fit_in_folder(
    training: Training,
    state: State,
    folder: RunFolder,
    recipe: Recipe,
    listeners: Sequence[Listener],
    stop: Stop,
) -> str:
    """Extract features and fit. Nothing is saved: whoever starts again finds the features cached.

    Returns what to say where the run is stopped after it.
    """
    text = f"stopped before the fit was done; {standing(recipe, folder.path, None)}"
    stop.at(text, AFTER_STEP)

    def after(event: Event) -> None:
        if isinstance(event, EpochEnded):
            folder.append(history_line(event))
        if isinstance(event, Stepped):
            stop.hear(training.channel)
        stop.check(text)

    follow(fit(training, state), [*listeners, after])
    return text
