"""How long a run would take on this machine, from one step and one evaluation that are timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

from tlx.comparison.evidence import prepared
from tlx.data import Data
from tlx.recipe import Recipe
from tlx.runs.display import follow
from tlx.training.features import Features
from tlx.training.loop import FrozenGuard, State, begin_phase, feed_of_phase

FITS = 46 / 5  # fits of strategy probe, and those that cross-validation makes


def seconds_of(recipe: Recipe, data: Data, fit_seconds: float) -> float:
    """Return the seconds of a run of one phase, from the building of its model to the test.

    Two steps are taken, and two evaluations, of which the second ones count; reading a batch is timed once, and counts
    in full, though threads read ahead. Where a run caches the features of what is frozen, they count once for each
    variant of an image that comes up, and a step is one from there on.

    Args:
        recipe: with device and precision.
        data: what it would train on.
        fit_seconds: that cross-validating the logistic regression took, from which that of strategy probe follows.
    """
    started = time.perf_counter()
    training, state = prepared(recipe, data), State()
    built = time.perf_counter() - started
    backend, model, loader = training.backend, training.model, training.loader
    for _ in begin_phase(training, state):
        pass
    started = time.perf_counter()
    with closing(loader.epoch(0)) as batches:
        batch = next(batches)
    read = (time.perf_counter() - started) / len(batch)
    val, test = (0 if part is None else len(part) for part in (data.val, data.test))

    def timed(work: Callable[[], object]) -> float:
        """The seconds of each image of a batch, the second time."""
        work()
        began = time.perf_counter()
        work()
        return (time.perf_counter() - began) / len(batch)

    if recipe.fits:
        forward = timed(lambda: backend.fetch([backend.features(model, backend.put(model, batch))]))
        return built + (len(data.train) + val + test) * (read + forward) + FITS * fit_seconds
    forward = read + timed(lambda: backend.fetch(backend.evaluate(model, backend.put(model, batch))))
    FrozenGuard(training, state).watch(training.plan.frozen_at(0))
    feed = follow(feed_of_phase(training, state), ())
    with closing(feed.train.epoch(0)) as batches:
        entering = next(batches)

    def step() -> None:
        backend.set_hyper(training.optimizer, training.plan.hyper_at(0))
        parts = entering.parts(training.micro_batch)
        results = [backend.backward(model, backend.put(model, part), len(part) / len(entering)) for part in parts]
        backend.update(model, training.optimizer, training.clip_norm)
        backend.fetch([loss for loss, _ in results])

    trained = timed(step) * len(data.train) * recipe.epochs
    if not isinstance(feed.train, Features):
        return built + trained + read * len(data.train) * recipe.epochs + forward * (val * recipe.epochs + test)
    assert feed.boundary is not None and loader.variants is not None
    compute = feed.boundary.compute
    extracted = read + timed(lambda: compute(batch.images))
    kept = len(data.train) * min(loader.variants, recipe.epochs) + val
    return built + trained + extracted * kept + forward * test
