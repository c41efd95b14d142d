"""Models of timm, as tlx builds them and as timm does, for the tests of both."""

from __future__ import annotations

from typing import Any

import timm
import torch
from numpy.typing import NDArray
from tlx_torch import timm_models
from torch import nn

from tlx.backend import ModelSpec, registry
from tlx.models.zoo import architecture

FIELDS: dict[str, Any] = {
    **{"data": "digits", "classes": ("0", "1"), "limit_train": 13, "limit_test": 4, "val_fraction": 0.2, "epochs": 2},
    **{"batch_size": 4, "weights": "none", "augment": "none", "lr": 1e-2, "image_size": 32},
    **{"precision": "float32"},
}


def built(model: str, size: int = 32, classes: int = 3, **head: Any) -> Any:
    arch = architecture(f"timm:{model}")
    return registry.load("torch").build(
        ModelSpec(arch.name, classes, arch.head, image_size=size, **head), "cpu", "float32"
    )


def timms_own(model: str, size: int = 32, classes: int = 3, **options: Any) -> nn.Module:
    """A model of timm with values that differ from those of its beginning."""
    torch.manual_seed(0)
    if timm_models.layout(f"timm:{model}").sized:
        options["img_size"] = size
    module: nn.Module = timm.create_model(model, num_classes=classes, **options)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand(tensor.shape))
    return module.eval()


def arrays_of(module: nn.Module) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


def pixels(size: int = 32, images: int = 2) -> torch.Tensor:
    return torch.rand(images, 3, size, size, generator=torch.Generator().manual_seed(1))
