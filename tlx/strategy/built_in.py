"""The strategies that are known by name. Each is one function, whose keyword defaults are the customary values.

To add one, write a function below: its keyword arguments are recipe fields, and `tlx.strategy.register` makes it known.
A package of your own can register one in the same way.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

from tlx.errors import RecipeError, closest
from tlx.models.zoo import Architecture
from tlx.strategy.plan import Fits, Group, Phase, Strategy

Build = TypeVar("Build", bound=Callable[..., Strategy])
InitialWeights = Literal["imagenet", "none"]
# For editors, which complete them; a test holds them equal to the functions below.
StrategyName = Literal[
    "scratch",
    "full",
    "diff_lr",
    "feature_extract",
    "partial",
    "head_then_full",
    "gradual",
    "layer_decay",
    "probe",
    "knn",
    "lora",
]


@dataclass(frozen=True, slots=True)
class NamedStrategy:
    """A strategy that a recipe can name.

    `build(arch, epochs, **options)` returns it for an architecture and a length of the run; `weights` is what the
    backbone starts from unless the recipe says otherwise; `fits` is what it does where it takes no steps.
    """

    name: str
    summary: str
    build: Callable[..., Strategy]
    weights: InitialWeights = "imagenet"
    fits: Fits | None = None

    @property
    def customary(self) -> dict[str, Any]:
        """The recipe fields that the strategy uses, with the values they take where the recipe has None."""
        return dict(_keyword_defaults(self.build))


@lru_cache
def _keyword_defaults(function: Callable[..., Strategy]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


STRATEGIES: dict[str, NamedStrategy] = {}


def register(
    summary: str, *, weights: InitialWeights = "imagenet", fits: Fits | None = None
) -> Callable[[Build], Build]:
    """Make a function known as the strategy of its name.

    Args:
        summary: one line for listings.
        weights: what the backbone starts from unless the recipe says otherwise.
        fits: what it does where it takes no steps.

    Raises RecipeError where the name is taken.
    """

    def add(build: Build) -> Build:
        name = build.__name__
        if name in STRATEGIES:
            raise RecipeError(f"strategy {name!r} is registered already: {STRATEGIES[name].summary}")
        STRATEGIES[name] = NamedStrategy(name, summary, build, weights, fits)
        return build

    return add


def named(name: str) -> NamedStrategy:
    """Look up a strategy by its name; RecipeError names the nearest one."""
    try:
        return STRATEGIES[name]
    except KeyError:
        raise RecipeError(f"Unknown strategy {name!r}.{closest(name, STRATEGIES)}") from None


BACKBONE_AND_HEAD = (Group("backbone", "backbone"), Group("head", "head"))


def stage_groups(arch: Architecture) -> tuple[Group, ...]:
    """Return one group for each stage of a model, from input to output, then the head."""
    return (*(Group(stage, f"stage:{stage}") for stage, _ in arch.stages), Group("head", "head"))


@register("random weights, everything trains", weights="none")
def scratch(arch: Architecture, epochs: int, *, lr: float = 1e-3) -> Strategy:
    """Train everything at one rate, from random weights."""
    return Strategy("scratch", (Group("all", "all"),), (Phase("train", {"all": lr}),))


@register("pretrained, everything trains at one rate (the tutorial's method 1)")
def full(arch: Architecture, epochs: int, *, lr: float = 1e-3) -> Strategy:
    """Train everything at one rate."""
    return Strategy("full", (Group("all", "all"),), (Phase("train", {"all": lr}),))


@register("pretrained, the backbone trains more slowly than the head (method 2)")
def diff_lr(arch: Architecture, epochs: int, *, lr: float = 1e-3, backbone_lr: float = 1e-4) -> Strategy:
    """Train the backbone at one rate and the head at another."""
    return Strategy("diff_lr", BACKBONE_AND_HEAD, (Phase("train", {"backbone": backbone_lr, "head": lr}),))


@register("pretrained, the backbone is frozen and only the head trains (method 3)")
def feature_extract(arch: Architecture, epochs: int, *, lr: float = 1e-3) -> Strategy:
    """Freeze the backbone and train the head."""
    return Strategy("feature_extract", BACKBONE_AND_HEAD, (Phase("train", {"head": lr}),))


@register("pretrained, the early stages are frozen; `stages` (default: the last) and the head train")
def partial(
    arch: Architecture,
    epochs: int,
    *,
    lr: float = 1e-3,
    backbone_lr: float = 1e-4,
    stages: tuple[str, ...] | None = None,
) -> Strategy:
    """Freeze all but some stages and the head."""
    known = [stage for stage, _ in arch.stages]
    chosen = stages or (known[-1],)
    for stage in chosen:
        if stage not in known:
            raise RecipeError(f"stages: {arch.name} has no stage {stage!r}.{closest(stage, known)}")
    frozen = [f"stage:{stage}" for stage in known if stage not in chosen]
    early = (Group("early", " | ".join(frozen)),) if frozen else ()
    late = tuple(Group(stage, f"stage:{stage}") for stage in known if stage in chosen)
    rates = {**{group.name: backbone_lr for group in late}, "head": lr}
    return Strategy("partial", (*early, *late, Group("head", "head")), (Phase("train", rates),))


@register("pretrained, the head alone for `phase_epochs`, then everything at backbone_lr")
def head_then_full(
    arch: Architecture, epochs: int, *, lr: float = 1e-3, backbone_lr: float = 1e-4, phase_epochs: int = 1
) -> Strategy:
    """Train the head until it fits the frozen backbone, then everything."""
    everything = Phase("full", {"backbone": backbone_lr, "head": backbone_lr}, start=phase_epochs)
    return Strategy("head_then_full", BACKBONE_AND_HEAD, (Phase("head", {"head": lr}), everything))


@register("pretrained, the head first, then one more stage every `phase_epochs`, from the last to the first")
def gradual(
    arch: Architecture, epochs: int, *, lr: float = 1e-3, backbone_lr: float = 1e-4, phase_epochs: int = 1
) -> Strategy:
    """Unfreeze stage by stage (Howard & Ruder 2018, section 3.3); stages whose turn comes after the end stay frozen."""
    rates, phases = {"head": lr}, [Phase("head", {"head": lr})]
    for number, (stage, _) in enumerate(reversed(arch.stages), 1):
        rates = {stage: backbone_lr, **rates}
        phases.append(Phase(stage, rates, start=number * phase_epochs))
    return Strategy("gradual", stage_groups(arch), tuple(phase for phase in phases if phase.start < epochs))


@register("pretrained, everything trains; each stage's rate is layer_decay times that of the next")
def layer_decay(arch: Architecture, epochs: int, *, lr: float = 1e-3, layer_decay: float = 0.65) -> Strategy:
    """Lower the rate from stage to stage towards the input.

    Clark et al. 2020, section 3.4, and Bao et al. 2022, appendix, do so by transformer layer; here it is by stage. Of
    the zoo's transformers that is a block.
    """
    depth = len(arch.stages)
    rates = {stage: lr * layer_decay ** (depth - i) for i, (stage, _) in enumerate(arch.stages)}
    return Strategy("layer_decay", stage_groups(arch), (Phase("train", {**rates, "head": lr}),))


@register("pretrained and frozen; the head is a logistic regression on its features, without epochs", fits="probe")
def probe(arch: Architecture, epochs: int) -> Strategy:
    """Fit the head to frozen features, as DINOv2 evaluates them: see `tlx.training.logistic`."""
    return Strategy("probe", BACKBONE_AND_HEAD, (Phase("fit", {"head": 0.0}),))


@register("pretrained and frozen; the nearest training images by its features vote, without a head", fits="knn")
def knn(arch: Architecture, epochs: int, *, neighbors: int | None = None) -> Strategy:
    """Let the most similar training images vote, as DINOv2 evaluates features: see `tlx.training.neighbors`."""
    return Strategy("knn", BACKBONE_AND_HEAD, (Phase("fit", {"head": 0.0}),))


@register("pretrained and frozen; low-rank adapters on its linear layers train, and the head")
def lora(
    arch: Architecture,
    epochs: int,
    *,
    lr: float = 1e-3,
    rank: int = 8,
    alpha: float = 16.0,
    lora_targets: tuple[str, ...] | None = None,
) -> Strategy:
    """Train low-rank adapters beside a frozen backbone (Hu et al. 2021, section 4.1).

    The recipe's rank, alpha and lora_targets say which adapters the model has: see `Recipe.lora`.
    """
    groups = (Group("base", "backbone !role:adapter"), Group("adapters", "role:adapter"), Group("head", "head"))
    return Strategy("lora", groups, (Phase("train", {"adapters": lr, "head": lr}),))
