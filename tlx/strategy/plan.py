"""What trains, at which rate, and how normalisation behaves: pure functions of the step.

A `Strategy` is a value: named groups of parameters, and phases that give some of them a learning rate. A group
without a rate is frozen. Bound to a model and a schedule it becomes a `Plan`, which answers `state_at(step)`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tlx.backend import Hyper, ParamSpec, float32_exact
from tlx.backend.protocol import FLOAT32_MAX
from tlx.errors import RecipeError, closest, shown
from tlx.models.zoo import Architecture
from tlx.strategy.filters import partition
from tlx.strategy.schedule import Schedule

FrozenNorm = Literal["keep", "adapt"]
DecayOn = Literal["all", "weights"]
# What a strategy does in place of steps: a logistic regression becomes the head, or the nearest neighbours vote.
Fits = Literal["probe", "knn"]


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share their hyper-parameters: a filter (see `tlx.strategy.filters`) under a name."""

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
    """Groups and phases, independent of any model.

    With `fits` no step is taken: the head, which the only phase names, is found from the features that enter it.
    """

    name: str
    groups: tuple[Group, ...]
    phases: tuple[Phase, ...]
    fits: Fits | None = None

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Strategy:
        """Build a strategy from plain values, as TOML gives them; RecipeError names what is wrong."""
        where = f"Strategy {shown(values.get('name', ''))}"
        _only(values, ("name", "groups", "phases"), where)
        for name in ("name", "groups", "phases"):
            if name not in values:
                raise RecipeError(f"{where}: {name!r} is missing; a strategy has name, groups, phases")
            if name != "name" and not isinstance(values[name], (list, tuple)):
                raise RecipeError(f"{where}: {name} is {shown(values[name])}; groups and phases are lists of tables")
        groups = tuple(_made(Group, g, f"{where}, groups") for g in values["groups"])
        phases = tuple(_made(Phase, p, f"{where}, phases") for p in values["phases"])
        return Strategy(values["name"], groups, phases)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that TOML can hold; a weight decay of None is left out."""
        groups = [{k: v for k, v in asdict(group).items() if v is not None} for group in self.groups]
        phases = [{"name": p.name, "start": p.start, "lr": dict(p.lr)} for p in self.phases]
        return {"name": self.name, "groups": groups, "phases": phases}

    def __post_init__(self) -> None:
        _text(self.name, "Strategy: the name")
        where = f"Strategy {shown(self.name)}"
        for kind, parts in ((Group, self.groups), (Phase, self.phases)):
            if not isinstance(parts, (list, tuple)) or not all(isinstance(part, kind) for part in parts):
                what = f"{kind.__name__.lower()}s is {shown(parts)}"
                raise RecipeError(f"{where}: {what}; expected a tuple of tlx.{kind.__name__}")
            for part in parts:
                _text(part.name, f"{where}: the name of a {kind.__name__.lower()}")
        for group in self.groups:
            _text(group.match, f"{where}, group {shown(group.name)}: match")
            _rate(group.weight_decay, f"{where}, group {shown(group.name)}: weight_decay", or_none=True)
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            raise RecipeError(f"{where}: group names repeat: {', '.join(names)}")
        for phase in self.phases:
            _check_phase(phase, names, f"{where}, phase {shown(phase.name)}")
        starts = [phase.start for phase in self.phases]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise RecipeError(f"{where}: phases must start at epoch 0 and rise; they start at {shown(starts)}")

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
        weights = {spec.name for spec in specs if spec.role in ("weight", "adapter") or decay_on == "all"}
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


State = Literal["trained", "frozen", "fitted", "unused"]
STATES: dict[Fits | None, State] = {None: "trained", "probe": "fitted", "knn": "unused"}  # of what a phase names


@dataclass(frozen=True, slots=True)
class Row:
    """One group in one phase, for the table."""

    phase: str
    epoch: int
    group: str
    tensors: int
    parameters: int
    lr: float | None  # None: no step changes it
    weight_decay: float
    norm: str
    state: State


@dataclass(frozen=True, slots=True)
class Plan:
    """A strategy bound to a model and a schedule."""

    strategy: Strategy
    groups: tuple[BoundGroup, ...]
    specs: tuple[ParamSpec, ...]
    schedule: Schedule
    frozen_norm: FrozenNorm

    def phase_at(self, step: int) -> Phase:
        """Return the phase that a step belongs to."""
        epoch = step // self.schedule.steps_per_epoch
        return next(phase for phase in reversed(self.strategy.phases) if phase.start <= epoch)

    def state_at(self, step: int, drops: int = 0) -> StepState:
        """Return what trains at a step, and every group's scalars, float32-exact.

        `drops` is how often the schedule plateau has dropped before.
        """
        phase = self.phase_at(step)
        return StepState(phase.name, self._trainable(phase), self._batch_norm(phase), self.hyper_at(step, drops))

    def hyper_at(self, step: int, drops: int = 0) -> tuple[Hyper, ...]:
        """Return every group's scalars alone, which is what most steps change."""
        phase = self.phase_at(step)
        factor = self.schedule.factor_after(drops, step)
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
        with_parameters = _around(s.module for s in self.specs if s.role != "statistic")
        trained = _around(s.module for s in self.specs if s.name in trainable)

        def trains(module: str) -> bool:
            # One without parameters, such as BatchNorm without affine, acts as the module around it.
            return (module if module in with_parameters else module.rpartition(".")[0]) in trained

        return frozenset(filter(trains, with_statistics))

    def table(self) -> list[Row]:
        """Return each group in each phase, as printed before training."""
        sizes = {s.name: (s.module, math.prod(s.shape)) for s in self.specs if s.role != "statistic"}
        # Whole numbers are no statistics to show: they count batches, or are a constant, as in Swin.
        with_statistics = {s.module for s in self.specs if s.role == "statistic" and "float" in s.dtype}
        rows = []
        for phase in self.strategy.phases:
            batch = self._batch_norm(phase)
            for g in self.groups:
                norms = {sizes[p][0] for p in g.params} & with_statistics
                norm = "-" if not norms else "batch" if norms <= batch else "running" if not norms & batch else "mixed"
                count = sum(sizes[p][1] for p in g.params)
                lr = phase.lr.get(g.name) if self.strategy.fits is None else None
                state = STATES[self.strategy.fits] if g.name in phase.lr else "frozen"
                row = Row(phase.name, phase.start, g.name, len(g.params), count, lr, g.weight_decay, norm, state)
                rows.append(row)
        return rows

    def trainable_parameters(self) -> int:
        """Count the parameters that train at some time, or are fitted."""
        if self.strategy.fits == "knn":
            return 0
        names = frozenset().union(*(self._trainable(phase) for phase in self.strategy.phases))
        return sum(math.prod(s.shape) for s in self.specs if s.name in names)

    def total_parameters(self) -> int:
        """Count the model's parameters."""
        return sum(math.prod(s.shape) for s in self.specs if s.role != "statistic")


