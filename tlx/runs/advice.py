"""What a run says about itself, in a line each: before it starts, and when it has ended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tlx.data import Data
from tlx.data.multilabel import class_counts
from tlx.manifest import CARD, read_files, read_manifest
from tlx.recipe import Recipe
from tlx.runs.card import read_card
from tlx.training.metrics import EpochEnded, Metrics

SMALL = 30  # validation images, under which one of them decides by more than three points
FEW_STEPS = 50  # in all
STUCK = (0.98, 1.1)  # of the loss of guessing: where a new head begins, and has not come away from


def before(recipe: Recipe, data: Data) -> Iterator[str]:
    """Yield what may surprise in a recipe on its data."""
    count = len(data.train)
    if recipe.batch_size > count and not recipe.fits:
        yield f"batch_size is {recipe.batch_size}, and there are {count} training images: an epoch is one batch"
    if data.val is not None and len(data.val) < SMALL:
        images = f"{len(data.val)} image{'s' if len(data.val) > 1 else ''}"
        yield f"the validation part has {images}: one more right is {100 / len(data.val):.0f} points"
    if recipe.schedule == "step" and recipe.step_size >= recipe.epochs:
        yield f"schedule step drops nothing: step_size is {recipe.step_size}, and epochs {recipe.epochs}"
    counts = class_counts(data.train.labels, len(data.classes))
    if recipe.class_weights == "balanced" and counts.min() == counts.max():
        yield f"class_weights has nothing to weigh: each class has {counts[0]} training images"
    yield from _other_pixels(recipe)


def _other_pixels(recipe: Recipe) -> Iterator[str]:
    """Yield what the run that the weights come from did otherwise to its pixels."""
    run = Path(recipe.weights or "")
    if recipe.weights in (None, "none", "imagenet", "own") or not run.is_dir() or read_manifest(run) is None:
        return
    theirs = read_card(read_files(run, (CARD,))[CARD], run).preprocess
    for name in ("mean", "std", "interpolation"):
        value = getattr(theirs, name)
        if value != getattr(recipe, name):
            text = value if isinstance(value, str) else ",".join(map(str, value))
            yield f"{run.name} was trained with another {name}; to keep its: --{name} {text}"


def after(data: Data, history: Sequence[EpochEnded], steps: int, test: Metrics | None) -> Iterator[str]:
    """Yield what is likely to be wrong with a run that has ended, and what to try."""
    fit = history[-1].fit
    yield from fit.notes if fit else ()
    choices = 2 if data.multilabel else len(data.classes)
    guessing = math.log(choices)
    low, high = (factor * guessing for factor in STUCK)
    if not fit and all(low <= epoch.train.loss <= high for epoch in history):
        yield (
            f"the training loss stayed at ln({choices}) = {guessing:.2f}, which is guessing; "
            "try another lr, or more epochs"
        )
    if data.multilabel and data.val is not None and not data.val.labels.any(axis=0).all():
        name = data.classes[int(data.val.labels.any(axis=0).argmin())]
        yield f"no validation image has label {name!r}, so mAP leaves it out there, and its threshold is 0.5"
    if test is not None and data.test is not None and not data.multilabel:
        counts = np.bincount(data.test.labels, minlength=len(data.classes))
        share = counts.max() / len(data.test)
        if test.accuracy <= share:
            name = data.classes[int(counts.argmax())]
            yield f"the test accuracy is not above that of always answering {name!r}, which is {share:.4f}"
    if not fit and steps < FEW_STEPS:
        yield f"the run had {steps} step{'s' if steps > 1 else ''} in all; try more epochs, or a smaller batch_size"
