"""Every model of the zoo computes the same on both backends: the forward pass, and one training step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.backends import FRAMEWORKS
from support.distance import relative_distance
from support.one_step import one_step
from tlx.backend import ModelSpec, registry
from tlx.models.initial_values import initial_values
from tlx.models.zoo import ARCHITECTURES, Architecture, architecture
from tlx.proof.zoo_table import measured

pytestmark = [pytest.mark.slow, pytest.mark.needs(*FRAMEWORKS)]

# One of each family; VGG, whose smallest has 129 million parameters, is held to AlexNet's likeness by its names alone.
FAMILIES = (
    *("resnet18", "squeezenet1_0", "alexnet", "densenet121", "efficientnet_b0", "mobilenet_v2", "mobilenet_v3_small"),
    *("mnasnet0_5", "shufflenet_v2_x0_5", "regnet_x_400mf", "regnet_y_400mf", "googlenet", "inception_v3"),
)
TABLE = Path(__file__).parents[2] / "docs" / "parity-zoo.md"
HUGE = {  # over 80 million parameters each; smaller ones of their families are built, here or in test_transformers.py
    *("resnext101_64x4d", "vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14", "swin_b"),
    *("convnext_base", "convnext_large"),
    *("vgg11", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn", "wide_resnet101_2", "resnext101_32x8d"),
    *("regnet_x_32gf", "regnet_y_16gf", "regnet_y_32gf", "regnet_y_128gf"),
}


def built(name: str, arch: Architecture, precision: Any) -> tuple[Any, Any, Any]:
    backend = registry.load(name)
    model = backend.build(ModelSpec(arch.name, 7, arch.head, arch.options_at(arch.pixels.size)), "cpu", precision)
    return backend, model, backend.param_specs(model)


def computed(name: str, arch: Architecture) -> tuple[Any, ...]:
    """Descriptions, eval logits, features, loss, and the gradients: what one step of plain SGD at rate 1 takes away."""
    backend, model, specs = built(name, arch, "float64")
    start = initial_values(specs, arch, "none", 0)[0]
    size = max(48, arch.min_size)
    return specs, *one_step(backend, model, specs, start, size, rows=4, adapts=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_both_backends_compute_the_same(name: str) -> None:
    """Dropout and stochastic depth included. What is zero but for rounding is held to the size of all gradients."""
    reference, candidate = (computed(backend, architecture(name)) for backend in FRAMEWORKS)
    for a, b in zip(reference[1:4], candidate[1:4], strict=True):
        assert np.isfinite(a).all() and relative_distance(a, b) <= 1e-10
    largest = max(float(np.linalg.norm(moved)) for moved in reference[4].values())
    for key, moved in reference[4].items():
        apart = float(np.linalg.norm(moved - candidate[4][key]))
        assert apart <= 1e-8 * max(float(np.linalg.norm(moved)), 1e-4 * largest), key


@pytest.mark.thorough  # tests/proof/test_zoo_table.py does so with a tiny network
def test_a_line_of_the_table_of_all_models() -> None:
    """By the command that makes docs/parity-zoo.md."""
    cell = measured("squeezenet1_1", "sgd", 49)
    assert cell.equal and cell.locked > 4 and cell.unseen is not None and cell.unseen < 1e-2, str(cell)
    assert cell.figures.keys() == {"P0", "P1", "P2", "P3", "P4", "P5", "P6"}
    assert cell.figures["P1"] == cell.figures["P2"] == 0 and 0 < cell.figures["P4"] <= 1e-10
    assert 0 < cell.figures["P6"] <= 100
    assert f"{cell.parameters / 1e6:.1f} M" in str(cell) and cell.parameters > 500_000


def test_the_table_has_a_line_for_each_model_of_imagenet() -> None:
    rows = [row.split(" | ")[0][2:] for row in TABLE.read_text(encoding="utf-8").splitlines() if " M | " in row]
    listed = list(dict.fromkeys(rows))
    assert listed == [arch.name for arch in ARCHITECTURES.values() if arch.imagenet]


@pytest.mark.parametrize(
    "arch", [a for a in ARCHITECTURES.values() if a.imagenet and a.name not in HUGE], ids=lambda a: a.name
)
def test_parameters_have_the_same_names_shapes_and_roles(arch: Architecture) -> None:
    assert all(arch.name in registry.load(backend).capabilities().models for backend in FRAMEWORKS)
    reference, candidate = ([*built(backend, arch, "float32")[1:]] for backend in FRAMEWORKS)
    assert reference[1] == candidate[1]
    drops = [[(layer.p, layer.axes) for layer in model.dropouts] for model, _ in (reference, candidate)]
    assert drops[0] == drops[1]
    stages = {arch.stage_of(spec.module) for spec in reference[1] if spec.role != "statistic"}
    assert stages == {"head", *(stage for stage, _ in arch.stages)}
    head = [spec.shape[0] for spec in reference[1] if arch.stage_of(spec.module) == "head"]
    assert head == [7, 7]
