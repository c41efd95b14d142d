"""The transformers and ConvNeXt of both frameworks, with few narrow blocks: what their families are tested by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from tlx.backend import registry
from tlx.models.architecture import Architecture
from tlx.models.transformers import convnext, swin, vision_transformer
from tlx.models.zoo import ARCHITECTURES, register

TINY: tuple[Architecture, ...] = (
    vision_transformer("tiny_vit", "", 16, 3),
    swin("tiny_swin", "", (2, 2, 2)),
    convnext("tiny_convnext", ""),
)
NAMES = tuple(arch.name for arch in TINY)


def of_torchvision(drop: float) -> dict[str, Callable[..., Any]]:
    """Return what builds them with torchvision's classes; `drop` is the stochastic depth of the last block."""
    from torchvision import models

    block = models.convnext.CNBlockConfig
    blocks = [block(8, 16, 1), block(16, 24, 1), block(24, 32, 2), block(32, None, 1)]
    shape: Any = ([4, 4], 16, [2, 2, 2], [2, 4, 8], [7, 7])
    return {
        "tiny_vit": lambda image_size=32: models.VisionTransformer(image_size, 16, 3, 4, 32, 128),
        "tiny_swin": lambda: models.SwinTransformer(*shape, stochastic_depth_prob=drop),
        "tiny_convnext": lambda: models.ConvNeXt(blocks, drop),
    }


def of_flowvision(drop: float) -> dict[str, Callable[..., Any]]:
    """Return what builds them with flowvision's layers."""
    from tlx_oneflow import arranged

    return {
        "tiny_vit": lambda image_size=32: arranged.vit(16, 32, 3, 4)(image_size),
        "tiny_swin": arranged.swin(16, (2, 2, 2), (2, 4, 8), drop),
        "tiny_convnext": arranged.convnext((8, 16, 24, 32), (1, 1, 2, 1), drop),
    }


@contextmanager
def tiny_models(drop: float = 0.2) -> Iterator[None]:
    """Let recipes and both backends know them while the block runs."""
    builders = {"torch": of_torchvision(drop), "oneflow": of_flowvision(drop)}
    zoos = {name: cast(Any, registry.load(name)).zoo for name in builders}
    try:
        for arch in TINY:
            register(arch)
            for name, zoo in zoos.items():
                setattr(zoo, arch.name, builders[name][arch.name])
        yield
    finally:
        for arch in TINY:
            ARCHITECTURES.pop(arch.name, None)
            for zoo in zoos.values():
                vars(zoo).pop(arch.name, None)
