"""The table of models, and the description of a module of one's own."""

from __future__ import annotations

import pytest

from tlx.backend import ParamSpec
from tlx.errors import RecipeError, WeightsError
from tlx.models.zoo import ARCHITECTURES, architecture, architectures, own_architecture


def specs(*modules: str) -> list[ParamSpec]:
    return [ParamSpec(f"{module}.weight".lstrip("."), (2, 2), "float32", "weight", module) for module in modules]


@pytest.mark.parametrize(
    ("modules", "head", "stages"),
    [
        (("conv1", "conv2", "fc"), "fc", ("conv1", "conv2")),
        (("body.0", "body.3", "body.6.conv", "fc"), "fc", ("body.0", "body.3", "body.6")),
        (("net.features.0", "net.features.2", "net.fc"), "net.fc", ("net.features.0", "net.features.2")),
        (("stem", "trunk.a.conv", "trunk.b", "classifier.1"), "classifier.1", ("stem", "trunk")),
        (("classifier.0", "classifier.2"), "classifier.2", ("classifier.0",)),
        (("body", "fc"), "fc", ("body",)),
        (("body", "head.0", "head.2"), "head.2", ("body", "before_head")),
    ],
)
def test_stages_of_an_own_module_are_its_children(modules: tuple[str, ...], head: str, stages: tuple[str, ...]) -> None:
    arch = own_architecture("Net", head, specs(*modules))
    assert tuple(name for name, _ in arch.stages) == stages and arch.head == head
    assert {arch.stage_of(module) for module in modules} == {*stages, "head"}


def test_names_of_checkpoints_are_translated() -> None:
    dense = architecture("densenet121")
    old = {"features.denseblock2.denselayer11.norm.1.weight": 1, "features.denseblock2.denselayer11.conv.2.weight": 2}
    new = {"features.denseblock2.denselayer11.norm1.weight": 1, "features.denseblock2.denselayer11.conv2.weight": 2}
    assert dense.translate(old) == new == dense.translate(new)
    with pytest.raises(WeightsError, match="under its old name and under its new one"):
        dense.translate({**old, **new})
    google = architecture("googlenet")
    assert google.translate({"aux1.fc1.weight": 1, "aux2.conv.bn.bias": 2, "conv1.bn.bias": 3}) == {"conv1.bn.bias": 3}
    assert architecture("resnet18").translate({"aux1.x": 1}) == {"aux1.x": 1}


def test_stages_do_not_overlap_and_an_unknown_module_is_named() -> None:
    for arch in ARCHITECTURES.values():
        paths = [path for _, covered in arch.stages for path in covered]
        assert len(set(paths)) == len(paths) and arch.head not in paths
    with pytest.raises(RecipeError, match="resnet18: module 'layer9' belongs to no stage"):
        architecture("resnet18").stage_of("layer9")


def test_models_that_only_tests_use_are_in_no_listing_and_no_hint() -> None:
    hidden = {arch.name for arch in ARCHITECTURES.values() if arch.hidden}
    assert hidden == {"tiny-mlp", "tiny-mlp-dropout"} and architecture("tiny-mlp").hidden
    assert hidden.isdisjoint(arch.name for arch in architectures())
    with pytest.raises(RecipeError, match=r"^Unknown model 'tiny-mpl'") as raised:
        architecture("tiny-mpl")
    assert "tiny-mlp" not in str(raised.value)
