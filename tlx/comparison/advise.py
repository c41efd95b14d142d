"""Advise on a strategy: the textbooks' rule, and what was measured of these data on this machine."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tlx.backend import registry
from tlx.comparison.commands import options
from tlx.comparison.decide import (
    CANDIDATES,
    CEILING,
    FROZEN,
    NEAREST,
    TRAINED,
    Right,
    decide,
    frozen_of,
    rule_of,
    standard_error,
)
from tlx.comparison.evidence import Evidence, evidence_of, trial
from tlx.comparison.plan import recipe_with, strategy_options
from tlx.comparison.seconds import seconds_of
from tlx.data import Data
from tlx.data.sources.source import DataLike
from tlx.errors import RecipeError, as_html, printable, shown
from tlx.recipe import Recipe, RecipeFields, as_recipe, current_names
from tlx.runs.display import Display
from tlx.runs.interrupt import interruptible
from tlx.strategy.built_in import named
from tlx.training.build import check_fit, framed, open_data, resolve_placement, with_pinned_weights
from tlx.training.effects import check_effects
from tlx.training.out_of_fold import FOLDS

if TYPE_CHECKING:
    from typing_extensions import Unpack

ONCE, AGAIN = 600.0, 120.0  # seconds that trials on the first fold, and on any more, may take without a budget
TRAINED_ON = (FOLDS - 1) / FOLDS  # of the images, in a trial
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Option:
    """A strategy: the seconds of a run, and the accuracy on images that it had not seen, where it was tried.

    `accuracy` lies between 0 and 1, with its standard error, over so many `images`.
    """

    strategy: str
    seconds: float
    accuracy: float | None = None
    error: float | None = None
    images: int = 0


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Advice:
    """What `tlx.advise` returns.

    Attributes:
        strategy: the recommendation.
        rule: that of the textbooks' rule.
        reasons: why, a sentence each.
        close: whether the evidence leaves another strategy in the running.
        options: every strategy that was looked at.
        images: that are trained on.
        knn: the accuracy of the nearest training images, cross-validated.
        distance: from the pretraining: see `tlx.comparison.domain`; None: the model has no BatchNorm.
        recipe: with the recommendation.
    """

    strategy: str
    rule: str
    reasons: tuple[str, ...]
    close: bool
    options: tuple[Option, ...]
    images: int
    knn: float
    distance: float | None
    recipe: Recipe

    @property
    def command(self) -> str | None:
        """The line that trains so; None where the recipe holds what no option can say."""
        words = options(self.recipe)
        return None if words is None else shlex.join(["tlx", "run", *words])

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Return the heads and the cells of the table."""
        heads = ["", "strategy", "seconds", "accuracy", "images"]
        return heads, [self._row(option) for option in self.options]

    def _row(self, option: Option) -> list[str]:
        marks = [("advised", self.strategy), ("rule", self.rule)]
        mark = ", ".join(word for word, name in marks if name == option.strategy)
        known = option.accuracy is not None and option.error is not None
        accuracy = f"{option.accuracy:.4f} ± {option.error:.4f}" if known else "-"
        return [mark, option.strategy, f"{option.seconds:.0f}", accuracy, f"{option.images:,}" if known else "-"]

    def sentences(self) -> list[str]:
        """Return the advice and its reasons, a line each."""
        return [printable(text) for text in (f"advice: {self.strategy}", *(f"  {reason}" for reason in self.reasons))]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        names = ("strategy", "rule", "close", "images", "knn", "distance", "command")
        values = {name: getattr(self, name) for name in names}
        return {**values, "reasons": list(self.reasons), "options": [asdict(option) for option in self.options]}

    def __repr__(self) -> str:
        return printable(f"<Advice {self.strategy}: {'; '.join(self.reasons)}>")

    def _repr_html_(self) -> str:
        heads, rows = self.rows()
        head = "".join(f"<th>{as_html(name)}</th>" for name in heads)
        body = "".join("<tr>" + "".join(f"<td>{as_html(text)}</td>" for text in row) + "</tr>" for row in rows)
        return f"<table><caption>{as_html(' '.join(self.sentences()))}</caption><tr>{head}</tr>{body}</table>"


