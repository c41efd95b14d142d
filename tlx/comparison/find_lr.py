"""Look for a learning rate: a range test on a model that is made for it and then thrown away."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlx.atomic import write_atomic
from tlx.backend import registry
from tlx.comparison.commands import options
from tlx.comparison.curve import picture
from tlx.comparison.range_test import Trial, middle_of, range_test, steepest, valley
from tlx.errors import RecipeError, TlxError, printable, shown
from tlx.recipe import Recipe, RecipeFields
from tlx.runs.display import Display
from tlx.runs.interrupt import interruptible
from tlx.runs.job import recipe_to_run
from tlx.strategy.plan import Strategy
from tlx.training.build import (
    build_model,
    check_fit,
    framed,
    load_initial,
    make_training,
    open_data,
    resolve_placement,
    with_pinned_weights,
)
from tlx.training.effects import check_effects
from tlx.training.loop import Training

if TYPE_CHECKING:
    from typing_extensions import Unpack

LOW, HIGH, STEPS = 1e-6, 10.0, 100
FEW = 12  # trials, of which no curve can be made


@dataclass(frozen=True, slots=True, repr=False)
class FoundLr:
    """What `tlx.find_lr` returns: rates of the head, or of everything, and of the backbone where it has its own."""

    lr: float  # the suggestion
    backbone_lr: float | None  # in the strategy's ratio to it
    steepest: float  # where the smoothed loss falls fastest
    lowest: float  # where it is lowest: too high to train at
    trials: tuple[Trial, ...]
    diverged: bool  # the test ended before its highest rate
    phase: str
    recipe: Recipe  # with the suggestion

    @property
    def command(self) -> str | None:
        """The line that trains at the suggested rate; None where the recipe holds what no option can say."""
        words = options(self.recipe)
        return None if words is None else shlex.join(["tlx", "run", *words])

    def sentences(self) -> list[str]:
        """Return what the test says, a line each."""
        backbone = "" if self.backbone_lr is None else f", backbone_lr {self.backbone_lr:g}"
        end = f"the loss is lowest at {self.lowest:.2g}" + (" and then diverges" if self.diverged else "")
        why = "in the middle of the longest fall of the smoothed loss"
        return [
            f"lr {self.lr:g}{backbone}: {why}; it falls fastest at {self.steepest:.2g}, and {end}",
            *([] if self.diverged else ["the loss did not diverge, so a higher rate may do too"]),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        names = ("lr", "backbone_lr", "steepest", "lowest", "diverged", "phase", "command")
        trials = [{"lr": trial.lr, "loss": trial.loss, "smoothed": trial.smoothed} for trial in self.trials]
        return {**{name: getattr(self, name) for name in names}, "trials": trials}

    def __repr__(self) -> str:
        return printable(f"<FoundLr {self.sentences()[0]}>")

    def _repr_html_(self) -> str:
        return self.svg()

    def svg(self) -> str:
        """Return the picture of the losses as SVG."""
        return picture(self.trials, self.lr, self.steepest)


def find_lr(
    recipe: Recipe | RecipeFields | Mapping[str, Any] | str | Path | None = None,
    *,
    picture: str | Path | None = None,
    quiet: bool = False,
    **fields: Unpack[RecipeFields],
) -> FoundLr:
    """Try rising learning rates, and suggest one.

    Up to 100 steps are taken at rates from 1e-6 to 10, each group in the strategy's proportion to the others, until the
    loss diverges: Smith 2017, section 3.3. The suggestion lies in the middle of the longest fall of the smoothed loss,
    which noisy batches move less than where it falls fastest. Of a strategy with phases it is the first that is tested.

    The model is made for the test and thrown away: modules that were passed, random streams and files stay as they
    are, and a run afterwards has the bits that it would have had. OneFlow's own generator is the exception: a module
    of your own may draw from it, so it is seeded, and OneFlow cannot take its state back.

    Args:
        recipe: a Recipe, its fields as a mapping, or the path of a TOML file. Default: the CIFAR-10 tutorial's job.
        picture: write the losses by their rates to this file, as SVG.
        quiet: show nothing on stderr.
        **fields: recipe fields, which replace those of `recipe`.

    Raises:
        RecipeError: the strategy takes no steps, or `picture` is no .svg file.
        TlxError: the loss is not finite from the start, or something in the input is wrong.
    """
    return search(recipe_to_run(recipe, fields), picture, quiet)


def search(asked: Recipe, file: str | Path | None = None, quiet: bool = False) -> FoundLr:
    """Find a rate for a recipe: see `find_lr`."""
    if asked.fits:
        raise RecipeError(f"strategy {asked.strategy_name} takes no steps, so it has no learning rate")
    if file is not None and Path(file).suffix.lower() != ".svg":
        raise RecipeError(f"picture is {shown(str(file))}; expected a name that ends in .svg")
    display = Display(quiet)
    with interruptible() as stop:
        stop.at(f"stopped; nothing was written. Start again with: {stop.command}")
        training, lr = _prepared(replace(asked, out=None), display)
        advance, trials = display.counted("range test"), list[Trial]()
        for trial in range_test(training, lr, LOW, HIGH, STEPS):
            trials.append(trial)
            advance(len(trials), STEPS)
        outcome = _judged(asked, training, lr, trials)
        if file is not None:
            write_atomic(file, outcome.svg().encode())
    return outcome


def _prepared(asked: Recipe, display: Display) -> tuple[Training, float]:
    """Build what trains as a run does, and return the rate to which the groups' rates are proportional."""
    backend = registry.load(asked.backend)
    check_effects(asked)
    recipe = resolve_placement(asked.resolved(), backend)
    data = open_data(recipe)
    check_fit(recipe, data)
    recipe = with_pinned_weights(framed(recipe, data), display.shown)
    model, arch = build_model(recipe, backend, len(data.classes))
    load_initial(recipe, backend, model, arch, data.classes, display.shown)
    training = make_training(recipe, backend, data, model, arch)
    lr = max(training.plan.phase_at(0).lr.values()) if isinstance(recipe.strategy, Strategy) else recipe.lr
    if not lr:
        raise RecipeError("lr is 0, and no group's rate can be in proportion to it", fix="raise lr")
    return training, lr


def _judged(asked: Recipe, training: Training, base: float, trials: list[Trial]) -> FoundLr:
    if len(trials) < FEW:
        last = f"at lr {trials[-1].lr:.2g}" if trials else "from the first step on"
        fix = "use precision float32, or other weights"
        raise TlxError(f"the loss diverges {last}, after {len(trials)} steps: there is no curve to judge", fix=fix)
    at = middle_of(*valley(trials))
    lr = float(f"{trials[at].lr:.2g}")
    backbone = asked.resolved().backbone_lr
    ratio = None if backbone is None else float(f"{lr * backbone / base:.2g}")
    own = isinstance(asked.strategy, Strategy)
    rates: dict[str, Any] = {} if own else {"lr": lr, "backbone_lr": ratio}
    lowest = min(trials, key=lambda trial: trial.smoothed)
    diverged = len(trials) < STEPS or trials[-1].smoothed > 2 * lowest.smoothed
    figures = (trials[steepest(trials)].lr, lowest.lr, tuple(trials), diverged, training.plan.phase_at(0).name)
    return FoundLr(lr, ratio, *figures, replace(asked, **rates))
