"""A boundary divides a model in two: what enters a submodule, and the forward pass from there on.

A pass that begins at a boundary runs the model's own code on a stand-in. Every child that comes before the boundary, on
each level of its path, is an identity until the pass comes there; then the features take the stand-in's place, and all
modules are back. What the code itself does on the way, such as pooling, so meets the stand-in alone. That is right if
the modules form a chain up to the boundary, which the caller checks by computing both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from tlx.errors import BackendError, one_line


class Reached(Exception):
    """Ends a forward pass at the boundary; `value` is what entered it."""

    def __init__(self, value: Any) -> None:
        super().__init__("reached the boundary")
        self.value = value


@dataclass(frozen=True, slots=True)
class Entered:
    """What entered a boundary once: its dtype and strides, and the shape of the pixels that came to it."""

    dtype: Any
    strides: tuple[int, ...]
    pixels: tuple[int, ...]

    def strides_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The strides of a tensor of this shape that lies in memory in the same order of dimensions."""
        strides, numbers = [0] * len(shape), 1
        for axis in sorted(range(len(shape)), key=lambda axis: (self.strides[axis], shape[axis])):
            strides[axis] = numbers
            numbers *= shape[axis]
        return tuple(strides)


def candidates(module: Any, active: Callable[[Any], bool]) -> tuple[str, ...]:
    """Return the path of the first active module and of the modules around it, innermost first.

    `active` tells whether a module itself, without its children, trains, adapts or drops. Empty where the first of all
    is active, or none.
    """
    first = ""
    for path, child in module.named_modules():
        if active(child):
            if not (first and path):
                return ()
            parts = path.split(".")
            return tuple(".".join(parts[:depth]) for depth in range(len(parts), 0, -1))
        if not any(True for _ in child.children()):
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


@contextmanager
def resumed(
    module: Any, path: str, features: Any, active: Callable[[Any], bool], make_proxy: Callable[[Any], Any]
) -> Iterator[None]:
    """Let a forward pass begin at a boundary with these features while the block runs.

    Until it comes there all other modules are identities, but for those behind the boundary that are active: if one of
    them runs before it, the pass may not be divided there.
    """
    reached = False
    *_, (around, last) = steps = levels(module, path)
    boundary = getattr(around, last)

    def enter(x: Any, *others: Any, **named: Any) -> Any:
        nonlocal reached
        first, reached = not reached, True
        put_back.close()
        return boundary(features if first else x, *others, **named)

    def proxy(child: Any, may_wait: bool) -> Any:
        def call(x: Any, *others: Any, **named: Any) -> Any:
            if reached:  # the code took hold of it before
                return child(x, *others, **named)
            if may_wait:
                return x
            raise RuntimeError(f"what trains and lies behind {path} in the module runs before it")

        return make_proxy(call)

    changes = [(around, last, make_proxy(enter))]
    for parent, attribute in steps:
        before = True
        for name, child in parent._modules.items():
            if name == attribute:
                before = False
            elif child is not None:
                changes.append((parent, name, proxy(child, before or not any(map(active, child.modules())))))
    with ExitStack() as put_back:
        put_back.enter_context(replaced(changes))
        yield


def outputs_from(backend: Any, model: Any, batch: Any) -> Any:
    """Return what a model makes of features, by the first stand-in for its pixels that comes to the boundary."""
    tensors = backend.stand_ins(batch.images, model.entering[batch.boundary].pixels)

    def output(stand_in: Any) -> Any:
        resuming = resumed(model.module, batch.boundary, batch.images, model.active(), backend.proxy)
        with backend.autocast(model), resuming:
            return model.module(stand_in)

    if batch.boundary in model.stand_ins:
        return output(tensors[model.stand_ins[batch.boundary]])
    failures = []
    for number, tensor in enumerate(tensors):
        try:
            value = output(tensor)
        except Exception as error:  # whatever a model's own code raises where it is given something else
            failures.append(error)
        else:
            model.stand_ins[batch.boundary] = number
            return value
    cause = one_line(f"{type(failures[0]).__name__}: {failures[0]}")
    raise BackendError(f"{backend.name} cannot begin at {batch.boundary!r}: {cause}") from failures[0]


def stand_ins(features: Any, pixels: tuple[int, ...]) -> list[Any]:
    """What may travel to a boundary in place of pixels of that shape, the likeliest to come there first.

    Functions such as pooling, which lie in a model's code between its modules, expect maps [N, C, h, w].
    """
    shape = tuple(features.shape)
    like_pixels = features.flatten()[:1].expand(shape[0], *pixels[1:])
    if len(shape) == 4:
        return [features, like_pixels]
    maps = [features.reshape(*shape, 1, 1)] if len(shape) == 2 else []
    return [*maps, like_pixels, features]


def proxy_class(base: type) -> Callable[[Any], Any]:
    """Make the module that calls a function; `base` is the framework's Module."""

    class Proxy(base):  # type: ignore[misc]
        def __init__(self, call: Any) -> None:
            super().__init__()
            self.call = call

        def forward(self, *others: Any, **named: Any) -> Any:
            return self.call(*others, **named)

    return Proxy


def stop_class(base: type) -> Callable[[], Any]:
    """Make the module that ends a forward pass where it stands; `base` is the framework's Module."""

    class Stop(base):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            raise Reached(x)

    return Stop
