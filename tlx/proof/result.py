"""What a comparison of two stacks finds, as plain values that the screen, JSON and the page are made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

BOUNDARY = "boundary: "  # begins the note of a step at one
ONE_SIDED = "run as a module on one side only"


class Verdict(IntEnum):
    """Also the exit code of `tlx parity`."""

    EQUAL = 0
    DIFFERENT = 1
    NOT_COMPARABLE = 2
    UNDERPOWERED = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One measured place of a stage: a module, parameter, batch or step, in order of execution."""

    name: str
    error: float  # in the stage's own measure; infinity where it cannot be compared, such as a one-sided NaN
    passed: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the proof: its worst figure beside its limit."""

    id: str  # "P0" .. "P10"
    title: str
    measure: str  # what `figure` is, such as "relative L2"
    figure: float | None  # None: the stage was not run
    limit: float | None  # None: equality of bits, or advisory
    passed: bool | None  # None: not run, or advisory
    summary: str = ""  # one line: what was compared, or why it was not run
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """The whole comparison. `first` says where the first difference lies and what it means; empty: there is none."""

    reference: str  # such as "torch 2.14.1 (cpu)"
    candidate: str
    subject: str  # what was compared, such as "resnet18, strategy full, 64 px, digits"
    verdict: Verdict
    stages: tuple[Stage, ...]
    first: str = ""
    declared: tuple[str, ...] = ()  # known differences of the stacks and what tlx does about each
    seconds: float = 0.0

    def __str__(self) -> str:
        """The comparison as one screen."""
        from tlx.proof.report import screen

        return screen(self)

    def to_html(self) -> str:
        """The comparison as one page that needs nothing else, with the error of each module and step."""
        from tlx.proof.report import to_html

        return to_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an infinite error becomes the text "inf"."""
        values: dict[str, Any] = _finite({**asdict(self), "verdict": self.verdict.name.lower().replace("_", " ")})
        return values


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return str(value)
    return value
