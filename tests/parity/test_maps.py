"""Two writings of one network: `rename=` with stars and transforms, derived and tried, on real modules."""

from __future__ import annotations

import re
from typing import Any

import pytest

import tlx
from support.backends import FRAMEWORKS
from support.ports import networks
from tlx import mapping
from tlx.errors import TlxError
from tlx.proof.result import Verdict

pytestmark = pytest.mark.needs(*FRAMEWORKS)

TO_SEPARATE = {
    "cls_token": mapping.reshape("token"),
    "pos_embed": mapping.reshape("position"),
    "patch_embed": mapping.reshape("patch"),
    "blocks.*.norm1": "layer.*.before",
    "blocks.*.attn.qkv": ("layer.*.attention.query", "layer.*.attention.key", "layer.*.attention.value"),
    "blocks.*.attn.proj": "layer.*.output",
    "blocks.*.norm2": "layer.*.after",
    "blocks.*.fc1": "layer.*.intermediate",
    "blocks.*.fc2": "layer.*.dense",
    "norm": "layernorm",
    "head": "classifier",
    None: "index",
}
TO_MERGED = {
    "position": mapping.reshape("pos_embed"),
    "token": mapping.reshape("cls_token"),
    "patch": mapping.reshape("patch_embed"),
    "layer.*.after": "blocks.*.norm2",
    "layer.*.before": "blocks.*.norm1",
    ("layer.*.attention.query", "layer.*.attention.key", "layer.*.attention.value"): "blocks.*.attn.qkv",
    "layer.*.output": "blocks.*.attn.proj",
    "layer.*.intermediate": "blocks.*.fc1",
    "layer.*.dense": "blocks.*.fc2",
    "layernorm": "norm",
    "classifier": "head",
    "index": None,
}
TO_POINTWISE = {
    "features.0": "downsample_layers.0",
    "features.1.*.layer_scale": mapping.reshape("stages.0.*.gamma"),
    "features.1.*.block.0": "stages.0.*.dwconv",
    "features.1.*.block.2": "stages.0.*.norm",
    "features.1.*.block.3": mapping.reshape("stages.0.*.pwconv1"),
    "features.1.*.block.5": mapping.reshape("stages.0.*.pwconv2"),
    "features.2": "downsample_layers.1",
    "features.3.*.layer_scale": mapping.reshape("stages.1.*.gamma"),
    "features.3.*.block.0": "stages.1.*.dwconv",
    "features.3.*.block.2": "stages.1.*.norm",
    "features.3.*.block.3": mapping.reshape("stages.1.*.pwconv1"),
    "features.3.*.block.5": mapping.reshape("stages.1.*.pwconv2"),
    "classifier.0": "norm",
    "classifier.2": "head",
}


def compared(reference: Any, candidate: Any, **options: Any) -> Any:
    return tlx.parity(
        reference=reference, candidate=candidate, **{"copy_weights": True, "quick": True, "image_size": 16, **options}
    )


