"""Images in Python of every common shape, scale and type: the same pixels come out, or one line says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.listed import COUNT, LABELS, PIXELS, WHOLE, Listed, noted, refused
from tlx.data import load_data


class Tensor:
    """What of a tensor is used: it is brought to the host before it becomes an array."""

    def __init__(self, array: Any, on: str = "device") -> None:
        self.array, self.on = array, on

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return Tensor(self.array, "host")

    def numpy(self) -> Any:
        assert self.on == "host"
        return self.array


KINDS_OF_IMAGE: dict[str, Callable[[Any], Any]] = {
    "uint8": lambda x: x,
    "channels first": lambda x: x.transpose(2, 0, 1),
    "int64": lambda x: x.astype(np.int64),
    "uint16": lambda x: x.astype(np.uint16),
    "float32": lambda x: x.astype(np.float32) / np.float32(255),
    "float64": lambda x: x / 255,
    "float16": lambda x: (x.astype(np.float32) / np.float32(255)).astype(np.float16),
    "tensor": lambda x: Tensor(x.transpose(2, 0, 1)),
    "float tensor": lambda x: Tensor(x.transpose(2, 0, 1).astype(np.float32) / np.float32(255)),
    "RGBA": lambda x: np.concatenate([x, x[..., :1]], axis=-1),
    "RGBA, channels first": lambda x: np.concatenate([x, x[..., :1]], axis=-1).transpose(2, 0, 1),
    "Pillow": Image.fromarray,
}


@pytest.mark.parametrize("kind", KINDS_OF_IMAGE)
def test_an_image_may_be_of_any_common_kind(kind: str) -> None:
    images = [KINDS_OF_IMAGE[kind](pixels) for pixels in PIXELS]
    for source in (list(zip(images, LABELS, strict=True)), Listed(images=images, decode=False), (images, LABELS)):
        data = load_data(source, **WHOLE)
        assert all(np.array_equal(data.train.pixels(i), PIXELS[i]) for i in range(COUNT))


SHAPES: dict[str, tuple[Any, Any]] = {
    "NHW": (PIXELS[..., 0], PIXELS[..., :1]),
    "NHW1": (PIXELS[..., :1], PIXELS[..., :1]),
    "N1HW": (PIXELS[..., 0][:, None], PIXELS[..., :1]),
    "N3HW": (PIXELS.transpose(0, 3, 1, 2), PIXELS),
    "NHW4": (np.concatenate([PIXELS, PIXELS[..., :1]], axis=-1), PIXELS),
    "bool": (PIXELS > 127, (PIXELS > 127) * 255),
    "floats": (PIXELS / 255, PIXELS),
    "tensor": (Tensor(PIXELS.transpose(0, 3, 1, 2)), PIXELS),
    "tensor of width 3": (Tensor(PIXELS[:, :, :3].transpose(0, 3, 1, 2)), PIXELS[:, :, :3]),
    "height 3": (PIXELS[:, :3], PIXELS[:, :3]),
    "int64": (PIXELS.astype(np.int64), PIXELS),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_arrays_of_images_may_be_of_any_common_shape_and_type(shape: str) -> None:
    given, expected = SHAPES[shape]
    data = load_data({"train": (given, LABELS)}, val_fraction=0)
    assert data.train.size == expected.shape[1:3]
    for i in range(COUNT):
        assert np.array_equal(data.train.pixels(i), np.broadcast_to(expected[i], (*expected.shape[1:3], 3)))


def test_what_was_done_to_the_pixels_is_noted() -> None:
    for given, note in (
        (PIXELS / 255, "train: floats 0 .. 1 were rounded to 0 .. 255"),
        (PIXELS > 9, "train: pixels of type bool were taken as black and white"),
        (PIXELS // 200, "no pixel is above 1 of 255, which is nearly black"),
        (np.concatenate([PIXELS, PIXELS[..., :1]], axis=-1), "train: alpha, the fourth channel, was dropped"),
        (PIXELS[:, :3], "train: images [3, 5, 3] were taken as [height, width, channels]"),
    ):
        assert noted(load_data({"train": (given, LABELS)}, val_fraction=0), note)
    images = [pixels / 255 if i < 3 else pixels for i, pixels in enumerate(PIXELS)]
    data = load_data(list(zip(images, LABELS, strict=True)), **WHOLE)
    assert noted(data, "all: floats 0 .. 1 were rounded to 0 .. 255 (3 of 12 images)")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            PIXELS.astype(np.float32),
            "float32 from 0 to 255; expected floats 0 .. 1 or uint8 0 .. 255. Fix: images.astype(np.u",
        ),
        (
            PIXELS / 127.5 - 1,
            "from -1 to 1; expected floats 0 .. 1 or uint8 0 .. 255. They seem to be normalised. Fix: give",
        ),
        (PIXELS / 60 - 2, "They seem to be normalised"),
        (PIXELS.astype(np.int64) - 5, "pixels are int64 from -5 to 250; expected 0 .. 255"),
        (PIXELS.astype(np.uint16) * 200, "Fix: (images // 256).astype(np.uint8)"),
        (PIXELS.astype(complex), "pixels are complex128"),
        (PIXELS.transpose(0, 3, 1, 2)[..., :4], "may be [N, channels, height, 4] or [N, height, width, RGBA]"),
        (
            PIXELS[..., :2],
            "expected [N, height, width, 3], [N, 3, height, width] or [N, height, width]; got uint8 [12, 6, 5, 2]",
        ),
        (PIXELS.reshape(COUNT, -1), "got uint8 [12, 90]"),
        (PIXELS[None].repeat(COUNT, axis=0), "got uint8 [12, 12, 6, 5, 3]"),
    ],
)
def test_pixels_of_another_scale_or_shape_are_refused_and_never_clipped(images: Any, message: str) -> None:
    refused({"train": (images, LABELS)}, message)
    if images.ndim == 4:
        single = message.partition("from ")[0].replace("[N, ", "[").replace("[12, ", "[")
        for on_bad_image in ("error", "skip"):  # it is wrong with all, so that leaving some out would hide it
            refused(list(zip(images, LABELS, strict=True)), single, on_bad_image=on_bad_image)


def test_an_image_that_holds_nan_is_named_and_can_be_left_out() -> None:
    images = PIXELS / 255
    images[7, 2, 2] = np.nan
    refused({"train": (images, LABELS)}, "train: image 7 holds NaN or infinity. Fix: mend")
    refused(list(zip(images, LABELS, strict=True)), "image 7 of list: pixels are not all finite")
    for source in ({"train": (images, LABELS)}, {"train": list(zip(images, LABELS, strict=True))}):
        data = load_data(source, val_fraction=0, on_bad_image="skip")
        assert len(data.train) == 11 and np.array_equal(data.train.pixels(7), PIXELS[8])
