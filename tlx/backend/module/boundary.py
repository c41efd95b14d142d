"""A boundary divides a model in two: what enters a submodule, and the forward pass from there on.

The part before a boundary is bypassed by replacing every child that comes before it, on each level of its path, by an
identity. That is right if the modules form a chain up to the boundary, which the caller checks by computing both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Reached(Exception):
    """Ends a forward pass at the boundary; `value` is what entered it."""

    def __init__(self, value: Any) -> None:
        super().__init__("reached the boundary")
        self.value = value


def candidates(module: Any, active: Callable[[Any], bool]) -> tuple[str, ...]:
    """Return the path of the first active leaf and of the modules around it, innermost first.

    `active` tells whether a leaf trains, adapts or drops. Empty where the first leaf of all is active, or none.
    """
    first = ""
    for path, leaf in module.named_modules():
        if any(True for _ in leaf.children()):
            continue
        if active(leaf):
            if not first:
                return ()
            parts = path.split(".")
            return tuple(".".join(parts[:depth]) for depth in range(len(parts), 0, -1))
        first = first or path
    return ()


def levels(module: Any, path: str) -> list[tuple[Any, str]]:
    """Return (parent, attribute) for each level of a path."""
    pairs = []
    for attribute in path.split("."):
        pairs.append((module, attribute))
        module = getattr(module, attribute)
    return pairs


@contextmanager
def replaced(changes: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Put other modules in some places (parent, attribute, module) while the block runs."""
    before = [(parent, attribute, getattr(parent, attribute)) for parent, attribute, _ in changes]
    try:
        for parent, attribute, new in changes:
            setattr(parent, attribute, new)
        yield
    finally:
        for parent, attribute, old in before:
            setattr(parent, attribute, old)


def bypass(module: Any, path: str, identity: Any) -> list[tuple[Any, str, Any]]:
    """Return the replacements that leave of a module only what comes from `path` on."""
    changes = []
    for parent, attribute in levels(module, path):
        for name, _ in parent.named_children():
            if name == attribute:
                break
            changes.append((parent, name, identity))
    return changes


def stop_class(base: type) -> Callable[[], Any]:
    """Make the module that ends a forward pass where it stands; `base` is the framework's Module."""

    class Stop(base):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            raise Reached(x)

    return Stop
