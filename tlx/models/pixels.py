"""What a model expects of its pixels: data of the model, which a recipe may overrule field by field."""

from __future__ import annotations

from dataclasses import dataclass

from tlx.backend.preprocess import Aspect, Interpolation, Triple


@dataclass(frozen=True, slots=True)
class Pixels:
    """How a model's weights were trained to see an image.

    Attributes:
        size: height and width of the network's input, in pixels.
        mean: of each channel, RGB, on the scale from 0 to 1.
        std: of each channel, likewise.
        interpolation: how photos are resampled; always antialiased.
        crop_fraction: fraction of a photo's sides that evaluation keeps: of the shorter one where it crops.
        aspect: how a photo becomes square: "crop" keeps the central square, "squash" changes the ratio of its sides,
            "letterbox" adds margins.
    """

    size: int = 224
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    crop_fraction: float = 0.875
    aspect: Aspect = "crop"


IMAGENET = Pixels()  # as torchvision's weights expect
