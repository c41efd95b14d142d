"""What trains, at which rate, and how normalisation behaves: pure functions of the step.

A `Strategy` is a value: named groups of parameters, and phases that give some of them a learning rate. A group
without a rate is frozen. Bound to a model and a schedule it becomes a `Plan`, which answers `state_at(step)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tlx.backend import Hyper, ParamSpec
from tlx.errors import RecipeError, closest
from tlx.groups import partition
from tlx.schedule import Schedule, float32_exact
from tlx.zoo import Architecture

FrozenNorm = Literal["keep", "adapt"]


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share their hyper-parameters: a filter (see `tlx.groups`) under a name."""

    name: str
    match: str
    weight_decay: float | None = None  # None: the recipe's


@dataclass(frozen=True, slots=True)
class Phase:
    """From epoch `start` on, each group named in `lr` trains at its base rate; the others are frozen."""

    name: str
    lr: Mapping[str, float]
    start: int = 0


@dataclass(frozen=True, slots=True)
class Strategy:
    """Groups and phases, independent of any model."""

    name: str
    groups: tuple[Group, ...]
    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        starts = [phase.start for phase in self.phases]
        if len(set(names)) != len(names):
            raise RecipeError(f"Strategy {self.name!r}: group names repeat: {', '.join(names)}")
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise RecipeError(f"Strategy {self.name!r}: phases must start at epoch 0 and rise; they start at {starts}")
        for phase in self.phases:
            if not phase.lr:
                raise RecipeError(f"Strategy {self.name!r}, phase {phase.name!r}: no group trains")
            for group in phase.lr:
                if group not in names:
                    near = closest(group, names)
                    raise RecipeError(f"Strategy {self.name!r}, phase {phase.name!r}: no group {group!r}.{near}")

    def bind(
        self,
        specs: Sequence[ParamSpec],
        arch: Architecture,
        schedule: Schedule,
        weight_decay: float,
        frozen_norm: FrozenNorm = "keep",
    ) -> Plan:
        """Resolve the groups against a model's parameters."""
        late = [phase.name for phase in self.phases if phase.start >= schedule.epochs]
        if late:
            raise RecipeError(f"Strategy {self.name!r}: phase {late[0]!r} starts after the last epoch; raise epochs")
        resolved = dict(partition([(g.name, g.match) for g in self.groups], specs, arch))
        groups = tuple(
            BoundGroup(g.name, resolved[g.name], weight_decay if g.weight_decay is None else g.weight_decay)
            for g in self.groups
        )
        return Plan(self, groups, tuple(specs), schedule, frozen_norm)


@dataclass(frozen=True, slots=True)
class BoundGroup:
    """A group with the parameters it holds in one model."""

    name: str
    params: tuple[str, ...]
    weight_decay: float


@dataclass(frozen=True, slots=True)
class StepState:
    """All that a strategy decides at one step."""

    phase: str
    trainable: frozenset[str]
    batch_norm: frozenset[str]  # module paths that normalise by the batch and update their running statistics
    hyper: tuple[Hyper, ...]  # one for each group


