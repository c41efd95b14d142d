"""The table of models says what torchvision publishes."""

from __future__ import annotations

import pytest

from support.backends import skip_module_without
from tlx.models.zoo import ARCHITECTURES, IMAGENET_URL, Architecture, architectures

skip_module_without("torch")

from torchvision.models import get_model_weights

SWAG = "IMAGENET1K_SWAG_E2E_V1"  # the only kind that regnet_y_128gf has


@pytest.mark.parametrize("arch", [a for a in ARCHITECTURES.values() if a.imagenet], ids=lambda a: a.name)
def test_checkpoint_and_smallest_image(arch: Architecture) -> None:
    published = {weights.name: weights for weights in get_model_weights(arch.name)}
    weights = published.get("IMAGENET1K_V1") or published[SWAG]
    assert IMAGENET_URL + arch.imagenet == weights.url
    assert (arch.min_size, arch.min_size) == weights.meta["min_size"]


def test_the_listed_sizes_are_torchvisions() -> None:
    import torchvision.models

    for arch in architectures():
        if arch.name in ("googlenet", "inception_v3"):  # whose published count includes the auxiliary heads of one
            model = getattr(torchvision.models, arch.name)(init_weights=False, aux_logits=False)
            count = sum(parameter.numel() for parameter in model.parameters())
        else:
            count = next(iter(torchvision.models.get_model_weights(arch.name))).meta["num_params"]
        assert arch.parameters == count, arch.name
