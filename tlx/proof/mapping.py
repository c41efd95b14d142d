"""How an array of the reference becomes one or several of the candidate: the vocabulary of `rename=` in `tlx.parity`.

```python
from tlx import mapping

rename = {
    "stem": "patchify",  # a path, or a name, that is another in the candidate
    "blocks.*.norm": "layers.*.ln",  # each * stands for one part of a path, or for a piece of one
    "fc": mapping.transpose("dense"),  # [out, in] here, [in, out] there
    "head": mapping.reshape("classifier"),  # a 1x1 convolution here, a linear layer there
    "attn.qkv": ("attn.q", "attn.k", "attn.v"),  # merged here, separate there: mapping.split along axis 0
    ("self.q", "self.k", "self.v"): "self.qkv",  # separate here, merged there: mapping.concat along axis 0
    "features": mapping.layout("body", (0, 2, 3, 1)),  # its modules take and give NHWC there, NCHW here
    "scale": None,  # a constant of the reference alone
    None: "index",  # constants of the candidate alone
}
```

A target is a name or another transform, so they nest: the outermost acts first on the reference's array. Every one only
moves numbers, none computes: values, gradients and optimizer state pass in both directions bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, Union

import numpy as np

from tlx.backend import Array
from tlx.errors import RecipeError, shown

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[str, Shape]  # of the candidate's arrays, by name
Target: TypeAlias = Union[str, "Transform"]

__all__ = ["concat", "layout", "reshape", "split", "transpose"]


@dataclass(frozen=True, slots=True, repr=False)
class Transform:
    """What an array goes through on its way to its targets; the functions below make one."""

    word: str  # the function that made it
    to: tuple[Target, ...]
    numbers: tuple[int, ...] | None = None  # axes or shape
    axis: int = 0

    def __repr__(self) -> str:
        """Write it as the call that makes it."""
        arguments = [repr(target) for target in self.to]
        if self.numbers is not None:
            arguments.append(repr(self.numbers))
        if self.axis:
            arguments.append(f"axis={self.axis}")
        return f"mapping.{self.word}({', '.join(arguments)})"


def transpose(target: Target, axes: Sequence[int] | None = None) -> Transform:
    """Map to an array whose axes are in another order, as of a linear layer's weight stored [in, out].

    Args:
        target: the candidate's name or path.
        axes: as of `numpy.transpose`, from the reference to the candidate: (2, 3, 1, 0) makes OIHW to HWIO. Below a
            path it acts on arrays with so many axes. Default: the reverse, which leaves a bias as it is.

    Raises:
        RecipeError: the axes are no permutation.
    """
    return Transform("transpose", (_target("transpose", target),), None if axes is None else _axes("transpose", axes))


def layout(target: Target, axes: Sequence[int]) -> Transform:
    """Map to a module that takes and gives activations with its axes in another order; its weights are as they were.

    Args:
        target: the candidate's path; all modules below it have that layout. "": the whole model, its input and output.
        axes: as of `numpy.transpose`: (0, 2, 3, 1) for NHWC in the candidate and NCHW in the reference. It acts on
            activations with so many axes.

    Raises:
        RecipeError: the axes are no permutation.
    """
    return Transform("layout", (_target("layout", target),), _axes("layout", axes))


def reshape(target: Target, shape: Sequence[int] | None = None) -> Transform:
    """Map to an array with the same numbers, in C order, in another shape.

    Args:
        target: the candidate's name or path.
        shape: one -1 may stand for what is left. Below a path, arrays that do not fit it stay as they are. Default: the
            shape that the candidate's array has.

    Raises:
        RecipeError: that is no shape.
    """
    if shape is None:
        return Transform("reshape", (_target("reshape", target),))
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    if not sizes or not all(type(n) is int and (n > 0 or n == -1) for n in sizes) or sizes.count(-1) > 1:
        raise RecipeError(f"mapping.reshape: the shape is {shown(shape)}; expected sizes such as (16, 3, 8, 8)")
    return Transform("reshape", (_target("reshape", target),), sizes)


def split(*targets: Target, axis: int = 0) -> Transform:
    """Map one array to several that lie side by side in it; their own shapes say where it is cut.

    Args:
        targets: the candidate's names or paths, in order: split("q", "k", "v").
        axis: the one along which they lie; -1 for merged weights stored [in, out].

    Raises:
        RecipeError: there are fewer than two targets.
    """
    if len(targets) < 2:
        raise RecipeError(f"mapping.split has {len(targets)} targets; expected two or more, as split('q', 'k', 'v')")
    return Transform("split", tuple(_target("split", t) for t in targets), axis=_axis("split", axis))


def concat(target: Target, axis: int = 0) -> Transform:
    """Map several arrays of the reference, whose names are a tuple, to one in which they lie side by side.

    Args:
        target: the candidate's name or path: ``{("q", "k", "v"): concat("qkv")}``.
        axis: the one along which they lie; -1 for merged weights stored [in, out].
    """
    return Transform("concat", (_target("concat", target),), axis=_axis("concat", axis))


def _target(word: str, value: object) -> Target:
    if not isinstance(value, (str, Transform)):
        raise RecipeError(f"mapping.{word}: a target is {shown(value)}; expected a path of the candidate")
    if isinstance(value, Transform) and value.word == "concat":
        raise RecipeError(f"mapping.{word}: concat comes first, as concat({word}(...))")
    return value


def _axis(word: str, value: object) -> int:
    if type(value) is not int:
        raise RecipeError(f"mapping.{word}: axis is {shown(value)}; expected a whole number")
    return value


def _axes(word: str, value: object) -> tuple[int, ...]:
    axes = tuple(value) if isinstance(value, (tuple, list)) else ()
    if not axes or not all(type(n) is int for n in axes) or sorted(axes) != list(range(len(axes))):
        raise RecipeError(f"mapping.{word}: axes is {shown(value)}; expected a permutation such as (0, 2, 3, 1)")
    return axes


def leaves(target: Target) -> tuple[str, ...]:
    """Return the names that a target comes to, in order."""
    return (target,) if isinstance(target, str) else tuple(name for part in target.to for name in leaves(part))


def words(target: Target, numbered: bool = False) -> list[str]:
    """Return the kinds of transforms in a target; with `numbered`, of those that say axes or a shape."""
    if isinstance(target, str):
        return []
    own = [target.word] if target.numbers is not None or not numbered else []
    return own + [word for part in target.to for word in words(part, numbered)]


def renamed(target: Target, translate: Callable[[str], str]) -> Target:
    """Replace the names in a target."""
    if isinstance(target, str):
        return translate(target)
    return replace(target, to=tuple(renamed(part, translate) for part in target.to))


def simplified(target: Target, shape: Shape, shapes: Shapes) -> Target:
    """Leave out what does nothing to an array of that shape, as a transposition of a bias."""
    if isinstance(target, str):
        return target
    below = _shapes(target, shape, shapes)
    parts = tuple(simplified(part, size, shapes) for part, size in zip(target.to, below, strict=True))
    still = target.word == "transpose" and _order(target, len(shape)) == tuple(range(len(shape)))
    if target.word == "layout" or still or (target.word == "reshape" and below[0] == shape):
        return parts[0]
    return replace(target, to=parts)


def layout_of(target: Target) -> tuple[int, ...] | None:
    """Return the axes of the layout in a target; None where it has none."""
    while isinstance(target, Transform) and len(target.to) == 1:
        if target.word == "layout":
            return target.numbers
        target = target.to[0]
    return None


def taken_apart(target: Target, array: Array, shapes: Shapes) -> dict[str, Array]:
    """Send an array to its targets; returns views where NumPy can.

    Raises:
        RecipeError: it does not come out in their shapes.
    """
    if isinstance(target, str):
        if array.shape != shapes[target]:
            raise RecipeError(f"it comes out as {list(array.shape)}, but {target!r} is {list(shapes[target])}")
        return {target: array}
    parts: dict[str, Array] = {}
    for part, piece in zip(target.to, _apply(target, array, shapes), strict=True):
        parts |= taken_apart(part, piece, shapes)
    return parts


def put_together(target: Target, arrays: Mapping[str, Array], shape: Shape, shapes: Shapes) -> Array:
    """Undo `taken_apart`: return the array of that shape."""
    if isinstance(target, str):
        return arrays[target]
    below = _shapes(target, shape, shapes)
    parts = [put_together(part, arrays, size, shapes) for part, size in zip(target.to, below, strict=True)]
    if target.word == "split":
        return np.concatenate(parts, axis=target.axis)
    if target.word == "transpose":
        return parts[0].transpose(np.argsort(_order(target, len(shape))))
    return parts[0].reshape(shape)


def _apply(target: Transform, array: Array, shapes: Shapes) -> list[Array]:
    if target.word == "split":
        sizes = [shape[target.axis] for shape in _shapes(target, array.shape, shapes)]
        return np.split(array, np.cumsum(sizes)[:-1], axis=target.axis)
    if target.word == "transpose":
        return [array.transpose(_order(target, array.ndim))]
    return [array.reshape(_shapes(target, array.shape, shapes)[0])]


def _order(target: Transform, ndim: int) -> tuple[int, ...]:
    axes = target.numbers or tuple(reversed(range(ndim)))
    return axes if len(axes) == ndim else tuple(range(ndim))


def _shapes(target: Transform, shape: Shape, shapes: Shapes) -> list[Shape]:
    """Return the shapes that an array has behind a transform."""
    if target.word == "split":
        return _cut(target, shape, shapes)
    if target.word == "transpose":
        return [tuple(shape[axis] for axis in _order(target, len(shape)))]
    if target.word == "reshape":
        below = target.to[0]
        if target.numbers is not None:
            return [_fitted(target.numbers, shape)]
        if not isinstance(below, str):
            raise RecipeError(f"{target!r} says no shape, which only a name has; give one")
        if math.prod(shapes[below]) == math.prod(shape):
            return [shapes[below]]
    return [shape]


def _fitted(sizes: tuple[int, ...], shape: Shape) -> Shape:
    """Fill in a -1; the old shape where the numbers do not fit the new one."""
    count, known = math.prod(shape), abs(math.prod(sizes))
    if -1 in sizes:
        return tuple(count // known if n == -1 else n for n in sizes) if count % known == 0 else shape
    return sizes if known == count else shape


def _cut(target: Transform, shape: Shape, shapes: Shapes) -> list[Shape]:
    """Cut along an axis into parts with as many numbers as their targets hold."""
    if not -len(shape) <= target.axis < len(shape):
        raise RecipeError(f"{list(shape)} has no axis {target.axis}")
    axis = target.axis % len(shape)
    counts = [sum(math.prod(shapes[name]) for name in leaves(part)) for part in target.to]
    width = math.prod(shape) // (shape[axis] or 1)
    if sum(counts) != math.prod(shape) or any(count % width for count in counts):
        parts = " and ".join(str(list(shapes[name])) for name in leaves(target))
        raise RecipeError(f"{list(shape)} cannot be cut along axis {target.axis} into {parts}")
    return [(*shape[:axis], count // width, *shape[axis + 1 :]) for count in counts]