@dataclass(frozen=True, slots=True)
class Row:
    """One group in one phase, for the table."""

    phase: str
    epoch: int
    group: str
    tensors: int
    parameters: int
    lr: float | None  # None: frozen
    weight_decay: float
    norm: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A strategy bound to a model and a schedule."""

    strategy: Strategy
    groups: tuple[BoundGroup, ...]
    specs: tuple[ParamSpec, ...]
    schedule: Schedule
    frozen_norm: FrozenNorm

    def phase_at(self, step: int) -> Phase:
        epoch = step // self.schedule.steps_per_epoch
        return next(phase for phase in reversed(self.strategy.phases) if phase.start <= epoch)

    def state_at(self, step: int) -> StepState:
        """Return what trains at a step, and every group's scalars, float32-exact."""
        phase = self.phase_at(step)
        factor = self.schedule.factor(step)
        hyper = tuple(
            Hyper(float32_exact(phase.lr.get(g.name, 0.0) * factor), float32_exact(g.weight_decay)) for g in self.groups
        )
        return StepState(phase.name, self._trainable(phase), self._batch_norm(phase), hyper)

    def frozen_at(self, step: int) -> frozenset[str]:
        """Return the parameters and statistics that may not change at a step."""
        state = self.state_at(step)
        return frozenset(
            s.name
            for s in self.specs
            if s.name not in state.trainable and not (s.role == "statistic" and s.module in state.batch_norm)
        )

    def _trainable(self, phase: Phase) -> frozenset[str]:
        return frozenset(name for g in self.groups if g.name in phase.lr for name in g.params)

    def _batch_norm(self, phase: Phase) -> frozenset[str]:
        with_statistics = {s.module for s in self.specs if s.role == "statistic"}
        if self.frozen_norm == "adapt":
            return frozenset(with_statistics)
        trainable = self._trainable(phase)
        return frozenset(s.module for s in self.specs if s.name in trainable and s.module in with_statistics)

    def table(self) -> list[Row]:
        """Return each group in each phase, as printed before training."""
        sizes = {s.name: (s.module, math.prod(s.shape)) for s in self.specs if s.role != "statistic"}
        with_statistics = {s.module for s in self.specs if s.role == "statistic"}
        rows = []
        for phase in self.strategy.phases:
            batch = self._batch_norm(phase)
            for g in self.groups:
                norms = {sizes[p][0] for p in g.params} & with_statistics
                norm = "-" if not norms else "batch" if norms <= batch else "running" if not norms & batch else "mixed"
                count = sum(sizes[p][1] for p in g.params)
                lr = phase.lr.get(g.name)
                rows.append(Row(phase.name, phase.start, g.name, len(g.params), count, lr, g.weight_decay, norm))
        return rows

    def trainable_parameters(self) -> int:
        """Count the parameters that train at some time."""
        names = frozenset().union(*(self._trainable(phase) for phase in self.strategy.phases))
        return sum(math.prod(s.shape) for s in self.specs if s.name in names)

    def total_parameters(self) -> int:
        return sum(math.prod(s.shape) for s in self.specs if s.role != "statistic")


def _one_group(name: str) -> Callable[[float, float | None], Strategy]:
    return lambda lr, backbone_lr: Strategy(name, (Group("all", "all"),), (Phase("train", {"all": lr}),))


def _backbone_and_head(name: str) -> Callable[[float, float | None], Strategy]:
    groups = (Group("backbone", "backbone"), Group("head", "head"))

    def make(lr: float, backbone_lr: float | None) -> Strategy:
        rates = {"head": lr} if backbone_lr is None else {"backbone": backbone_lr, "head": lr}
        return Strategy(name, groups, (Phase("train", rates),))

    return make


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A strategy known by name: what it is, and the recipe values that are customary with it."""

    summary: str
    make: Callable[[float, float | None], Strategy]  # from lr and backbone_lr
    weights: str = "imagenet"
    lr: float = 1e-3
    backbone_lr: float | None = None  # None: the strategy has no separate rate for the backbone


STRATEGIES: dict[str, BuiltIn] = {
    "scratch": BuiltIn("random weights, everything trains", _one_group("scratch"), weights="none"),
    "full": BuiltIn("pretrained, everything trains at one rate (the tutorial's method 1)", _one_group("full")),
    "diff_lr": BuiltIn(
        "pretrained, the backbone trains slower than the head (method 2)",
        _backbone_and_head("diff_lr"),
        backbone_lr=1e-4,
    ),
    "feature_extract": BuiltIn(
        "pretrained, the backbone is frozen, only the head trains (method 3)", _backbone_and_head("feature_extract")
    ),
}


def built_in(name: str) -> BuiltIn:
    """Look up a built-in strategy by its name."""
    try:
        return STRATEGIES[name]
    except KeyError:
        raise RecipeError(f"Unknown strategy {name!r}.{closest(name, STRATEGIES)}") from None