def advise(
    data: DataLike | None = None,
    /,
    *,
    budget: str | float | None = None,
    quiet: bool = False,
    **fields: Unpack[RecipeFields],
) -> Advice:
    """Recommend a strategy for a data set, with reasons and with the command that trains so.

    The textbooks' rule by the number of images and their distance from the pretraining names a strategy. It is kept
    unless another proves better, by more than the standard error, on images that neither had seen: the frozen features
    are cross-validated, and the strategies that train more are tried on the same folds, as far as there is time.

    Nothing is written but features in the cache, and the test part is not looked at.

    Args:
        data: whatever `tlx.load_data` takes.
        budget: time for the advice and the run together, such as "10m", "90s", "1.5h", or a number of seconds.
            Default: any, with ten minutes for trials.
        quiet: show nothing on stderr.
        **fields: recipe fields, which the recommended recipe has too; those that a strategy lacks are left out there.

    Raises:
        RecipeError: `strategy` is given, a value is wrong, or an image may have several labels.
        DataError: the data cannot be read.
    """
    given: dict[str, Any] = {**fields}
    if data is not None:
        if "data" in given:
            raise RecipeError("the data is given twice", fix="give it once, as the first argument")
        given["data"] = data
    return look(given, budget, quiet)


def look(fields: Mapping[str, Any], budget: str | float | None = None, quiet: bool = False) -> Advice:
    """Advise on the strategy of a recipe's fields: see `advise`."""
    started, allowed = time.perf_counter(), None if budget is None else seconds_in(budget)
    if "strategy" in fields:
        raise RecipeError("strategy is what tlx advise recommends", fix="leave strategy out")
    base, of_strategies = _divided(fields)
    if base.weights == "none":
        problem = "weights is none, and there is nothing to transfer from random values"
        raise RecipeError(problem, fix="leave weights out, or train with tlx run --strategy scratch")
    recipes = {name: recipe_with(base, {"strategy": name}, of_strategies)[0] for name in CANDIDATES}
    for name in ("diff_lr", "full"):  # which freeze nothing, so that a run would refuse the field
        recipes[name] = replace(recipes[name], frozen_norm="keep")
    display = Display(quiet)
    with interruptible() as stop:
        stop.at(f"stopped; nothing was written. Start again with: {stop.command}")
        data = open_data(base)
        if data.multilabel:
            problem = f"advise judges one label for each image, but those of {data.name} may have several"
            raise RecipeError(problem, fix="compare feature_extract, partial and full with tlx run")
        check_fit(base, data)
        check_effects(recipes["full"], data)
        display.data(data)
        evidence = evidence_of(recipes[FROZEN], data, display, recipes[NEAREST].neighbors)
        frozen, better = frozen_of(evidence.probe, evidence.knn)
        ready = {name: _ready(recipe, data, display) for name, recipe in recipes.items()}
        seconds = {}
        for name in CANDIDATES:
            seconds[name] = seconds_of(ready[name], data, 0.0 if name == NEAREST else evidence.fit_seconds)
            display.say(f"{name}: a run takes about {seconds[name]:.0f} s here")
        rule, words = rule_of(len(data.train), evidence.distance)
        left = None if allowed is None else allowed - (time.perf_counter() - started)
        tried, note = _tried(ready, data, evidence, frozen, seconds, rule, left, display)
        left = None if allowed is None else allowed - (time.perf_counter() - started)
    in_question = {name: of for name, of in seconds.items() if name == frozen or name not in (FROZEN, NEAREST)}
    decision = decide(rule, tried, in_question, left, frozen)
    judged = {**tried, FROZEN: evidence.probe, NEAREST: evidence.knn}
    table = tuple(_option(name, seconds[name], judged.get(name)) for name in CANDIDATES)
    reasons = (f"the textbooks' rule is {rule}: {words}", *_evidence(data, evidence, better), *note, *decision.reasons)
    recipe = replace(recipes[decision.strategy], out=base.out)
    figures = (len(data.train), float(evidence.knn.mean()), evidence.distance)
    return Advice(decision.strategy, rule, reasons, decision.close, table, *figures, recipe)


