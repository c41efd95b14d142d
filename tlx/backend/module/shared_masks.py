"""The masks of two models that are compared: drawn by the path and the call of a dropout, whatever it is written as.

A dropout may be a module registered anywhere, a function called in a forward pass, or a module of the user's own that
acts as one. What is none of these draws from the framework's generator, which `tlx parity` finds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from tlx import rng
from tlx.backend.module import own
from tlx.backend.module.boundary import replaced
from tlx.backend.module.build import ancestors, holder
from tlx.backend.module.dropout import (
    CHANNELS,
    SAMPLES,
    UNITS,
    WHOLE,
    Layer,
    Masks,
    drawn_shape,
    dropout_class,
    dropped,
    scale,
)
from tlx.backend.protocol import Array, Draw

if TYPE_CHECKING:
    from tlx.backend.module.base import ModuleBackend
    from tlx.backend.module.net import Net

Label = tuple[str, bool, int]  # path, whether it is a function, call
DROPS = re.compile(r"drop|stochastic_?depth", re.IGNORECASE)  # names of classes that may act as a dropout
RATES = ("p", "drop_prob", "drop_rate", "prob")  # names of its probability
TRIED, CALLS = 4096, 1024  # samples that such a class is tried on; calls where it drops a batch as a whole
SIGMAS = 6  # by which the fraction that it drops may be off


def share(backend: ModuleBackend, net: Net) -> SharedMasks:
    """Let all dropouts of a model, as far as the core can draw for them, take their masks from a `SharedMasks`."""
    if not isinstance(net.masks, SharedMasks):
        masks = SharedMasks(backend, net)
        with own.seeded(backend, net, own.EVALUATION):
            adopt(backend, net)
        for layer in net.dropouts:
            layer.masks = masks
        masks.paths = {id(module): path for path, module in net.module.named_modules()}
        net.masks = masks
    return net.masks


class SharedMasks(Masks):
    """Masks whose streams are named by path and call, or as those of a partner in another model."""

    def __init__(self, backend: ModuleBackend, net: Net) -> None:
        super().__init__()
        self.backend, self.net, self.tried = backend, net, True
        self.paths: dict[int, str] = {}  # by the module's id
        self.together = {layer.path for layer in net.dropouts if layer.layer in net.masks.together}
        self.log: list[Draw] | None = None
        self.labels: list[Label] = []  # of the draws that were logged; one dropped alike in all calls comes again
        self.shapes: dict[Label, tuple[int, ...]] = {}
        self.partners: dict[Label, tuple[Label, tuple[int, ...]]] = {}  # with the order in which that has the axes
        self.acting: set[Label] | None = None  # None: all act that would by themselves
        self.silent = False  # nothing is dropped

    def keep(self, layer: Layer, shape: tuple[int, ...]) -> Array | None:
        """Return the mask of a layer's call; None where it does not act in this phase."""
        return self._keep((layer.path, False, self.call(layer.path, layer.path)), shape, layer.p)

    @contextmanager
    def functions(self) -> Iterator[None]:
        """Draw the masks of functions too, while the block runs, and let others be exact."""
        with replaced([*self.backend.dropping_functions(self.function), *self.backend.exact_functions]):
            yield

    def function(self, x: Any, p: float, training: bool, axes: int) -> Any:
        """Do what a function does that drops parts of x."""
        if p == 0:
            return x
        path = self._caller()
        label = (path, True, self.call((path, True), path))
        known = self.net.mode == "train" and self.acting is not None and label in self.shapes
        if not (known or training):
            return x
        return dropped(self.backend.fw, x, scale(p), self._keep(label, drawn_shape(x, axes), p))

    def _caller(self) -> str:
        """Return the path of the innermost module whose code is running."""
        frame: Any = sys._getframe(1)
        while frame is not None:
            path = self.paths.get(id(frame.f_locals.get("self")))
            if path is not None:
                return path
            frame = frame.f_back
        return ""

    def _keep(self, label: Label, shape: tuple[int, ...], p: float) -> Array | None:
        path, function, call = label
        if self.silent:
            return None
        if self.log is not None and not self.over:
            self.log.append(Draw(path, call, function, p, shape, self.after, self._around(path)))
        if self.net.mode == "train" and self.acting is not None and label in self.shapes and label not in self.acting:
            return None
        partner, order = self.partners.get(label, (label, tuple(range(len(shape)))))
        mask = rng.keep_mask(*self.key, _number(*partner), tuple(shape[axis] for axis in order), p)
        return mask.transpose(np.argsort(order))

    def _around(self, path: str) -> tuple[str, ...]:
        """Return the parameters beside which a dropout acts: see `ModuleBackend.set_phase`."""
        params = [spec for spec in self.net.specs if spec.role != "statistic"]
        around = holder(path, self.net.holding({spec.name for spec in params}))
        return tuple(p.name for p in params if any(around in ancestors(name) for name in (p.name, *p.aliases)))

    @contextmanager
    def logged(self) -> Iterator[list[Draw]]:
        """Write down what is drawn while the block runs."""
        log: list[Draw] = []
        self.log = log
        try:
            yield log
        finally:
            self.log = None
        self.labels = [(draw.path, draw.function, draw.call) for draw in log]
        self.shapes = {label: draw.shape for label, draw in zip(self.labels, log, strict=True)}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Drop nothing while the block runs, so that a module by itself is the same on both sides."""
        self.begin(self.key)
        self.silent = True
        try:
            with self.functions():
                yield
        finally:
            self.silent = False

    def follow(self, partners: Sequence[Draw | None]) -> None:
        """Let each of the logged draws be as its partner's."""
        for label, partner in zip(self.labels, partners, strict=True):
            if partner is not None:
                theirs = partner.path, partner.function, partner.call
                self.partners[label] = theirs, _order(partner.shape, self.shapes[label])

    def act(self, acting: Sequence[bool]) -> None:
        """Choose which of the logged draws act in training."""
        self.acting = {label for label, acts in zip(self.labels, acting, strict=True) if acts}
        known = {path for path, function, _ in self.shapes if not function}
        for layer in self.net.dropouts:
            if layer.path in known:
                self.net.training[layer] = any(label[:2] == (layer.path, False) for label in self.acting)


