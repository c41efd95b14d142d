"""How uint8 pixels enter the network: what an image keeps of its shape, how it is resampled and normalised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tlx.errors import BackendError

Array = NDArray[Any]
Interpolation = Literal["bilinear", "bicubic"]
Aspect = Literal["crop", "squash", "letterbox"]
Triple = tuple[float, float, float]  # of red, green and blue


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How uint8 pixels enter the network: scale to 0..1, normalise, enlarge to `size` x `size`.

    Shrinking happens in the core, with antialiasing; a backend only ever enlarges.
    """

    size: int
    mean: Triple = (0.485, 0.456, 0.406)  # of ImageNet, RGB, as torchvision's weights expect
    std: Triple = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"

    def apply(self, images: Array, dtype: Any = np.float32) -> Array:
        """Return uint8 images [N, 3, h, w], at most `size` pixels high and wide, as [N, 3, size, size] of a dtype.

        This is the definition in NumPy of what `Backend.put` does on the device.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or max(images.shape[2:]) > self.size:
            raise BackendError(
                f"images are {images.dtype} {list(images.shape)}; expected uint8 [N, 3, h, w] of at most {self.size} "
                "pixels; shrink larger ones first"
            )
        mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (self.mean, self.std))
        rows, columns = (enlarging(side, self.size, self.interpolation) for side in images.shape[2:])
        return np.asarray(rows @ ((images / 255 - mean) / std) @ columns.T, dtype)


def enlarging(old: int, new: int, interpolation: Interpolation = "bilinear") -> Array:
    """Return the matrix [new, old] that enlarges between pixel centres (align_corners=False)."""
    places, weights = taps(old, new, interpolation)
    pixels = np.eye(old)
    matrix = pixels[places[:, 0]] * weights[:, :1]
    for tap in range(1, places.shape[1]):
        matrix = matrix + pixels[places[:, tap]] * weights[:, tap, None]
    return np.asarray(matrix)


def taps(
    old: int, new: int, interpolation: Interpolation, start: float = 0.0, length: float | None = None
) -> tuple[Array, Array]:
    """Return of which pixels each of `new` points is made, int64 [new, taps], and their weights, float64 [new, taps].

    The points lie evenly on `length` of `old` pixels, by default on all, from `start` on; pixels beyond an edge are
    those at it. Nothing is averaged where points are fewer than pixels. The weights are those of PyTorch's
    `interpolate` without antialias: linear, or the cubic convolution of Keys 1981 with a = -0.75.
    """
    place = start + (np.arange(new) + 0.5) * (old if length is None else length) / new - 0.5
    if interpolation == "bilinear":
        place = np.maximum(place, 0)
        low = place.astype(int)
        share = place - low
        return np.minimum(np.stack([low, low + 1], 1), old - 1), np.stack([1 - share, share], 1)
    around = np.floor(place).astype(int)[:, None] + np.arange(-1, 3)
    far = np.abs(place[:, None] - around)
    near, outer = (1.25 * far - 2.25) * far * far + 1, ((-0.75 * far + 3.75) * far - 6) * far + 3
    return np.clip(around, 0, old - 1), np.where(far <= 1, near, outer)
