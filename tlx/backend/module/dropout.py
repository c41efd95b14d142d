"""Dropout whose masks the core draws, so that every framework drops the same units, channels or samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from tlx import rng
from tlx.backend.protocol import Array
from tlx.errors import BackendError

# What a dropout drops, as the number of leading axes of its mask; 0: all; -1: none, for a batch is dropped as a whole.
UNITS, SAMPLES, CHANNELS, WHOLE = 0, 1, 2, -1
FUNCTIONS = {"dropout": UNITS, "dropout1d": CHANNELS, "dropout2d": CHANNELS, "dropout3d": CHANNELS}
Drop = Callable[[Any, float, bool, int], Any]  # from x, p, whether it trains, and the axes of the mask to what is left
Layer = Any  # a module that `dropout_class` makes
Make = Callable[[float, int, int, str], Layer]  # from p, its number in the model, its mask's axes and its path


class Masks:
    """The masks of one model, by the batch, the layer, and the number of the layer's call in the pass under way."""

    def __init__(self) -> None:
        self.together: set[Any] = set()  # layers that drop the same in each call of a pass
        self.several: dict[Any, str] = {}  # the paths of layers that a pass has called several times
        self.tried = False  # whether the model has been through a pass forward and backward
        self.after = ""  # the module with parameters that ran last, where a probe looks on
        self.begin((0, 0, 0))

    @property
    def by_call(self) -> tuple[str, ...]:
        """The paths of layers that drop otherwise in each of several calls."""
        return tuple(path for layer, path in self.several.items() if layer not in self.together)

    def begin(self, key: tuple[int, int, int]) -> None:
        """Begin a pass through the model; `key` is the batch's."""
        self.key, self.over, self.after = key, False, ""
        self.calls: Counter[Any] = Counter()

    def end(self) -> None:
        """End the forward pass; what is called from here on is computed again, for the backward pass."""
        self.over = True

    def functions(self) -> AbstractContextManager[None]:
        """Draw the masks of functions too, while the block runs, where these are the core's."""
        return nullcontext()

    def alone(self) -> AbstractContextManager[None]:
        """Run a module by itself in the block."""
        self.begin(self.key)
        return nullcontext()

    def keep(self, layer: Layer, shape: tuple[int, ...]) -> Array | None:
        """Return True where a layer's call keeps its input; None: it keeps all."""
        return rng.keep_mask(*self.key, layer.layer, shape, layer.p, self.call(layer.layer, layer.path))

    def call(self, layer: Any, path: str) -> int:
        """Count a call of a layer, and return its number in the pass, from 0.

        Raises:
            BackendError: several calls are computed again, so that it is not known which one this is.
        """
        if self.over:  # gradient checkpointing
            if self.calls[layer] > 1 and layer not in self.together:
                if self.tried:
                    raise BackendError(
                        f"dropout {path!r} is called {self.calls[layer]} times in a pass and again in the backward "
                        "pass (gradient checkpointing?), which cannot be told apart; use one nn.Dropout for each call"
                    )
                self.together.add(layer)
            return 0
        self.calls[layer] += 1
        if self.calls[layer] > 1:
            self.several[layer] = path
        return 0 if layer in self.together else self.calls[layer] - 1


def dropout_class(fw: Any, masks: Masks) -> Make:
    """Make the layer whose masks are `masks`.

    One that drops samples is stochastic depth (Huang et al. 2016): a residual branch is dropped as a whole.
    """

    class Dropout(fw.nn.Module):  # type: ignore[misc]
        def __init__(self, p: float, layer: int, axes: int, path: str) -> None:
            super().__init__()
            self.p, self.layer, self.axes, self.path, self.masks = p, layer, axes, path, masks
            self.scale, self.always = scale(p), False  # always: in evaluation too, as a module of one's own may

        def forward(self, x: Any) -> Any:
            if not (self.training or self.always) or self.p == 0.0:
                return x
            return dropped(fw, x, self.scale, self.masks.keep(self, drawn_shape(x, self.axes)))

    return Dropout


def scale(p: float) -> float:
    """Return the factor of what is kept."""
    return 1.0 / (1.0 - p) if p < 1 else 0.0


def drawn_shape(x: Any, axes: int) -> tuple[int, ...]:
    """Return the shape of a mask: the leading axes of x."""
    return () if axes == WHOLE else tuple(x.shape[: axes or x.ndim])


def dropped(fw: Any, x: Any, scale: float, keep: Array | None) -> Any:
    """Return x times `scale` where `keep`, a mask of its leading axes, is True; elsewhere 0."""
    if keep is None:
        return x
    mask = fw.tensor(keep.reshape(*keep.shape, *[1] * (x.ndim - keep.ndim)).astype(np.uint8), device=x.device)
    return x * mask.to(x.dtype) * scale


def replace_dropouts(nn: Any, depth: Any, make: Make, module: Any, own: bool) -> list[Layer]:
    """Replace every dropout, and every stochastic depth, by what `make` makes; returns these in the module's order.

    Others, whose masks the core does not draw, are refused in a zoo's model. In somebody's own they draw from the
    framework's generator, which is seeded.
    """
    by_channel = tuple(getattr(nn, name) for name in ("Dropout1d", "Dropout2d", "Dropout3d") if hasattr(nn, name))
    # Through the parents, because a module that two of them share has one path only.
    new: dict[Any, Any] = {}
    for path, parent in list(module.named_modules()):
        for attribute, old in list(parent._modules.items()):
            axes = UNITS if type(old) is nn.Dropout else CHANNELS if type(old) in by_channel else None
            if isinstance(old, depth) and old.mode == "row":
                axes = SAMPLES
            name = f"{path}.{attribute}".lstrip(".")
            if axes is not None:
                if old not in new:
                    new[old] = make(old.p, len(new), axes, name)
                setattr(parent, attribute, new[old])
            elif not own and (isinstance(old, depth) or "Dropout" in type(old).__name__):
                raise BackendError(f"{name} is a {type(old).__name__}, whose masks tlx does not draw; use nn.Dropout")
    return list(new.values())


def function(drop: Drop, axes: int) -> Callable[..., Any]:
    """Make the function that stands for a framework's own dropout, or its dropout of channels."""

    def dropout(*args: Any, **named: Any) -> Any:
        values = {**dict(zip(("input", "p", "training", "inplace"), args, strict=False)), **named}
        x: Any = values.get("input", values.get("x"))
        y = drop(x, values.get("p", 0.5), values.get("training", values.get("train", True)), axes)
        if values.get("addend") is not None:
            return y + values["addend"]
        return x.copy_(y) if values.get("inplace") is True and y is not x else y

    return dropout
