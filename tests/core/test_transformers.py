"""The transformers and ConvNeXt as the core knows them: stages, image sizes, and embeddings of positions."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tlx.backend import Array, ParamSpec, Role
from tlx.errors import RecipeError, WeightsError
from tlx.models.initial_values import initial_values, relative_position_index
from tlx.models.matching import match_backbone
from tlx.models.positions import cubic, resampled
from tlx.models.transformers import vision_transformer
from tlx.models.weights import write_safetensors
from tlx.models.zoo import architecture
from tlx.recipe import Recipe
from tlx.strategy.built_in import diff_lr
from tlx.strategy.schedule import Schedule

VIT = vision_transformer("tiny", "", 16, 2)
SPECS = [
    ParamSpec("class_token", (1, 1, 3), "float32", "weight", ""),
    ParamSpec("encoder.pos_embedding", (1, 10, 3), "float32", "weight", "encoder"),
]


def checkpoint(count: int) -> dict[str, Array]:
    positions = np.arange(3 * count, dtype=np.float32).reshape(1, count, 3)
    return {"class_token": np.ones((1, 1, 3), np.float32), "encoder.pos_embedding": positions}


@pytest.mark.parametrize(
    ("name", "module", "stage"),
    [
        ("vit_b_16", "", "embeddings"),
        ("vit_b_16", "encoder", "embeddings"),
        ("vit_b_16", "conv_proj", "embeddings"),
        ("vit_b_16", "encoder.layers.encoder_layer_1.self_attention.out_proj", "block2"),
        ("vit_b_16", "encoder.layers.encoder_layer_10.ln_1", "block11"),
        ("vit_b_16", "encoder.ln", "block12"),
        ("vit_b_16", "heads.head", "head"),
        ("vit_l_32", "encoder.ln", "block24"),
        ("swin_t", "features.0.2", "stem"),
        ("swin_t", "features.2.reduction", "block3"),
        ("swin_t", "features.5.5.attn.qkv", "block10"),
        ("swin_t", "norm", "block12"),
        ("swin_s", "features.7.1.mlp.0", "block24"),
        ("convnext_tiny", "features.6.1", "stage4"),
        ("convnext_tiny", "classifier.0", "stage4"),
        ("convnext_tiny", "classifier.2", "head"),
    ],
)
def test_each_module_belongs_to_the_stage_that_is_nearest_around_it(name: str, module: str, stage: str) -> None:
    assert architecture(name).stage_of(module) == stage


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        ("vit_b_16", 100, "image_size is 100; vit_b_16 takes whole patches of 16 pixels: use 96 or 112"),
        ("vit_b_32", 16, "image_size is 16; vit_b_32 needs at least 32 pixels"),
        ("vit_h_14", 225, "image_size is 225; vit_h_14 takes whole patches of 14 pixels: use 224 or 238"),
        ("convnext_tiny", 31, "image_size is 31; convnext_tiny needs at least 32 pixels"),
    ],
)
def test_a_size_that_does_not_fit_is_one_clear_error_before_anything_is_built(
    model: str, size: int, message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        Recipe(model=model, image_size=size)
    assert str(error.value) == message
    Recipe(model="swin_t", image_size=33)


def test_the_constructor_is_told_the_image_size_only_where_it_takes_one() -> None:
    assert architecture("vit_b_16").options_at(96) == (("image_size", 96),)
    assert architecture("swin_t").options_at(96) == () and architecture("resnet18").options_at(96) == ()
    sizes = [architecture(name).fitting(32) for name in ("vit_b_16", "vit_h_14", "inception_v3", "resnet18")]
    assert sizes == [32, 42, 75, 32]


def test_positions_are_resampled_for_the_models_image_size_with_a_note() -> None:
    arrays, notes = match_backbone(checkpoint(17), SPECS, VIT)
    assert notes == [
        "encoder.pos_embedding, of 4 x 4 patches, is resampled for the 3 x 3 of this image_size",
    ]
    positions = arrays["encoder.pos_embedding"]
    assert positions.dtype == np.float32 and positions.shape == (1, 10, 3)
    assert np.array_equal(positions[0, 0], [0, 1, 2])  # of the class token
    corners = checkpoint(17)["encoder.pos_embedding"][0, [1, 4, 13, 16]]
    assert np.array_equal(positions[0, [1, 3, 7, 9]], corners)
    same, none = match_backbone(checkpoint(10), SPECS, VIT)
    assert np.array_equal(same["encoder.pos_embedding"], checkpoint(10)["encoder.pos_embedding"]) and not none


def test_published_weights_are_resampled_with_a_note_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLX_CACHE", str(tmp_path))
    write_safetensors(tmp_path / "w", checkpoint(17))
    content = (tmp_path / "w").read_bytes()
    arch = replace(VIT, imagenet=f"tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / arch.imagenet).write_bytes(content)
    arrays, notes = initial_values(SPECS, arch, "imagenet", 0)
    assert len(notes) == 1 and "of 4 x 4 patches, is resampled" in notes[0]
    expected = match_backbone(checkpoint(17), SPECS, VIT)[0]
    assert all(np.array_equal(arrays[name], expected[name]) for name in expected)


def test_what_are_no_positions_of_a_square_is_refused_as_of_another_shape() -> None:
    with pytest.raises(WeightsError, match=r"of another shape or dtype: encoder\.pos_embedding \[1, 7, 3\]"):
        match_backbone(checkpoint(7), SPECS, VIT)


def test_what_lies_beside_the_backbone_is_left_aside_though_the_model_itself_owns_a_parameter() -> None:
    arrays = {**checkpoint(10), "projector.weight": np.zeros(2, np.float32)}
    assert "left aside: projector.weight" in match_backbone(arrays, SPECS, VIT)[1][0]
    with pytest.raises(WeightsError, match=r"1 not in the model: encoder\.more"):
        match_backbone({**checkpoint(10), "encoder.more": np.zeros(2, np.float32)}, SPECS, VIT)


def test_cubic_convolution_keeps_what_is_constant_and_places_that_stay() -> None:
    for old, new in ((4, 7), (7, 3), (1, 5), (5, 1)):
        assert np.allclose(cubic(old, new).sum(1), 1, rtol=0, atol=1e-15)
    assert np.array_equal(cubic(5, 5), np.eye(5)) and np.array_equal(cubic(5, 3), np.eye(5)[::2])
    ramp = np.arange(1.0, 18.0).reshape(1, 17, 1)
    assert np.array_equal(resampled(ramp, 4), ramp)


def test_a_constant_of_whole_numbers_is_no_statistic_in_the_table_of_a_plan() -> None:
    swin = architecture("swin_t")
    arrays: tuple[tuple[str, str, Role], ...] = (
        ("table", "float32", "weight"),
        ("relative_position_index", "int64", "statistic"),
    )
    specs = [
        ParamSpec(f"features.1.0.attn.{name}", (4,), dtype, role, "features.1.0.attn") for name, dtype, role in arrays
    ]
    specs.insert(1, ParamSpec("head.weight", (2, 4), "float32", "weight", "head"))
    plan = diff_lr(swin, 1).bind(specs, swin, Schedule("constant", 1, 1), 0.0)
    assert [(row.group, row.norm) for row in plan.table()] == [("backbone", "-"), ("head", "-")]
    assert not any(name.endswith("index") for group in plan.groups for name in group.params)


def test_an_offset_has_the_same_row_wherever_in_a_window_it_is() -> None:
    index = relative_position_index(3).reshape(3, 3, 3, 3)
    assert index[1, 1, 1, 1] == index[0, 2, 0, 2] == 12 and index[0, 0, 2, 2] == 0 and index[2, 2, 0, 0] == 24
    assert index[1, 0, 0, 2] == index[2, 0, 1, 2] and len(np.unique(index)) == 25
