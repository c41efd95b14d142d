"""One call of a module: the tensors in its arguments, and how to repeat it with other ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from tlx.errors import BackendError

IsTensor = Callable[[Any], bool]
PLAIN = (type(None), bool, int, float, str, bytes)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stood in the arguments of a call."""

    number: int


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of a call with places for its tensors, in the order of the signature."""

    arguments: Any
    tensors: int  # how many places there are
    opaque: str = ""  # the class of an argument that may hold tensors of its own; then the call cannot be repeated

    def filled(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments with these tensors in their places.

        Raises:
            BackendError: there are more or fewer places, or an argument cannot be made anew.
        """
        if self.opaque:
            raise BackendError(f"it takes a {self.opaque}")
        if len(tensors) != self.tensors:
            raise BackendError(f"it takes {self.tensors} tensors here, and the reference's takes {len(tensors)}")
        if isinstance(self.arguments, inspect.BoundArguments):
            bound = inspect.BoundArguments(self.arguments.signature, dict(self.arguments.arguments))
            bound.arguments.update({name: _filled(value, tensors) for name, value in bound.arguments.items()})
            return bound.args, bound.kwargs
        args, kwargs = _filled(self.arguments, tensors)
        return args, kwargs


def taken(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], is_tensor: IsTensor
) -> tuple[Call, list[Any]]:
    """Take a call apart: return it without its tensors, and these."""
    tensors: list[Any] = []
    opaque: list[str] = []
    try:
        arguments: Any = inspect.signature(forward).bind(*args, **kwargs)
        for name, value in arguments.arguments.items():
            arguments.arguments[name] = _emptied(value, is_tensor, tensors, opaque)
    except (TypeError, ValueError):  # a function without a signature, or a call that will fail
        tensors.clear()
        arguments = _emptied((args, kwargs), is_tensor, tensors, opaque)
    return Call(arguments, len(tensors), opaque[0] if opaque else ""), tensors


def leaves(value: Any, is_tensor: IsTensor) -> Iterator[Any]:
    """Yield the tensors in a module's output: of a tuple in its order, of a mapping by key, of a dataclass by field."""
    if is_tensor(value):
        yield value
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from leaves(value[key], is_tensor)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves(item, is_tensor)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), is_tensor)


def _emptied(value: Any, is_tensor: IsTensor, tensors: list[Any], opaque: list[str]) -> Any:
    if is_tensor(value):
        tensors.append(value)
        return Place(len(tensors) - 1)
    if isinstance(value, Mapping):
        emptied = {key: _emptied(value[key], is_tensor, tensors, opaque) for key in sorted(value, key=str)}
        return {key: emptied[key] for key in value}
    if isinstance(value, (tuple, list)):
        return _like(value, [_emptied(item, is_tensor, tensors, opaque) for item in value])
    if not isinstance(value, PLAIN) and hasattr(value, "__dict__") and not callable(value):
        opaque.append(type(value).__name__)
    return value


def _filled(value: Any, tensors: Sequence[Any]) -> Any:
    if isinstance(value, Place):
        return tensors[value.number]
    if isinstance(value, Mapping):
        return {key: _filled(item, tensors) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return _like(value, [_filled(item, tensors) for item in value])
    return value


def _like(value: Any, items: list[Any]) -> Any:
    """Return items as a sequence of the class of `value`."""
    return (
        type(value)(*items) if hasattr(value, "_fields") else list(items) if isinstance(value, list) else tuple(items)
    )
