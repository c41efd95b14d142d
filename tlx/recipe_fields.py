"""How a recipe's fields are declared and checked, and the values that they take."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from tlx.backend.protocol import FLOAT32_MAX
from tlx.data.sources.registry import describe_sources
from tlx.errors import RecipeError, closest, shown
from tlx.loggers.registry import check_names
from tlx.strategy.built_in import named
from tlx.strategy.plan import Strategy

# What a field affects: the result; how fast it comes; or where, and in which arithmetic, it is computed and kept.
Affects = Literal["result", "speed", "place"]
LAYER = 2**30  # numbers of one layer of the head: 4 GB in float32
LARGEST = 2**63 - 1  # whole number that every reader of TOML takes
FIELD_GROUPS = ("Strategy", "Data", "Model", "Pixels", "Training", "Augmentation and labels", "Machine and files")

PrecisionName = Literal["auto", "float32", "bfloat16", "float64"]
OnBadImage = Literal["error", "skip"]
ClassWeights = Literal["none", "balanced"]
Sampler = Literal["shuffle", "balanced"]
FeatureCache = Literal["auto", "run", "off"]
Exact = Literal["fast", "bits"]


class Module(Protocol):
    """A framework's own module."""

    def named_parameters(self) -> Any:
        """Yield each parameter with its name."""


ModelLike = str | Module
HeadLike = str | Module | Mapping[str, Module]


def field(
    default: Any,
    help: str,
    check: Callable[[str, Any], Any],
    *,
    group: str,
    option: Any = str,
    choices: tuple[str, ...] = (),
    affects: Affects = "result",
) -> Any:
    """Declare a field.

    Its metadata holds the help, the group it is listed in, how a value is checked and brought into its type, the
    choices where there are some, the type of its command-line option, and what it affects.
    """
    facts = {"help": help, "group": group, "check": check, "choices": choices, "option": option, "affects": affects}
    return dataclasses.field(default=default, metadata=facts)


def text(default: str | None, help: str, *, group: str, affects: Affects = "result") -> Any:
    """Declare a text that is not empty."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, (str, Path)) or not str(value):
            raise RecipeError(f"{name} is {shown(value)}; expected text: {help}")
        return _encodable(name, str(value))

    return field(default, help, check, group=group, affects=affects)


def _encodable(name: str, value: str) -> str:
    """Return a text that a recipe file, and a path, can hold."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RecipeError(f"{name} is {shown(value)}: its bytes are not UTF-8; rename the file or folder") from error
    if "\0" in value:
        raise RecipeError(f"{name} is {shown(value)}, which holds a NUL character; leave it out")
    return value


def choice(default: str | None, help: str, literal: Any, *, group: str, affects: Affects = "result") -> Any:
    """Declare a text that is one of the choices of a Literal."""
    choices = get_args(literal)

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise RecipeError(f"{name} is {shown(value)}; expected one of {', '.join(choices)}")
        if value not in choices:
            raise RecipeError(f"Unknown {name} {shown(value)}.{closest(value, choices)}")
        return value

    return field(default, help, check, group=group, choices=choices, affects=affects)


def number(
    default: float | None,
    help: str,
    *,
    group: str,
    low: float,
    high: float = math.inf,
    whole: bool = False,
    affects: Affects = "result",
) -> Any:
    """Declare a number between bounds, both inclusive."""
    top = min(high, LARGEST if whole else FLOAT32_MAX)

    def check(name: str, value: Any) -> int | float:
        number = _number(value, whole)
        if number is None:
            raise RecipeError(f"{name} is {shown(value)}; expected {'a whole number' if whole else 'a number'}")
        if not low <= number <= top:
            said = top if high < math.inf or (whole and number > top) else math.inf
            bounds = f"at least {low}" + (f" and at most {said}" if said < math.inf else "")
            kind = "a number that float32 can hold" if FLOAT32_MAX < number < math.inf else "a finite number"
            raise RecipeError(f"{name} is {shown(value)}; expected {kind}, {bounds}")
        return number

    return field(default, help, check, group=group, option=int if whole else float, affects=affects)


def _number(value: Any, whole: bool) -> int | float | None:
    """Return what is a number as one, and of anything else None."""
    if isinstance(value, (bool, str, bytes)):
        return None
    try:
        return operator.index(value) if whole else float(value)
    except OverflowError:  # a whole number beyond every float
        return math.inf if value > 0 else -math.inf
    except Exception:  # an object may raise anything
        return None


def names(help: str, *, group: str, example: str, least: int) -> Any:
    """Declare a tuple of different names, also written as one text with commas."""

    def check(name: str, value: Any) -> tuple[str, ...]:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) and n.strip() for n in names):
            raise RecipeError(f"{name} is {shown(value)}; expected a list of names, such as {example}")
        names = tuple(n.strip() for n in names)
        if len(names) < least or len(set(names)) != len(names):
            raise RecipeError(f"{name} is {shown(value)}; expected at least {least} names, all different")
        return tuple(_encodable(name, n) for n in names)

    return field(None, help, check, group=group)


