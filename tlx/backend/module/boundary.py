"""A boundary divides a model in two: what enters a submodule, and the forward pass from there on.

A pass that begins at a boundary runs the model's own code on a stand-in. Every child that comes before the boundary, on
each level of its path, is an identity until the pass comes there; then the features take the stand-in's place, and all
modules are back. What the code itself does on the way, such as pooling, so meets the stand-in alone. That is right if
the modules form a chain up to the boundary, which the caller checks by computing both ways.

Code that adds positions to tokens, or joins them with others, needs the shapes that it knows. Where an identity is not
enough, each child returns zeros in the shapes that it returned when the features were taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tlx.errors import BackendError, one_line


class Reached(Exception):
    """Ends a forward pass at the boundary; `value` is what entered it."""

    def __init__(self, value: Any) -> None:
        super().__init__("reached the boundary")
        self.value = value


@dataclass(frozen=True, slots=True)
class Entered:
    """What entered a boundary once: its dtype and strides, the shape of the pixels that came to it, and on which way.

    `passed` holds, by their paths, what the modules beside the boundary's path returned in each of their calls.
    """

    dtype: Any
    strides: tuple[int, ...]
    pixels: tuple[int, ...]
    passed: Mapping[str, list[Any]] = field(default_factory=dict)

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


@dataclass(frozen=True, slots=True)
class Shape:
    """A tensor that a module returned, without its values."""

    sizes: tuple[int, ...]
    dtype: Any


def beside(module: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield path and module of each child beside a path, on each of its levels; of containers what they hold too."""
    around = ""
    for parent, attribute in levels(module, path):
        for name, child in parent._modules.items():
            if name != attribute and child is not None:
                yield from _parts(around + name, child)
        around += f"{attribute}."


def _parts(path: str, child: Any) -> Iterator[tuple[str, Any]]:
    yield path, child
    if hasattr(type(child), "__iter__"):  # code may go through it instead of calling it
        for name, part in child._modules.items():
            yield from _parts(f"{path}.{name}", part)


@contextmanager
def forwarding(functions: list[tuple[Any, Callable[..., Any]]]) -> Iterator[None]:
    """Put functions in the place of modules' `forward` while the block runs."""
    before = [(module, vars(module).get("forward")) for module, _ in functions]
    try:
        for module, function in functions:
            module.forward = function
        yield
    finally:
        for module, function in before:
            if function is None:
                vars(module).pop("forward", None)
            else:
                module.forward = function


@contextmanager
def watched(module: Any, path: str) -> Iterator[dict[str, list[Any]]]:
    """Keep the shapes of what the modules beside a path return while the block runs: see `Entered`."""
    passed: dict[str, list[Any]] = {}

    def watching(name: str, forward: Any, *others: Any, **named: Any) -> Any:
        value = forward(*others, **named)
        passed.setdefault(name, []).append(_each(value, _is_tensor, lambda t: Shape(tuple(t.shape), t.dtype)))
        return value

    found = {child: name for name, child in reversed(list(beside(module, path)))}  # of a shared one the first path
    with forwarding([(child, partial(watching, name, child.forward)) for child, name in found.items()]):
        yield passed


@contextmanager
def retraced(
    module: Any, path: str, features: Any, active: Callable[[Any], bool], passed: Mapping[str, list[Any]], make: Any
) -> Iterator[None]:
    """Do as `resumed`, but with modules that return what `make` makes of the shapes that they returned before."""
    boundary = levels(module, path)[-1]
    boundary_module = getattr(*boundary)
    forward, reached = boundary_module.forward, False
    calls: dict[str, Iterator[Any]] = {}

    def enter(x: Any, *others: Any, **named: Any) -> Any:
        nonlocal reached
        reached = True
        put_back.close()
        return forward(features, *others, **named)

    def repeat(name: str, child: Any, *others: Any, **named: Any) -> Any:
        if reached:  # the code took hold of it before
            return child.forward(*others, **named)
        shapes = next(calls.setdefault(name, iter(passed.get(name, []))), None)
        if shapes is None or any(map(active, child.modules())):
            raise RuntimeError(
                f"{name} runs before {path}, which it did not when the features were taken, or it trains"
            )
        return _each(shapes, lambda value: isinstance(value, Shape), make)

    found = {child: name for name, child in reversed(list(beside(module, path)))}
    functions = [(child, partial(repeat, name, child)) for child, name in found.items()]
    with ExitStack() as put_back:
        put_back.enter_context(forwarding([*functions, (boundary_module, enter)]))
        yield


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "detach")


def _each(value: Any, wanted: Callable[[Any], bool], change: Callable[[Any], Any]) -> Any:
    """Return a value with each wanted part of it changed: of a tuple, a list or a dict those in it."""
    if wanted(value):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(item, wanted, change) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_each(item, wanted, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def outputs_from(backend: Any, model: Any, batch: Any) -> Any:
    """Return what a model makes of features, on the first of some ways that comes to the boundary."""
    entered, features = model.entering[batch.boundary], batch.images
    part, passed = (model.module, batch.boundary, features, model.active()), entered.passed
    like_pixels = features.flatten()[:1].expand(len(features), *entered.pixels[1:])

    def zeros(shape: Shape, stored: bool) -> Any:
        """Zeros for as many images as there are, each number stored, as writing in place needs it, or but one."""
        first, rest = shape.sizes[:1], shape.sizes[1:]
        sizes = (*(number // entered.pixels[0] * len(features) for number in first), *rest)
        made = backend.fw.zeros(sizes if stored else [1] * len(sizes), dtype=shape.dtype, device=model.device)
        return made if stored else made.expand(*sizes)

    ways = [(tensor, partial(resumed, *part, backend.proxy)) for tensor in backend.stand_ins(features, entered.pixels)]
    retracing = [(like_pixels, partial(retraced, *part, passed, partial(zeros, stored=s))) for s in (False, True)]
    ways = [*retracing, *ways] if features.ndim == 3 else [*ways, *retracing]

    def output(stand_in: Any, way: Callable[[], AbstractContextManager[None]]) -> Any:
        with backend.autocast(model), way():
            return model.module(stand_in)

    if batch.boundary in model.stand_ins:
        return output(*ways[model.stand_ins[batch.boundary]])
    failures = []
    for number, (tensor, way) in enumerate(ways):
        try:
            value = output(tensor, way)
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
        def forward(self, x: Any, *others: Any, **named: Any) -> Any:
            raise Reached(x)

    return Stop
