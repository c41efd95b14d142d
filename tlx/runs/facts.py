"""JSON that may be damaged or hostile, each value of it taken as what it has to be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tlx.errors import TlxError

COUNT = 2**53  # above any count of steps, images or epochs, and exact as a float
_LARGEST = 1e300  # of a number: a few of them have a sum
_SHOWN = 60  # characters of a wrong value that an error shows


@dataclass(frozen=True, slots=True)
class Facts:
    """A JSON object in the file `where`, or within it, where `within` names it, such as "pixels."."""

    where: str
    values: Mapping[str, Any]
    fix: str
    within: str = ""

    def wrong(self, name: str, expected: str) -> TlxError:
        """Return the error for a value that is missing, or that is not what it has to be."""
        if name not in self.values:
            return TlxError(f"{self.where} is damaged: it has no {self.within + name!r}", fix=self.fix)
        shown = shortened(self.values[name])
        return TlxError(f"{self.where} is damaged: {self.within}{name} is {shown}; expected {expected}", fix=self.fix)

    def whole(self, name: str, low: int = 0, high: int = COUNT) -> int:
        """Return a whole number from `low` to `high`."""
        value = self.values.get(name)
        if type(value) is int and low <= value <= high:
            return value
        raise self.wrong(name, f"a whole number from {low} to {high}")

    def real(self, name: str, low: float = -math.inf, high: float = math.inf) -> float:
        """Return a finite number from `low` to `high`."""
        value: Any = self.values.get(name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and low <= value <= high and abs(value) <= _LARGEST:  # so it is no NaN either
            return float(value)
        raise self.wrong(name, "a finite number" + (f" from {low:g} to {high:g}" if math.isfinite(low) else ""))

    def flag(self, name: str) -> bool:
        """Return a truth value."""
        if type(value := self.values.get(name)) is bool:
            return value
        raise self.wrong(name, "true or false")

    def text(self, name: str) -> str:
        """Return a text."""
        if isinstance(value := self.values.get(name), str):
            return value
        raise self.wrong(name, "a text")

    def texts(self, name: str) -> list[str]:
        """Return a list of texts."""
        value = self.values.get(name)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
        raise self.wrong(name, "a list of texts")

    def reals(self, name: str, low: float, high: float, count: int | None = None) -> tuple[float, ...]:
        """Return a list of finite numbers from `low` to `high`, of which there are `count`."""
        value = self.values.get(name)
        if isinstance(value, list) and count in (None, len(value)):
            entries = replace(self, values={f"{name}[{i}]": item for i, item in enumerate(value)})
            return tuple(entries.real(entry, low, high) for entry in entries.values)
        raise self.wrong(name, "a list of numbers" if count is None else f"a list of {count} numbers")

    def inner(self, name: str) -> Facts:
        """Return an object within this one."""
        if isinstance(value := self.values.get(name), dict):
            return replace(self, values=value, within=f"{self.within}{name}.")
        raise self.wrong(name, "an object")

    def inners(self, name: str) -> list[Facts]:
        """Return a list of objects."""
        value = self.values.get(name)
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            return [replace(self, values=v, within=f"{self.within}{name}[{i}].") for i, v in enumerate(value)]
        raise self.wrong(name, "a list of objects")

    def has(self, name: str) -> bool:
        """Whether there is such a value, and it is not null."""
        return self.values.get(name) is not None


def shortened(value: Any) -> str:
    """Write a value as Python would, but no more of it than an error can show."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of more than 60 digits"  # more than 4,300 of them Python does not write
    shown = repr(value[:_SHOWN] if isinstance(value, str) else value)
    return f"{shown}..." if isinstance(value, str) and len(value) > _SHOWN else shown


def parse_object(text: str | bytes, where: str, fix: str = "") -> dict[str, Any]:
    """Read a JSON object; TlxError where it is something else, or nested deeper than Python reads."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise TlxError(f"{where} cannot be read: {reason}", fix=fix) from error
    if not isinstance(value, dict):
        raise TlxError(f"{where} is not a JSON object", fix=fix)
    return value
