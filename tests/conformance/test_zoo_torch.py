"""The table of models says what torchvision publishes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.backends import skip_module_without
from tlx.models.initial_values import initial_values
from tlx.models.positions import resampled
from tlx.models.zoo import ARCHITECTURES, IMAGENET_URL, Architecture, architecture, architectures

skip_module_without("torch")

import torch
from torchvision.models import get_model, get_model_weights
from torchvision.models.vision_transformer import interpolate_embeddings

from tlx.backend import Backend, ModelSpec
from tlx.backend.registry import load

# The only kinds that these have; the first is for larger images, and the second for those of 224 pixels.
SWAG = {"regnet_y_128gf": "IMAGENET1K_SWAG_E2E_V1", "vit_h_14": "IMAGENET1K_SWAG_LINEAR_V1"}
PUBLISHED = [arch for arch in ARCHITECTURES.values() if arch.imagenet]


def weights_of(arch: Architecture) -> Any:
    published = {weights.name: weights for weights in get_model_weights(arch.name)}
    return published[SWAG.get(arch.name, "IMAGENET1K_V1")]


@pytest.mark.parametrize("arch", PUBLISHED, ids=lambda a: a.name)
def test_checkpoint_and_smallest_image(arch: Architecture) -> None:
    weights = weights_of(arch)
    assert IMAGENET_URL + arch.imagenet == weights.url
    if arch.patch:  # its positions are of one size there, and are resampled for others
        assert (arch.pixels.size, arch.pixels.size) == weights.meta["min_size"] and arch.min_size == arch.patch
    elif arch.name.startswith("swin"):  # which pads whatever it gets to whole windows
        get_model(arch.name).eval()(torch.zeros(1, 3, arch.min_size, arch.min_size))
    else:
        assert (arch.min_size, arch.min_size) == weights.meta["min_size"]


@pytest.mark.parametrize("arch", PUBLISHED, ids=lambda a: a.name)
def test_pixels_are_those_of_the_transforms_of_the_weights(arch: Architecture) -> None:
    transforms, pixels = weights_of(arch).transforms(), arch.pixels
    assert ([pixels.size], pixels.interpolation) == (transforms.crop_size, transforms.interpolation.value)
    assert pixels.crop_fraction == pixels.size / transforms.resize_size[0] and pixels.aspect == "crop"
    assert (pixels.mean, pixels.std) == (tuple(transforms.mean), tuple(transforms.std)) and transforms.antialias


def test_the_listed_sizes_are_torchvisions() -> None:
    import torchvision.models

    for arch in architectures():
        if arch.name in ("googlenet", "inception_v3"):  # whose published count includes the auxiliary heads of one
            model = getattr(torchvision.models, arch.name)(init_weights=False, aux_logits=False)
            count = sum(parameter.numel() for parameter in model.parameters())
        else:
            count = weights_of(arch).meta["num_params"]
        assert arch.parameters == count, arch.name


@pytest.mark.parametrize(("old", "new"), [(14, 2), (14, 24), (7, 1), (1, 4), (37, 16)])
def test_positions_are_resampled_as_torchvision_does(old: int, new: int) -> None:
    positions = np.random.default_rng(0).standard_normal((1, 1 + old * old, 8))
    state = interpolate_embeddings(16 * new, 16, {"encoder.pos_embedding": torch.from_numpy(positions)})
    np.testing.assert_allclose(resampled(positions, new), state["encoder.pos_embedding"].numpy(), rtol=0, atol=1e-13)


@pytest.fixture(scope="module")
def backend() -> Backend:
    return load("torch")


@pytest.mark.parametrize("name", ["swin_t", "convnext_tiny", pytest.param("vit_b_16", marks=pytest.mark.thorough)])
def test_random_weights_are_spread_as_torchvisions(backend: Backend, name: str) -> None:
    """The head is left out: torchvision's begins at zero, or narrow, and tlx draws that of every model alike."""
    arch = architecture(name)
    model = backend.build(ModelSpec(name, 1000, arch.head, arch.options_at(64)), "cpu", "float32")
    drawn = initial_values(backend.param_specs(model), arch, "none", 0)[0]
    torch.manual_seed(0)
    for key, value in get_model(name, **dict(arch.options_at(64))).state_dict().items():
        theirs, ours = value.numpy(), drawn[key]
        if key.startswith(f"{arch.head}."):
            continue
        if theirs.dtype.kind == "i" or np.ptp(theirs) == 0:
            assert np.array_equal(ours, theirs), key
        elif theirs.size >= 90:
            assert abs(ours.std() / theirs.std() - 1) < 6 / np.sqrt(theirs.size), key  # of a normal one: 0.7 / sqrt(n)
