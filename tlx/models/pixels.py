"""What a model expects of its pixels: data of the model, which a recipe may overrule field by field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Interpolation = Literal["bilinear", "bicubic"]
Aspect = Literal["crop", "squash", "letterbox"]
Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Pixels:
    """How a model's weights were trained to see an image.

    Attributes:
        size: height and width of the network's input, in pixels.
        mean: of each channel, RGB, on the scale from 0 to 1.
        std: of each channel, likewise.
        interpolation: how photos are resampled; always antialiased.
        crop_fraction: fraction of the shorter side that evaluation keeps of a photo.
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