def _number(path: str, function: bool, call: int) -> int:
    """Return the number of the stream of a draw, which fits any other use of a layer's number."""
    return int.from_bytes(sha256(f"{path}\0{function}\0{call}".encode()).digest()[:7], "little")


def _order(reference: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of `shape` in the order in which the reference has them; its own where they are not the same."""
    order: list[int] = []
    if sorted(reference) == sorted(shape):
        for size in reference:
            order.append(next(axis for axis, own in enumerate(shape) if own == size and axis not in order))
    return tuple(order or range(len(shape)))


def adopt(backend: ModuleBackend, net: Net) -> None:
    """Replace each module of the user's own that acts as a dropout or as stochastic depth by one of tlx."""
    make = dropout_class(backend.fw, net.masks)
    new: dict[Any, Any] = {}
    for path, parent in list(net.module.named_modules()):
        for attribute, old in list(parent._modules.items()):
            if old is None or old in net.dropouts or not DROPS.search(type(old).__name__):
                continue
            if old not in new:
                like = acts_as(backend, net, old)
                if like is None:
                    continue
                new[old] = make(like.p, len(net.dropouts), like.axes, f"{path}.{attribute}".lstrip("."))
                new[old].scale, new[old].always = like.scale, like.always
                net.dropouts.append(new[old])
                net.training[new[old]] = net.training.pop(old)
            setattr(parent, attribute, new[old])


@dataclass(frozen=True, slots=True)
class Likeness:
    """What a module does that acts as a dropout, but perhaps for its scale."""

    p: float
    axes: int
    scale: float
    always: bool = False  # in evaluation too


def acts_as(backend: ModuleBackend, net: Net, module: Any) -> Likeness | None:
    """Try a module without parameters on ones, in training and in evaluation; None where it is no dropout."""
    stated = [float(p) for name in RATES if isinstance(p := getattr(module, name, None), (int, float))]
    owns = any(True for _ in module.parameters()) or any(True for _ in module.children())
    if owns or (stated and not any(stated)):
        return None

    def left(shape: tuple[int, ...], training: bool) -> Array:
        module.training = training
        with backend.fw.no_grad():
            return backend.array(module(backend.tensor(np.ones(shape), net.device).to(net.dtype)))

    for shape in ((TRIED, 2, 2, 2), (TRIED, 2, 4), (TRIED, 8)):
        try:
            likeness = _likeness(left(shape, True), stated, (SAMPLES, CHANNELS, UNITS))
            if likeness is None:  # of each call one value
                calls = np.stack([left((2, *shape[1:]), True) for _ in range(CALLS)])
                likeness = _likeness(calls, stated, (SAMPLES,))
                likeness = likeness and replace(likeness, axes=WHOLE)
            evaluated = left(shape, False)
        except Exception:  # whatever it raises at what it was not written for
            continue
        finally:
            module.training = False
        if likeness is not None and evaluated.shape == shape:
            if (evaluated == 1).all():
                return likeness
            if _likeness(evaluated, stated, (likeness.axes,)) == likeness:
                return replace(likeness, always=True)
    return None


def _likeness(left: Array, stated: Sequence[float], structures: Sequence[int]) -> Likeness | None:
    """Return what was done to ones, if each part of a structure was kept or dropped as often as it may be meant to be.

    The probability is one that the module states; or that to keep, taken for it; or what the scale stands for.
    """
    kept, factor = left != 0, float(left.max())
    if factor <= 0 or not np.array_equal(left, kept * left.max()):
        return None
    for axes in structures:
        parts = kept.reshape(*kept.shape[: axes or kept.ndim], -1)
        if not (parts == parts[..., :1]).all():
            continue
        fraction = 1 - parts[..., 0].mean()
        for p in (*stated, *(1 - p for p in stated), 1 - 1 / factor):
            if 0 < p < 1 and abs(fraction - p) < SIGMAS * (p * (1 - p) / parts[..., 0].size) ** 0.5:
                return Likeness(p, axes, scale(p) if abs(factor / scale(p) - 1) < 1e-6 else factor)
        return None
    return None
