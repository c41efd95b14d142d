"""What trains, at which rate, and how normalisation behaves: pure functions of the step.

A `Strategy` is a value: named groups of parameters, and phases that give some of them a learning rate. A group
without a rate is frozen. Bound to a model and a schedule it becomes a `Plan`, which answers `state_at(step)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tlx.backend import Hyper, ParamSpec
from tlx.errors import RecipeError, closest
from tlx.groups import partition
from tlx.schedule import Schedule, float32_exact
from tlx.zoo import Architecture

FrozenNorm = Literal["keep", "adapt"]
DecayOn = Literal["all", "weights"]


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

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Strategy:
        """Build a strategy from plain values, as TOML gives them; RecipeError names what is wrong."""
        where = f"Strategy {values.get('name', '')!r}"
        _only(values, ("name", "groups", "phases"), where)
        try:
            groups = tuple(_made(Group, g, f"{where}, groups") for g in values["groups"])
            phases = tuple(_made(Phase, p, f"{where}, phases") for p in values["phases"])
            return Strategy(str(values["name"]), groups, phases)
        except KeyError as error:
            raise RecipeError(f"{where}: {error.args[0]!r} is missing; a strategy has name, groups, phases") from None
        except TypeError as error:
            raise RecipeError(f"{where}: {error}; groups and phases are lists of tables") from None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that TOML can hold; a weight decay of None is left out."""
        groups = [{k: v for k, v in asdict(group).items() if v is not None} for group in self.groups]
        phases = [{"name": p.name, "start": p.start, "lr": dict(p.lr)} for p in self.phases]
        return {"name": self.name, "groups": groups, "phases": phases}

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        starts = [phase.start for phase in self.phases]
        if len(set(names)) != len(names):
            raise RecipeError(f"Strategy {self.name!r}: group names repeat: {', '.join(names)}")
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise RecipeError(f"Strategy {self.name!r}: phases must start at epoch 0 and rise; they start at {starts}")
        for group in self.groups:
            _rate(group.weight_decay, f"Strategy {self.name!r}, group {group.name!r}: weight_decay")
        for phase in self.phases:
            where = f"Strategy {self.name!r}, phase {phase.name!r}"
            if not phase.lr:
                raise RecipeError(f"{where}: no group trains")
            for name, lr in phase.lr.items():
                if name not in names:
                    raise RecipeError(f"{where}: no group {name!r}.{closest(name, names)}")
                _rate(lr, f"{where}: lr of {name!r}")

    def bind(
        self,
        specs: Sequence[ParamSpec],
        arch: Architecture,
        schedule: Schedule,
        weight_decay: float,
        frozen_norm: FrozenNorm = "keep",
        decay_on: DecayOn = "all",
    ) -> Plan:
        """Resolve the groups against a model's parameters.

        With `decay_on` "weights", norms and biases form groups of their own without weight decay.
        """
        late = [phase.name for phase in self.phases if phase.start >= schedule.epochs]
        if late:
            raise RecipeError(f"Strategy {self.name!r}: phase {late[0]!r} starts after the last epoch; raise epochs")
        resolved = dict(partition([(g.name, g.match) for g in self.groups], specs, arch))
        weights = {spec.name for spec in specs if spec.role == "weight" or decay_on == "all"}
        groups = []
        for g in self.groups:
            decay = weight_decay if g.weight_decay is None else g.weight_decay
            decayed = tuple(name for name in resolved[g.name] if name in weights)
            spared = tuple(name for name in resolved[g.name] if name not in weights)
            groups += [BoundGroup(g.name, names, d) for names, d in ((decayed, decay), (spared, 0.0)) if names]
        return Plan(self, tuple(groups), tuple(specs), schedule, frozen_norm)


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

    def state_at(self, step: int, losses: Sequence[float] = ()) -> StepState:
        """Return what trains at a step, and every group's scalars, float32-exact.

        `losses` are the validation losses of the epochs before, which the schedule plateau follows.
        """
        phase = self.phase_at(step)
        return StepState(phase.name, self._trainable(phase), self._batch_norm(phase), self.hyper_at(step, losses))

    def hyper_at(self, step: int, losses: Sequence[float] = ()) -> tuple[Hyper, ...]:
        """Return every group's scalars alone, which is what most steps change."""
        phase = self.phase_at(step)
        factor = self.schedule.factor(step, losses)
        return tuple(
            Hyper(float32_exact(phase.lr.get(g.name, 0.0) * factor), float32_exact(g.weight_decay)) for g in self.groups
        )

    def phase_end(self, step: int) -> int:
        """Return the epoch before which the phase of a step ends."""
        starts = [phase.start for phase in self.strategy.phases if phase.start > self.phase_at(step).start]
        return min([*starts, self.schedule.epochs])

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


def _only(values: Any, known: Sequence[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise RecipeError(f"{where}: unknown entry {key!r}.{closest(str(key), known)}")


def _made(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    """Build a Group or a Phase from a table."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where}: {values!r} is not a table")
    _only(values, list(kind.__dataclass_fields__), where)
    try:
        return kind(**values)
    except TypeError as error:
        raise RecipeError(f"{where}: {str(error).partition('__init__() ')[2] or error}") from None


def _rate(value: Any, what: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise RecipeError(f"{what} is {value!r}; expected a finite number, at least 0")
