"""Filters choose parameters; groups hold each exactly once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.resnet import ARCH, PARAMS, SPECS
from tlx.errors import RecipeError
from tlx.strategy.filters import partition, select

BACKBONE = PARAMS[:-2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", PARAMS),
        ("head", ("fc.weight", "fc.bias")),
        ("!head", BACKBONE),
        ("backbone", BACKBONE),
        ("stage:stem", ("conv1.weight", "bn1.weight", "bn1.bias")),
        ("stage:layer4 role:norm", ("layer4.0.bn1.weight", "layer4.0.bn1.bias")),
        ("stage:layer4 !role:norm", ("layer4.0.conv1.weight",)),
        ("name:fc.b* | stage:layer4 role:weight", ("layer4.0.conv1.weight", "fc.bias")),
        ("head role:bias", ("fc.bias",)),
    ],
)
def test_filters(text: str, expected: tuple[str, ...]) -> None:
    assert select(text, SPECS, ARCH, "here") == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name:fc1.*", "Phase 'x': pattern 'fc1.*' matches no parameter of resnet18. Did you mean 'fc.bias'"),
        ("stage:layer5", "no stage 'layer5'. Did you mean 'layer4'"),
        ("role:norms", "unknown role 'norms'. Did you mean 'norm'"),
        ("haed", "unknown filter 'haed'"),
        ("head role:norm", "matches no parameter"),
        ("", "empty filter"),
        ("head |", "empty filter"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        select(text, SPECS, ARCH, "Phase 'x'")
    assert said in str(error.value)


def test_a_parameter_in_two_groups_or_in_none_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'fc.weight' is in two groups, 'a' and 'b'"):
        partition([("a", "all"), ("b", "head")], SPECS, ARCH)
    with pytest.raises(RecipeError, match=r"In no group: conv1.weight, .* and 11 more"):
        partition([("head", "head")], SPECS, ARCH)


@given(st.sampled_from(["head", "role:norm", "stage:layer3", "role:bias", "name:*.bias", "stage:stem role:norm"]))
def test_a_filter_and_its_complement_divide_the_model(text: str) -> None:
    inside = select(text, SPECS, ARCH, "")
    rest = [name for name in PARAMS if name not in inside]
    groups = dict(partition([("in", text), ("out", " | ".join(f"name:{name}" for name in rest))], SPECS, ARCH))
    assert sorted(groups["in"] + groups["out"]) == sorted(PARAMS)
