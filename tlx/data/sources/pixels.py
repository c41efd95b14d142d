"""Images as they are passed in Python (Pillow, arrays, tensors of a framework), brought to RGB in 8 bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlx.data.images import to_rgb
from tlx.errors import DataError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

ROUNDING = 1e-3  # beyond 0 .. 1 that resampling in floating point may leave; it changes no 8-bit value
EXPECTED = "[height, width, 3], [3, height, width] or [height, width]"
UNTRANSFORMED = "give them without Normalize: tlx does the preprocessing"


class SystematicError(DataError):
    """A mistake of all samples alike, such as the scale of their pixels: leaving some out would mend nothing."""


def as_numpy(value: Any) -> NDArray[Any] | None:
    """Return an array, a framework's tensor, or whatever else converts itself to an array; None for anything else."""
    from PIL.Image import Image

    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, (str, bytes, int, float, list, tuple, Mapping, Path, Image)) or value is None:
        return None
    if not callable(getattr(value, "numpy", None)) and not hasattr(value, "__array__"):
        return None
    try:
        for step in ("detach", "cpu", "numpy"):  # a tensor may need gradients, or lie on a device
            if callable(getattr(value, step, None)):
                value = getattr(value, step)()
        return np.asarray(value)
    except Exception as error:
        raise DataError(f"a {type(value).__name__} cannot be read as an array: {one_line(str(error))}") from error


def is_path(image: Any) -> bool:
    """Whether an image is given as the path of its file."""
    return isinstance(image, (str, Path)) and bool(str(image)) and "\0" not in str(image)


def as_image(image: Any, where: str, remarks: Counter[str] | None = None) -> Image:
    """Return an image in mode RGB.

    Args:
        image: a Pillow image, an array or a tensor.
        where: names the image in errors.
        remarks: counts what was done that a user should know.

    Raises:
        DataError: it is no image; the text says what it is. `SystematicError` if all images will be so.
    """
    from PIL import Image as module

    if isinstance(image, module.Image):
        return to_rgb(image, where)
    array = as_numpy(image)
    if array is None:
        raise DataError(f"{where} is {describe(image)}; expected a Pillow image, an array {EXPECTED}, or a path")
    return module.fromarray(to_pixels(array, where, tensor=hasattr(image, "detach"), remarks=remarks))


def to_pixels(
    array: NDArray[Any], where: str, *, tensor: bool = False, batch: bool = False, remarks: Counter[str] | None = None
) -> NDArray[np.uint8]:
    """Return an image as uint8 [H, W, 3], or a batch of them as uint8 [N, H, W, 3].

    Grey becomes three equal channels, alpha is dropped, booleans are black and white, and floats in 0 .. 1 are rounded
    to 0 .. 255. Where the first and the last axis may both be the channels, they are the last in an array and the first
    in a tensor.

    Raises:
        DataError: the shape is not that of images, or a pixel is not finite.
        SystematicError: the values are neither 0 .. 255 in integers nor 0 .. 1 in floats.
    """
    remarks = Counter() if remarks is None else remarks
    shape = array.shape[1:] if batch else array.shape
    count = "N, " if batch else ""
    expected = EXPECTED.replace("[", f"[{count}")
    if 0 in array.shape or len(shape) not in (2, 3):
        raise DataError(f"{where}: expected {expected}; got {_facts(array)}")
    if len(shape) == 2:
        array = array[..., None]
    else:
        first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
        if not first and not last:
            raise DataError(f"{where}: expected {expected}; got {_facts(array)}")
        if first and last and not tensor and shape[2] == 4:
            raise SystematicError(
                f"{where}: {_facts(array)} may be [{count}channels, height, 4] or [{count}height, width, RGBA]",
                fix="leave alpha out (images[..., :3]) or put the channels last",
            )
        if first and (tensor or not last):
            array = np.moveaxis(array, -3, -1)
        if first and last:
            order = "channels, height, width" if tensor else "height, width, channels"
            remarks[f"images {list(shape)} were taken as [{order}]"] += 1
    if array.shape[-1] == 4:
        remarks["alpha, the fourth channel, was dropped"] += 1
        array = array[..., :3]
    pixels = _eight_bits(array, where, remarks)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:-1], 3)))


def _eight_bits(array: NDArray[Any], where: str, remarks: Counter[str]) -> NDArray[np.uint8]:
    kind = array.dtype.kind
    if kind == "b":
        remarks["pixels of type bool were taken as black and white"] += 1
        return array.astype(np.uint8) * np.uint8(255)
    if kind not in "uif":
        raise DataError(f"{where}: pixels are {array.dtype}; expected uint8 0 .. 255, or floats 0 .. 1")
    low, high = array.min(), array.max()
    if kind in "ui":
        if low < 0 or high > 255:
            raise SystematicError(
                f"{where}: pixels are {array.dtype} from {low} to {high}; expected 0 .. 255",
                fix="(images // 256).astype(np.uint8)" if array.dtype == np.uint16 else "convert them to uint8",
            )
        if high == 1:
            remarks["no pixel is above 1 of 255, which is nearly black: if 1 means white, multiply by 255"] += 1
        return array.astype(np.uint8, copy=False)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{where}: pixels are not all finite numbers (NaN or infinity)")
    if low < -ROUNDING or high > 1 + ROUNDING:
        shown = (
            f"{where}: pixels are {array.dtype} from {low:.4g} to {high:.4g}; expected floats 0 .. 1 or uint8 0 .. 255"
        )
        if low >= 0:
            raise SystematicError(shown, fix="images.astype(np.uint8)" if high <= 255 else "convert them to uint8")
        raise SystematicError(f"{shown}. They seem to be normalised", fix=UNTRANSFORMED)
    remarks["floats 0 .. 1 were rounded to 0 .. 255"] += 1
    scaled = np.clip(array.astype(np.float32, copy=False), 0, 1) * np.float32(255)
    pixels: NDArray[np.uint8] = np.rint(scaled).astype(np.uint8)
    return pixels


def describe(value: Any) -> str:
    """Say in a few words what a value is, for an error."""
    if value is None:
        return "None"
    try:
        if isinstance(value, (str, int, float)):
            text = repr(value)
            what = "text" if isinstance(value, str) else "number"
            return f"the {what} {text if len(text) <= 40 else text[:39] + '…'}"
        facts = " ".join(str(fact) for fact in (getattr(value, "dtype", ""), _shape(value)) if str(fact))
    except Exception:  # an object of foreign code may fail at anything
        facts = ""
    name = "array" if isinstance(value, np.ndarray) else type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name} {facts}".rstrip()


def _shape(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return str(list(shape)) if isinstance(shape, tuple) else ""


def _facts(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
