"""A miniature of ResNet-18 as the core sees it: descriptions alone."""

from __future__ import annotations

from tlx.backend import ParamSpec
from tlx.models.zoo import architecture

ARCH = architecture("resnet18")


def _norm(path: str) -> list[ParamSpec]:
    return [ParamSpec(f"{path}.{leaf}", (4,), "float32", "norm", path) for leaf in ("weight", "bias")]


def _statistics(path: str) -> list[ParamSpec]:
    return [ParamSpec(f"{path}.{leaf}", (4,), "float32", "statistic", path) for leaf in ("running_mean", "running_var")]


_BLOCKS = [("conv1", "bn1"), *((f"layer{i}.0.conv1", f"layer{i}.0.bn1") for i in range(1, 5))]

SPECS = (
    *(
        spec
        for conv, norm in _BLOCKS
        for spec in (ParamSpec(f"{conv}.weight", (4, 4, 3, 3), "float32", "weight", conv), *_norm(norm))
    ),
    ParamSpec("fc.weight", (10, 4), "float32", "weight", "fc"),
    ParamSpec("fc.bias", (10,), "float32", "bias", "fc"),
    *(spec for _, norm in _BLOCKS for spec in _statistics(norm)),
)
PARAMS = tuple(spec.name for spec in SPECS if spec.role != "statistic")
