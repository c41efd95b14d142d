"""The strategies that are known by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tlx.errors import RecipeError, closest
from tlx.models.zoo import Architecture
from tlx.strategy.plan import Group, Phase, Strategy


@dataclass(frozen=True, slots=True)
class Options:
    """The recipe's fields that shape a built-in strategy; None where the strategy does not use one."""

    lr: float
    backbone_lr: float | None = None
    stages: tuple[str, ...] | None = None
    layer_decay: float | None = None
    phase_epochs: int | None = None


OPTIONS = tuple(Options.__dataclass_fields__)


_BACKBONE_AND_HEAD = (Group("backbone", "backbone"), Group("head", "head"))


def _whole(name: str, o: Options, arch: Architecture) -> Strategy:
    return Strategy(name, (Group("all", "all"),), (Phase("train", {"all": o.lr}),))


def _diff_lr(name: str, o: Options, arch: Architecture) -> Strategy:
    assert o.backbone_lr is not None
    return Strategy(name, _BACKBONE_AND_HEAD, (Phase("train", {"backbone": o.backbone_lr, "head": o.lr}),))


def _feature_extract(name: str, o: Options, arch: Architecture) -> Strategy:
    return Strategy(name, _BACKBONE_AND_HEAD, (Phase("train", {"head": o.lr}),))


def _partial(name: str, o: Options, arch: Architecture) -> Strategy:
    assert o.backbone_lr is not None
    known = [stage for stage, _ in arch.stages]
    chosen = o.stages or (known[-1],)
    for stage in chosen:
        if stage not in known:
            raise RecipeError(f"stages: {arch.name} has no stage {stage!r}.{closest(stage, known)}")
    early = tuple(Group(stage, f"stage:{stage}") for stage in known if stage not in chosen)
    late = tuple(Group(stage, f"stage:{stage}") for stage in known if stage in chosen)
    if early:
        early = (Group("early", " | ".join(g.match for g in early)),)
    rates = {**{g.name: o.backbone_lr for g in late}, "head": o.lr}
    return Strategy(name, (*early, *late, Group("head", "head")), (Phase("train", rates),))


def _head_then_full(name: str, o: Options, arch: Architecture) -> Strategy:
    assert o.backbone_lr is not None and o.phase_epochs is not None
    full = Phase("full", {"backbone": o.backbone_lr, "head": o.backbone_lr}, o.phase_epochs)
    return Strategy(name, _BACKBONE_AND_HEAD, (Phase("head", {"head": o.lr}), full))


def _gradual(name: str, o: Options, arch: Architecture) -> Strategy:
    assert o.backbone_lr is not None and o.phase_epochs is not None
    rates, phases = {"head": o.lr}, [Phase("head", {"head": o.lr})]
    for number, (stage, _) in enumerate(reversed(arch.stages), 1):
        rates = {stage: o.backbone_lr, **rates}
        phases.append(Phase(stage, rates, number * o.phase_epochs))
    return Strategy(name, _stages(arch), tuple(phases))


def _layer_decay(name: str, o: Options, arch: Architecture) -> Strategy:
    assert o.layer_decay is not None
    depth = len(arch.stages)
    rates = {stage: o.lr * o.layer_decay ** (depth - i) for i, (stage, _) in enumerate(arch.stages)}
    return Strategy(name, _stages(arch), (Phase("train", {**rates, "head": o.lr}),))


def _stages(arch: Architecture) -> tuple[Group, ...]:
    return (*(Group(stage, f"stage:{stage}") for stage, _ in arch.stages), Group("head", "head"))


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A strategy known by name: what it is, and the customary values of the recipe's fields that it uses."""

    summary: str
    build: Callable[[str, Options, Architecture], Strategy]
    customary: Mapping[str, Any]
    weights: str = "imagenet"


STRATEGIES: dict[str, BuiltIn] = {
    "scratch": BuiltIn("random weights, everything trains", _whole, {"lr": 1e-3}, weights="none"),
    "full": BuiltIn("pretrained, everything trains at one rate (the tutorial's method 1)", _whole, {"lr": 1e-3}),
    "diff_lr": BuiltIn(
        "pretrained, the backbone trains slower than the head (method 2)",
        _diff_lr,
        {"lr": 1e-3, "backbone_lr": 1e-4},
    ),
    "feature_extract": BuiltIn(
        "pretrained, the backbone is frozen, only the head trains (method 3)", _feature_extract, {"lr": 1e-3}
    ),
    "partial": BuiltIn(
        "pretrained, the early stages are frozen; `stages` (default: the last) and the head train",
        _partial,
        {"lr": 1e-3, "backbone_lr": 1e-4, "stages": None},
    ),
    "head_then_full": BuiltIn(
        "pretrained, the head alone for `phase_epochs`, then everything at backbone_lr",
        _head_then_full,
        {"lr": 1e-3, "backbone_lr": 1e-4, "phase_epochs": 1},
    ),
    # Howard & Ruder 2018, section 3.3.
    "gradual": BuiltIn(
        "pretrained, the head first, then every `phase_epochs` one more stage from the last to the first",
        _gradual,
        {"lr": 1e-3, "backbone_lr": 1e-4, "phase_epochs": 1},
    ),
    # Clark et al. 2020, section 3.4 and Bao et al. 2022, appendix; there by transformer layer, here by stage.
    "layer_decay": BuiltIn(
        "pretrained, everything trains; each stage's rate is layer_decay times that of the next",
        _layer_decay,
        {"lr": 1e-3, "layer_decay": 0.65},
    ),
}


def built_in(name: str) -> BuiltIn:
    """Look up a built-in strategy by its name."""
    try:
        return STRATEGIES[name]
    except KeyError:
        raise RecipeError(f"Unknown strategy {name!r}.{closest(name, STRATEGIES)}") from None


def make(name: str, options: Options, arch: Architecture, epochs: int) -> Strategy:
    """Make a built-in strategy for an architecture; phases that would begin after the run's end are left out.

    That leaves stages frozen where `gradual` has too few epochs, as its table shows.
    """
    made = built_in(name).build(name, options, arch)
    if name != "gradual":
        return made
    return replace(made, phases=tuple(phase for phase in made.phases if phase.start < epochs))