def advice(reference: Any, candidate: Any, **options: Any) -> str:
    with pytest.raises(TlxError) as error:
        compared(reference, candidate, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.thorough  # the other direction is below
def test_separate_query_key_and_value_are_equal_to_merged_ones() -> None:
    """Adam's state is cut and joined too; weights alone decay, by the reference's roles."""
    report = compared(
        networks("torch").ViT(),
        networks("oneflow").SeparateViT(),
        **{"rename": TO_SEPARATE, "optimizer": "adamw", "decay_on": "weights", "strategy": "diff_lr"},
    )
    assert report.verdict == Verdict.EQUAL, str(report)
    stages = {stage.id: stage for stage in report.stages}
    assert {"blocks.0.attn.qkv.weight"} <= {row.path for row in stages["P4"].rows if row.kind == "gradient"}
    assert {row.slot for row in stages["P5"].rows} == {"", "exp_avg", "exp_avg_sq", "step"}


def test_merged_query_key_and_value_are_equal_to_separate_ones() -> None:
    net = networks("torch")
    report = compared(net.SeparateViT(), net.ViT(), rename=TO_MERGED, optimizer="adam")
    assert report.verdict == Verdict.EQUAL, str(report)
    paths = {row.path for stage in report.stages for row in stage.rows}
    assert "layer.1.attention.{query,key,value}.weight" in paths and "index" not in paths


@pytest.mark.parametrize("fault", ["swapped", "activation"])
def test_a_fault_behind_a_transform_is_found(fault: str) -> None:
    net = networks("torch")
    report = compared(net.ViT(), net.SeparateViT(fault), rename=TO_SEPARATE)
    assert report.verdict == Verdict.DIFFERENT and "blocks.1" in report.first and "blocks.0." not in report.first[:90]


@pytest.mark.thorough  # a pair of test_suite.py does it in a smaller network
def test_linear_layers_over_nhwc_are_equal_to_pointwise_convolutions() -> None:
    report = compared(networks("torch").ConvNeXt(), networks("oneflow").PointwiseConvNeXt(), rename=TO_POINTWISE)
    assert report.verdict == Verdict.EQUAL, str(report)
    outputs = {row.path: row for row in report.stages[3].rows if row.kind == "output"}
    assert outputs["features.1.0.block.3"].error < 1e-10 and not outputs["features.1.0.block.3"].missing


def test_a_fault_in_pointwise_convolutions_is_found() -> None:
    net = networks("torch")
    report = compared(net.ConvNeXt(), net.PointwiseConvNeXt("activation"), rename=TO_POINTWISE)
    assert report.verdict == Verdict.DIFFERENT and "features.3.1" in report.first


@pytest.mark.parametrize(
    ("reference", "candidate", "expected"),
    [
        ("ViT", "SeparateViT", TO_SEPARATE),
        ("SeparateViT", "ViT", TO_MERGED),
        ("ConvNeXt", "PointwiseConvNeXt", TO_POINTWISE),
    ],
)
def test_the_map_is_derived_and_tried(reference: str, candidate: str, expected: dict[Any, Any]) -> None:
    text = advice(getattr(networks("torch"), reference)(), getattr(networks("oneflow"), candidate)())
    found = re.search(r"This map gives equal outputs: rename=(.*) with `from tlx import mapping`", text)
    assert found and eval(found[1], {"mapping": mapping}) == expected


def test_a_derived_map_of_a_wrong_port_says_that_outputs_differ() -> None:
    text = advice(networks("torch").ViT(), networks("torch").SeparateViT("swapped"))
    assert "This map fits by shape, but its outputs differ: rename={'cls_token'" in text


def test_a_derived_map_keeps_what_was_given() -> None:
    net = networks("torch")
    text = advice(net.ViT(), net.SeparateViT(), rename={"blocks.*.norm1": "layer.*.before", "norm": "layernorm"})
    assert "gives equal outputs: rename={'blocks.*.norm1': 'layer.*.before', 'norm': 'layernorm', 'cls_token'" in text


def test_torchvisions_models_map_to_flowvisions() -> None:
    import torch
    from flowvision.models import convnext as flow_convnext
    from flowvision.models import vision_transformer as flow_vit
    from torchvision.models import convnext, vision_transformer

    vit = vision_transformer.VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=5)
    torch.nn.init.normal_(vit.heads.head.weight)  # torchvision's are zero, so that any map would do
    text = advice(
        vit, flow_vit.VisionTransformer(16, 8, embed_dim=8, depth=2, num_heads=2, mlp_ratio=2.0, num_classes=5)
    )
    assert "gives equal outputs" in text and "self_attention.in_proj_weight': 'blocks.*.attn.qkv.weight'" in text
    settings = [convnext.CNBlockConfig(6, 8, 2), convnext.CNBlockConfig(8, None, 1)]
    port = flow_convnext.ConvNeXt(depths=[2, 1, 1, 1], dims=[6, 8, 10, 12], num_classes=5)
    settings = [
        *(convnext.CNBlockConfig(6, 8, 2), convnext.CNBlockConfig(8, 10, 1)),
        *(convnext.CNBlockConfig(10, 12, 1), convnext.CNBlockConfig(12, None, 1)),
    ]
    text = advice(convnext.ConvNeXt(settings, num_classes=5), port, image_size=32)
    assert "gives equal outputs" in text and "'features.1.*.block.3': 'stages.0.*.pwconv1'" in text