def loggers(help: str, *, group: str) -> Any:
    """Declare a tuple of different loggers, also written as one text with commas; "none" and an empty one are none."""

    def check(name: str, value: Any) -> tuple[str, ...]:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) and n.strip() for n in names):
            raise RecipeError(f"{name} is {shown(value)}; expected loggers, such as tensorboard or ['wandb', 'mlflow']")
        names = tuple(n.strip() for n in names)
        if names == ("none",):
            return ()
        if len(set(names)) != len(names):
            raise RecipeError(f"{name} is {shown(value)}; expected loggers, each once")
        check_names(names)
        return names

    return field(None, help, check, group=group, affects="place")


def widths(help: str, *, group: str) -> Any:
    """Declare a tuple of widths, also written as one number, or as one text with commas."""

    def check(name: str, value: Any) -> tuple[int, ...]:
        numbers = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        try:
            whole = [int(n) if isinstance(n, str) else operator.index(n) for n in numbers if not isinstance(n, bool)]
        except Exception:  # an object may raise anything
            whole = []
        if not whole or len(whole) != len(numbers) or not all(1 <= width <= 2**20 for width in whole):
            raise RecipeError(
                f"{name} is {shown(value)}; expected one or more widths of at least 1, such as 256 or [512, 256]"
            )
        for first, second in pairwise(whole):
            if first * second > LAYER:
                problem = f"{name} has a layer of {first} times {second} numbers; expected at most {LAYER} in one"
                raise RecipeError(problem, fix="use smaller widths")
        return tuple(whole)

    return field(None, help, check, group=group)


def triple(help: str, *, group: str, low: float, example: str) -> Any:
    """Declare three numbers, of red, green and blue, from `low` to 1; also written as one text with commas."""

    def check(name: str, value: Any) -> tuple[float, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        numbers: list[int | float | None] = []
        if isinstance(parts, (list, tuple)):
            numbers = [_number(_read(part) if isinstance(value, str) else part, whole=False) for part in parts]
        fix = f"expected three numbers, of red, green and blue, such as {example}"
        if len(numbers) != 3 or None in numbers:
            raise RecipeError(f"{name} is {shown(value)}; {fix}")
        known = tuple(float(number) for number in numbers if number is not None)
        if max(known) > 1 and all(low <= number <= 255 for number in known):
            scaled = ",".join(f"{number / 255:.3g}" for number in known)
            raise RecipeError(f"{name} is {shown(value)}; expected it on the scale from 0 to 1: {scaled}")
        if not all(low <= number <= 1 for number in known):
            raise RecipeError(f"{name} is {shown(value)}; {fix}, each at least {low} and at most 1")
        return known

    return field(None, help, check, group=group)


def _read(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def truth(default: bool, help: str, *, group: str) -> Any:
    """Declare what is true or false."""

    def check(name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise RecipeError(f"{name} is {shown(value)}; expected true or false")
        return value

    return field(default, help, check, group=group, option=bool)


def check_strategy(name: str, value: Any) -> str | Strategy:
    """Return a strategy's name, or the strategy of one's own that a table describes."""
    if isinstance(value, Mapping):
        return Strategy.from_dict(value)
    if isinstance(value, Strategy):
        if value.fits is not None:
            raise RecipeError(f"{name} is {value.name!r}, which fits {shown(value.fits)}; only named strategies do")
        return value
    if not isinstance(value, str) or not value:
        raise RecipeError(f"{name} is {shown(value)}; expected a name, a tlx.Strategy or a table of one")
    return named(value).name


def check_data(name: str, value: Any) -> Any:
    """Return a path as text, and anything else that is there as it is: only `load_data` can judge it."""
    if value is None or (isinstance(value, str) and not value):
        raise RecipeError(f"{name} is {shown(value)}; expected {describe_sources()}")
    return _encodable(name, str(value)) if isinstance(value, (str, Path)) else value


def check_head(name: str, value: Any) -> Any:
    """Return a path, a module, or a path with the module that comes there."""
    if isinstance(value, Mapping) and len(value) == 1:
        ((path, module),) = value.items()
        if isinstance(path, str) and path and hasattr(module, "named_parameters"):
            return {_encodable(name, path): module}
    elif isinstance(value, str) and value:
        return _encodable(name, value)
    elif hasattr(value, "named_parameters"):
        return value
    raise RecipeError(f"{name} is {shown(value)}; expected a layer's path such as 'fc', a module, or {{'fc': module}}")


def check_model(name: str, value: Any) -> Any:
    """Return a name, or a module of a framework, as it is."""
    if isinstance(value, str) and value:
        return _encodable(name, value)
    if not hasattr(value, "named_parameters"):
        raise RecipeError(f"{name} is {shown(value)}; expected a name of `tlx models`, or a module of the framework")
    return value
