"""The Vision Transformers, Swin and ConvNeXt: their stages, and how they start from random weights.

A stage of a transformer is a block, as layer-wise rates have it (Bao et al. 2022, appendix); those of ConvNeXt end
where the resolution halves. The starts are torchvision's, but uniform where it draws from a normal distribution, with
the same standard deviation.
"""

from __future__ import annotations

from tlx.models.architecture import Architecture, Stages, Start, Starts, stages_of


def vision_transformer(name: str, file: str, patch: int, depth: int) -> Architecture:
    """Describe a Vision Transformer (Dosovitskiy et al. 2021)."""
    blocks = stages_of("encoder.layers", **{f"block{i + 1}": [f"encoder_layer_{i}"] for i in range(depth)})
    # The model itself owns the class token, and its encoder the positions; a block's path is longer than the encoder's.
    embeddings = ("embeddings", ("", "conv_proj", "encoder"))
    return Architecture(
        name,
        "heads.head",
        (embeddings, *_with_more(blocks, "encoder.ln")),
        file,
        min_size=patch,
        starts=_VIT_STARTS,
        patch=patch,
        positions="encoder.pos_embedding",
    )


def swin(name: str, file: str, depths: tuple[int, ...]) -> Architecture:
    """Describe a Swin (Liu et al. 2021). Patches are merged before the first block of a stage."""
    numbers = [
        (f"{2 * stage + 1}.{block}", stage, block) for stage, depth in enumerate(depths) for block in range(depth)
    ]
    paths = {
        f"block{number}": [f"{2 * stage}", path] if stage and not block else [path]
        for number, (path, stage, block) in enumerate(numbers, 1)
    }
    stages = _with_more(stages_of("features", stem=[0], **paths), "norm")
    return Architecture(name, "head", stages, file, min_size=4, starts=_SWIN_STARTS)


def convnext(name: str, file: str) -> Architecture:
    """Describe a ConvNeXt (Liu et al. 2022)."""
    stages = stages_of("features", stem=[0], stage1=[1], stage2=[2, 3], stage3=[4, 5], stage4=[6, 7])
    return Architecture(
        name, "classifier.2", _with_more(stages, "classifier.0"), file, min_size=32, starts=_CONVNEXT_STARTS
    )


def _with_more(stages: Stages, path: str) -> Stages:
    """Return stages of which the last has one more path."""
    *earlier, (last, paths) = stages
    return (*earlier, (last, (*paths, path)))


_ZERO: Start = ("constant", 0.0)
_SMALL: Start = ("deviation", 0.02)
_VIT_STARTS: Starts = (
    ("class_token$", _ZERO),
    ("pos_embedding$", _SMALL),
    (r"(in_proj_weight|mlp\.\d\.weight)$", ("xavier", 0.0)),
    (r"mlp\.\d\.bias$", ("deviation", 1e-6)),
    (r"conv_proj\.weight$", ("fan_in", 0.0)),
    (r"out_proj\.weight$", ("linear", 0.0)),
    (r"\b(in_proj_)?bias$", _ZERO),
)
_SWIN_STARTS: Starts = (
    (r"^features\.0\.0\.", ("linear", 0.0)),
    (r"(\.weight|relative_position_bias_table)$", _SMALL),
    (r"\.bias$", _ZERO),
)
_CONVNEXT_STARTS: Starts = (
    ("layer_scale$", ("constant", 1e-6)),
    (r"\.weight$", _SMALL),
    (r"\.bias$", _ZERO),
)

TRANSFORMERS = (
    vision_transformer("vit_b_16", "vit_b_16-c867db91.pth", 16, 12),
    vision_transformer("vit_b_32", "vit_b_32-d86f8d99.pth", 32, 12),
    vision_transformer("vit_l_16", "vit_l_16-852ce7e3.pth", 16, 24),
    vision_transformer("vit_l_32", "vit_l_32-c7638314.pth", 32, 24),
    vision_transformer("vit_h_14", "vit_h_14_lc_swag-c1eb923e.pth", 14, 32),
    swin("swin_t", "swin_t-704ceda3.pth", (2, 2, 6, 2)),
    swin("swin_s", "swin_s-5e29d889.pth", (2, 2, 18, 2)),
    swin("swin_b", "swin_b-68c6b09e.pth", (2, 2, 18, 2)),
    convnext("convnext_tiny", "convnext_tiny-983f1562.pth"),
    convnext("convnext_small", "convnext_small-0c510722.pth"),
    convnext("convnext_base", "convnext_base-6075fbad.pth"),
    convnext("convnext_large", "convnext_large-ea097f82.pth"),
)
