"""What a comparison finds, as facts. The sentences that people read are made from them in `tlx.proof.words`, last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, Literal, TypeAlias

Side = Literal["reference", "candidate"]
SIDES: tuple[Side, Side] = ("reference", "candidate")

# What a row is about.
Inputs = Literal["field", "weight", "listing", "batch"]  # P0, P1, P1, P2
Passes = Literal["output", "order", "logits", "loss", "correct", "buffer", "gradient"]  # P3 and P4
Training = Literal["update", "step", "end", "count", "predictions", "batches"]  # P5; P6 and P9; P6; P7
Margins = Literal["envelope", "ratio", "pair", "mean", "margin if equal", "margin"]  # P8; P10
Kind: TypeAlias = Inputs | Passes | Training | Margins
# What explains a difference of weights (the first) or of a batch (the others).
Cause = Literal[
    "transposed", "reordered", "dropped", "another batch", "another stream", "label", "label count", "content"
]
# What of a step is farthest apart.
Quantity = Literal["loss", "correct", "hyper", "gradients", "values", "slots", "average"]


class Verdict(IntEnum):
    """The outcome of a comparison; also the exit code of `tlx parity`."""

    EQUAL = 0
    DIFFERENT = 1
    NOT_COMPARABLE = 2
    UNDERPOWERED = 3


@dataclass(frozen=True, slots=True)
class Distances:
    """How far apart float32 steps are, as relative L2 distances over several batches (P8).

    `nudged` and `rounded` are the reference's distances from itself: what rounding alone does to it.
    """

    d32: float  # reference to candidate in float32: the median over the batches
    d64: float  # reference to candidate in float64: the largest
    nudged: float  # the reference in float32, to itself from weights that are one float32 unit off: the largest
    rounded: float  # the reference in float32, to itself in float64: the largest
    outside: int  # batches whose own d32 lies outside the envelope
    batches: int
    envelope: float  # how many times the reference's own scatter is allowed

    @property
    def scatter(self) -> float:
        """The reference's own scatter: the larger of its two distances from itself."""
        return max(self.nudged, self.rounded)

    @property
    def over_scatter(self) -> float:
        """The float32 distance as a multiple of the reference's own scatter; without any scatter, 0 or 1."""
        return self.d32 / self.scatter if self.scatter else float(self.d32 > 0)

    @property
    def inside(self) -> bool:
        """Whether the float32 distance lies inside the envelope."""
        return self.d32 <= self.envelope * self.scatter

    @property
    def ratio(self) -> float:
        """G: the float32 distance over that in float64, which is counted as at least one unit of rounding (2**-53)."""
        # Equal bits in float32 leave no ratio to take.
        return self.d32 / max(self.d64, 2.0**-53) if self.d32 else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured place of a stage: a module, parameter, batch or step, in order of execution."""

    kind: Kind
    path: str = ""  # of a module or parameter; the key of a batch; a recipe field. At a step: of what is farthest apart
    error: float  # in the stage's own measure; infinity where it cannot be compared, such as a NaN on one side only
    passed: bool
    number: int | None = None  # of the update or pair, from 1; of the step or batch, from 0
    side: Side | None = None  # whose figure it is, where a side is compared with itself or with NumPy; who stopped
    missing: Side | None = None  # the side that lacks it
    slot: str = ""  # of the optimizer, where the array is one of its state
    quantity: Quantity | None = None
    values: tuple[Any, Any] | None = None  # what the reference and the candidate have
    events: tuple[str, ...] = ()  # what happens at this step: a boundary
    stopped: str = ""  # the error that ended a side's training
    cause: Cause | None = None
    samples: tuple[int, ...] = ()  # the samples concerned, by their index
    margins: tuple[float, ...] = ()  # for each of them, by how much the reference's first class leads its second
    twin: str = ""  # the reference's batch that holds the samples which this batch of the candidate holds
    differing: tuple[str, ...] = ()  # the facts of a batch that differ
    flips: int = 0  # elements that a ReLU would let through on one side only
    band: float | None = None  # how far a nudge of the weights has moved the reference's own loss so far
    distances: Distances | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the facts that this row has as plain values."""
        return _stated(self)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the proof: its worst figure beside its limit, and the rows it comes from."""

    id: str  # "P0" .. "P10"
    figure: float | None  # None: the stage was not run
    limit: float | None  # None: equality of bits, or advisory
    passed: bool | None  # None: not run, advisory, or too little was measured to judge
    rows: tuple[Row, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)  # what else was counted, by name
    enough: bool = True  # False: too little was measured to show equality or a difference


@dataclass(frozen=True, slots=True)
class Alone:
    """A module that differs by itself, fed the reference's own input and output gradient."""

    path: str
    quantity: str  # "output", "input gradient", or the name of a parameter or buffer
    error: float
    classes: tuple[str, str]  # the module's class in the reference and in the candidate; "?" where it has none
    others: int  # other modules that differ by themselves
    transposed: bool  # the candidate's is equal once its square weight is transposed


@dataclass(frozen=True, slots=True)
class Between:
    """Every module is equal by itself, so the difference lies between two of them, or in how a result is used."""

    path: str  # the module whose output or gradient differs
    previous: str  # the last module with parameters before it; empty: there is none, so the model's input differs
    input_equal: bool  # what enters the module is equal, so the result is used differently afterwards
    reference: tuple[tuple[str, str], ...]  # path and class of the modules without parameters that lie between
    candidate: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two captures first differ: the stage, its first row that fails, and what replaying single modules says."""

    stage: Stage
    row: Row | None  # None: the stage has no rows at all
    replay: Alone | Between | None = None


def _stated(facts: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults; those without a default always."""
    values = {f.name: (getattr(facts, f.name), f.default) for f in fields(facts)}
    return {
        name: _stated(value) if isinstance(value, Distances) else value
        for name, (value, default) in values.items()
        if value != default
    }
