"""A boundary divides a model in two: what enters a submodule, and the forward pass from there on.

A pass that begins at a boundary runs the model's own code on a stand-in. Every child that comes before the boundary, on
each level of its path, is an identity until the pass comes there; then the features take the stand-in's place, and all
modules are back. What the code itself does on the way, such as pooling, so meets the stand-in alone. That is right if
the modules form a chain up to the boundary, which the caller checks by computing both ways. Where that code expects
shapes of its own, as a Vision Transformer's does, each child returns an outline instead: one number, in the shape that
the child gave to an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tlx.errors import BackendError, one_line

Outlines = dict[tuple[Any, str], tuple[int, ...]]  # by parent and attribute: the shape that a child gives to an image


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
    module: Any,
    path: str,
    features: Any,
    active: Callable[[Any], bool],
    make_proxy: Callable[[Any], Any],
    outlines: Outlines,
) -> Iterator[None]:
    """Let a forward pass begin at a boundary with these features while the block runs.

    Until it comes there all other modules are identities, or return their outlines, but for those behind the boundary
    that are active: if one of them runs before it, the pass may not be divided there.
    """
    reached = False
    *_, (around, last) = steps = levels(module, path)
    boundary = getattr(around, last)

    def enter(x: Any, *others: Any, **named: Any) -> Any:
        nonlocal reached
        first, reached = not reached, True
        put_back.close()
        return boundary(features if first else x, *others, **named)

    def proxy(child: Any, may_wait: bool, outline: tuple[int, ...] | None) -> Any:
        def call(x: Any, *others: Any, **named: Any) -> Any:
            if reached:  # the code took hold of it before
                return child(x, *others, **named)
            if may_wait:
                return x if outline is None else features.flatten()[:1].expand(features.shape[0], *outline)
            raise RuntimeError(f"what trains and lies behind {path} in the module runs before it")

        return make_proxy(call)

    changes = [(around, last, make_proxy(enter))]
    for parent, attribute in steps:
        before = True
        for name, child in parent._modules.items():
            if name == attribute:
                before = False
            elif child is not None:
                may_wait = before or not any(map(active, child.modules()))
                changes.append((parent, name, proxy(child, may_wait, outlines.get((parent, name)))))
    with ExitStack() as put_back:
        put_back.enter_context(replaced(changes))
        yield


def outputs_from(backend: Any, model: Any, batch: Any) -> Any:
    """Return what a model makes of features, by the first stand-in for its pixels that comes to the boundary."""
    path = batch.boundary
    tensors = backend.stand_ins(batch.images, model.entering[path].pixels)

    def output(stand_in: Any, outlines: Outlines) -> Any:
        resuming = resumed(model.module, path, batch.images, model.active(), backend.proxy, outlines)
        with backend.autocast(model), resuming:
            return model.module(stand_in)

    if path in model.stand_ins:
        number, outlines = model.stand_ins[path]
        return output(tensors[number], outlines)
    failures = []
    for outlined in (False, True):
        try:
            outlines = outlines_of(backend, model, path) if outlined else {}
        except Exception:  # the code does more with a module than to call it
            break
        for number, tensor in enumerate(tensors):
            try:
                value = output(tensor, outlines)
            except Exception as error:  # whatever a model's own code raises where it is given something else
                failures.append(error)
            else:
                model.stand_ins[path] = number, outlines
                return value
    cause = one_line(f"{type(failures[0]).__name__}: {failures[0]}")
    raise BackendError(f"{backend.name} cannot begin at {path!r}: {cause}") from failures[0]


def outlines_of(backend: Any, model: Any, path: str) -> Outlines:
    """Send one image to a boundary, and return the outline of each module that it comes through beside its path."""
    outlines: Outlines = {}

    def recorder(parent: Any, name: str, child: Any) -> Any:
        def call(*others: Any, **named: Any) -> Any:
            value = child(*others, **named)
            outlines[parent, name] = tuple(value.shape[1:])
            return value

        return backend.proxy(call)

    *_, (around, last) = steps = levels(model.module, path)
    changes = [(around, last, backend.stop())]
    for parent, attribute in steps:
        children = [(name, child) for name, child in parent._modules.items() if child is not None and name != attribute]
        changes += [(parent, name, recorder(parent, name, child)) for name, child in children]
    image = backend.fw.zeros(1, *model.entering[path].pixels[1:], dtype=model.dtype, device=model.device)
    mode = model.mode
    backend._set_mode(model, "eval")
    try:
        with backend.fw.no_grad(), backend.autocast(model), replaced(changes), suppress(Reached):
            model.module(image)
    finally:
        backend._set_mode(model, mode)
    return outlines


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
