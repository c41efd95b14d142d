"""Any sequence of (image, label) in Python, such as a list or a torchvision data set, read when needed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlx.data.images import ArrayImages, Images, View, seen, to_rgb
from tlx.data.split import check_labels
from tlx.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLED = 16  # images that enter the fingerprint


@dataclass(frozen=True, slots=True, eq=False)
class SequenceImages:
    """Images of a sequence; `indices` are their places in it. It is read by several threads at once."""

    source: Any
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def names(self) -> Sequence[str]:
        """The places in the sequence, as text."""
        return [str(i) for i in self.indices]

    @property
    def size(self) -> None:
        """None: the images may have many sizes."""
        return None

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int, view: View | None = None) -> Image:
        """Image `index` in mode RGB: the whole, or a view of it."""
        place = int(self.indices[index])
        try:
            image = self.source[place][0]
        except Exception as error:
            raise DataError(f"data: image {place} of {_kind(self.source)} cannot be read: {error}") from error
        return seen(as_image(image, f"data: image {place} of {_kind(self.source)}"), view)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as uint8 [H, W, 3]."""
        return np.asarray(self.open(index))

    def select(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> SequenceImages:
        """The images at `indices`, in that order, under new labels."""
        return SequenceImages(self.source, self.indices[indices], labels)

    def digest(self) -> bytes:
        """Covers the kind, the places, and the pixels of a few images: reading all may take as long as an epoch."""
        digest = hashlib.sha256(f"{_kind(self.source)} {len(self.source)}".encode())
        digest.update(self.indices.astype("<i8").tobytes())
        for index in np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(int)):
            pixels = self.pixels(int(index))
            digest.update(repr(pixels.shape).encode() + pixels.tobytes())
        return digest.digest()


def is_sequence(source: Any) -> bool:
    """Whether it has a length and items by number, and is not text, a mapping or an array."""
    able = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    return able and not isinstance(source, (str, bytes, dict, np.ndarray))


def from_sequence(source: Any, part: str) -> tuple[Images, tuple[str, ...] | None]:
    """Return the images of a sequence of (image, label), and its class names if it has `classes`.

    Images are Pillow's, or uint8 arrays [H, W], [H, W, 1] or [H, W, 3]. Labels come from `targets` or `labels` where it
    has these; otherwise every item is read once. A list whose images are arrays of one size is held in memory.
    """
    if not len(source):
        raise DataError(f"data: {part} is empty.")
    labels = _labels(source, part)
    names = getattr(source, "classes", None)
    classes = tuple(str(name) for name in names) if isinstance(names, (list, tuple)) else None
    numbers = check_labels(labels, None if classes is None else len(classes), part)
    if len(numbers) != len(source):
        raise DataError(f"{part}: {len(source)} images but {len(numbers)} labels.")
    if isinstance(source, (list, tuple)):
        arrays = [item[0] for item in source]
        if all(isinstance(a, np.ndarray) and a.shape == arrays[0].shape for a in arrays):
            pixels = np.stack([np.asarray(as_image(a, f"{part}: image {i}")) for i, a in enumerate(arrays)])
            planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
            return ArrayImages(planes, numbers, [f"{part}/{i}" for i in range(len(numbers))]), classes
    images = SequenceImages(source, np.arange(len(numbers), dtype=np.int64), numbers)
    images.open(0)  # finds images of the wrong kind before anything trains
    return images, classes


def _labels(source: Any, part: str) -> Any:
    for name in ("targets", "labels"):
        labels = getattr(source, name, None)
        if labels is not None and not callable(labels):
            return np.asarray(labels)
    labels_of_items = []
    for i in range(len(source)):
        try:
            _, label = source[i]
        except (TypeError, ValueError) as error:
            raise DataError(f"{part}: item {i} is not a pair (image, label).") from error
        except Exception as error:
            raise DataError(f"{part}: item {i} cannot be read: {' '.join(str(error).split())}") from error
        labels_of_items.append(label if isinstance(label, (str, float)) else np.asarray(label))
    return labels_of_items


def as_image(image: Any, where: str) -> Image:
    """Return an image in mode RGB; a DataError says what it was where that is impossible."""
    from PIL import Image as module

    if isinstance(image, module.Image):
        return to_rgb(image, where)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[..., 0]
        if (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)) and image.size:
            return module.fromarray(np.ascontiguousarray(image)).convert("RGB")
    facts = f"{getattr(image, 'dtype', '')} {list(getattr(image, 'shape', []))}".strip()
    raise DataError(
        f"{where} is a {type(image).__name__} {facts}; expected a Pillow image or uint8 [H, W, 3] or [H, W]. "
        "A torchvision data set gives that without a transform: tlx does the preprocessing."
    )


def _kind(source: Any) -> str:
    return type(source).__name__