def _around(modules: Iterable[str]) -> set[str]:
    """Return the paths of these modules and of all around them, the model's own "" too."""
    paths: set[str] = set()
    for path in modules:
        while path not in paths:
            paths.add(path)
            path = path.rpartition(".")[0]
    return paths


def _check_phase(phase: Phase, groups: Sequence[str], where: str) -> None:
    if isinstance(phase.start, bool) or not isinstance(phase.start, int):
        raise RecipeError(f"{where}: start is {shown(phase.start)}; expected an epoch, a whole number from 0 on")
    if not isinstance(phase.lr, Mapping):
        raise RecipeError(f"{where}: lr is {shown(phase.lr)}; expected a table of groups and their rates")
    if not phase.lr:
        raise RecipeError(f"{where}: no group trains")
    for name, lr in phase.lr.items():
        if name not in groups:
            raise RecipeError(f"{where}: no group {shown(name)}.{closest(str(name), groups)}")
        _rate(lr, f"{where}: lr of {name!r}")


def _only(values: Any, known: Sequence[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise RecipeError(f"{where}: unknown entry {shown(key)}.{closest(str(key), known)}")


def _made(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    """Build a Group or a Phase from a table."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where}: {shown(values)} is not a table")
    _only(values, list(kind.__dataclass_fields__), where)
    try:
        return kind(**values)
    except TypeError as error:
        raise RecipeError(f"{where}: {str(error).partition('__init__() ')[2] or error}") from None


def _text(value: Any, what: str) -> None:
    if not isinstance(value, str) or not value:
        raise RecipeError(f"{what} is {shown(value)}; expected a text")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise RecipeError(f"{what} is {shown(value)}, whose bytes are not UTF-8; write it in UTF-8")


def _rate(value: Any, what: str, *, or_none: bool = False) -> None:
    if value is None and or_none:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= FLOAT32_MAX:
        raise RecipeError(f"{what} is {shown(value)}; expected a finite number of float32, at least 0")