def seconds_in(text: str | float) -> float:
    """Read a time such as "10m", "90s" or "1.5h"; a number is of seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", str(text).strip())
    if match is None or not float(match[1]):
        raise RecipeError(f"budget is {shown(text)}; expected a time, such as 90s, 10m or 1.5h")
    return float(match[1]) * UNITS[match[2] or "s"]


def _divided(fields: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe without the options of strategies, and these, which not every candidate has."""
    known = current_names(fields, "recipe")
    own = {name: value for name, value in known.items() if name in strategy_options() and value is not None}
    able = {option for name in CANDIDATES for option in named(name).customary}
    for name in own.keys() - able:
        problem = f"{name} has no effect in any strategy that tlx advise looks at: {', '.join(CANDIDATES)}"
        raise RecipeError(problem, fix=f"leave {name} out")
    return as_recipe(None, {name: value for name, value in known.items() if name not in strategy_options()}), own


def _ready(recipe: Recipe, data: Data, display: Display) -> Recipe:
    placed = resolve_placement(recipe.resolved(), registry.load(recipe.backend))
    return with_pinned_weights(framed(placed, data), display.shown)


def _tried(
    recipes: Mapping[str, Recipe],
    data: Data,
    evidence: Evidence,
    frozen: str,
    seconds: Mapping[str, float],
    rule: str,
    left: float | None,
    display: Display,
) -> tuple[dict[str, Right], list[str]]:
    """Try strategies on as many folds as there is time for, all on the same; return who was right, and what to say.

    What the frozen features are right about on these folds comes first.
    """
    judged, folds = {FROZEN: evidence.probe, NEAREST: evidence.knn}[frozen], _folds(evidence, len(data.classes))
    if judged.mean() >= CEILING:
        return {frozen: judged}, []
    share = TRAINED_ON * len(evidence.images) / len(data.train)
    costs: dict[str, float] = {}
    room = 0.0
    for name in sorted(TRAINED, key=lambda name: (name != rule, seconds[name])):
        longest = max(seconds[other] for other in (*costs, name))
        possible = ONCE if left is None else left - longest
        if sum(costs.values()) + share * seconds[name] <= possible:
            costs[name], room = share * seconds[name], AGAIN if left is None else possible
    if not costs or not folds:
        least = share * min(seconds[name] for name in TRAINED)
        why = f"one takes about {least:.0f} s" if folds else "there are too few images"
        return {frozen: judged}, [f"nothing that trains more was tried, because {why}"]
    right: dict[str, list[Right]] = {name: [] for name in (frozen, *costs)}
    started, done = time.perf_counter(), 0
    for done, fold in enumerate(folds, 1):
        right[frozen].append(judged[evidence.fold == fold])
        for name in costs:
            display.say(f"trial {done} of {name}, about {costs[name]:.0f} s")
            right[name].append(trial(recipes[name], data, evidence, fold))
        if (spent := time.perf_counter() - started) + spent / done > room:
            break
    joined = {name: np.concatenate(parts) for name, parts in right.items()}
    figures = ", ".join(f"{name} {values.mean():.1%}" for name, values in joined.items())
    count = len(joined[frozen])
    words = [f"trials on {done} of {FOLDS} folds: of {count:,} images not seen, {figures} are right"]
    if untried := [name for name in TRAINED if name not in costs]:
        words.append(f"there was no time to try {' and '.join(untried)}; a larger --budget gives it")
    return joined, words


def _folds(evidence: Evidence, classes: int) -> list[int]:
    """Return the folds that hold images, and outside of which every class has some."""
    labels = evidence.images.labels
    inside = [evidence.fold == number for number in range(FOLDS)]
    able = [which.any() and np.bincount(labels[~which], minlength=classes).all() for which in inside]
    return [number for number in range(FOLDS) if able[number]]


def _evidence(data: Data, evidence: Evidence, better: str) -> list[str]:
    """Say what the features say."""
    count, accuracy = len(evidence.images), float(evidence.probe.mean())
    some = f"{count:,} of them" if count < len(data.train) else f"{count:,} images"
    error = standard_error(accuracy, count)
    text = (
        f"frozen features, cross-validated on {some}: a regression is right about {accuracy:.1%} ± {error:.1%}, the "
        f"{evidence.neighbors} nearest images about {evidence.knn.mean():.1%}"
    )
    none = ["the model has no BatchNorm, so its distance from the pretraining is not known"]
    return [text, *([better] if better else []), *(none if evidence.distance is None else [])]


def _option(name: str, seconds: float, right: Right | None) -> Option:
    if right is None:
        return Option(name, seconds)
    accuracy = float(right.mean())
    return Option(name, seconds, accuracy, standard_error(accuracy, len(right)), len(right))
