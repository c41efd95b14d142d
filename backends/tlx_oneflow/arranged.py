"""flowvision's transformers and ConvNeXt as torchvision builds them: the same layers in torchvision's module tree.

flowvision's own code names and shapes their parameters otherwise, fixes the size of Swin's images, and drops no path in
Swin. So its layers move into modules whose paths, parameters and order of calls are torchvision's, and everything that
goes by path is the same on both backends. Where torchvision calls a function with a layer's weight, so is it here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from tlx_oneflow.bootstrap import flow, flowvision

nn, functional, models = flow.nn, flow.nn.functional, flowvision.models
StochasticDepth = flowvision.layers.StochasticDepth
WINDOW = 7  # of Swin


class Permute(flow.nn.Module):
    """Reorder the axes."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Any) -> Any:
        """Return x with its axes reordered."""
        return x.permute(*self.axes)


class LayerNorm2d(flow.nn.LayerNorm):
    """Normalise the channels of each pixel of maps (N, C, H, W)."""

    def forward(self, x: Any) -> Any:
        """Return maps of the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def mlp(old: Any) -> Any:
    """Chain what flowvision's MLP holds. It applies one dropout twice; torchvision has two."""
    return nn.Sequential(old.fc1, old.act, nn.Dropout(old.drop.p), old.fc2, nn.Dropout(old.drop.p))


def with_parameters_of(old: Any, new: Any) -> Any:
    """Return a norm with another one's weight and bias."""
    new.weight, new.bias = old.weight, old.bias
    return new


# Vision Transformer: Dosovitskiy et al. 2021.


class MultiheadAttention(flow.nn.Module):
    """Self-attention over tokens (N, T, C)."""

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.num_heads = old.num_heads
        self.in_proj_weight, self.in_proj_bias = old.qkv.weight, old.qkv.bias
        self.out_proj = old.proj

    def forward(self, query: Any, key: Any, value: Any) -> tuple[Any, None]:
        """Return the outputs, and None in place of the weights, which are not kept."""
        tokens = (query, key, value)
        parts = zip(tokens, self.in_proj_weight.chunk(3, 0), self.in_proj_bias.chunk(3, 0), strict=True)
        q, k, v = (self._by_head(functional.linear(x, weight, bias)) for x, weight, bias in parts)
        scores = flow.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
        mixed = flow.matmul(flow.softmax(scores, dim=-1), v).transpose(1, 2).reshape(*query.shape)
        return functional.linear(mixed, self.out_proj.weight, self.out_proj.bias), None

    def _by_head(self, x: Any) -> Any:
        images, count, width = x.shape
        return x.reshape(images, count, self.num_heads, width // self.num_heads).transpose(1, 2)


class EncoderBlock(flow.nn.Module):
    """A block of the Vision Transformer."""

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.ln_1, self.self_attention = old.norm1, MultiheadAttention(old.attn)
        self.dropout = nn.Dropout(old.attn.proj_drop.p)
        self.ln_2, self.mlp = old.norm2, mlp(old.mlp)

    def forward(self, x: Any) -> Any:
        """Return tokens of the same shape."""
        y = self.ln_1(x)
        y, _ = self.self_attention(y, y, y)
        x = self.dropout(y) + x
        return x + self.mlp(self.ln_2(x))


class Encoder(flow.nn.Module):
    """The blocks of the Vision Transformer, with the embedding of positions before them."""

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.pos_embedding, self.dropout = old.pos_embed, nn.Dropout(old.pos_drop.p)
        self.layers = nn.Sequential()
        for i, block in enumerate(old.blocks):
            self.layers.add_module(f"encoder_layer_{i}", EncoderBlock(block))
        self.ln = old.norm

    def forward(self, x: Any) -> Any:
        """Return tokens (N, T, C), of the class and the patches."""
        return self.ln(self.layers(self.dropout(x + self.pos_embedding)))


class VisionTransformer(flow.nn.Module):
    """The Vision Transformer, for images of one size."""

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.image_size, self.hidden_dim = old.patch_embed.img_size[0], old.embed_dim
        self.conv_proj, self.class_token = old.patch_embed.proj, old.cls_token
        self.encoder, self.heads = Encoder(old), nn.Sequential()
        self.heads.add_module("head", old.head)

    def forward(self, x: Any) -> Any:
        """Return logits (N, classes) of images."""
        if tuple(x.shape[2:]) != (self.image_size, self.image_size):
            raise ValueError(f"Wrong image size! Expected {self.image_size} but got {list(x.shape[2:])}!")
        x = self.conv_proj(x)
        x = x.reshape(x.shape[0], self.hidden_dim, -1).permute(0, 2, 1)
        x = flow.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.heads(self.encoder(x)[:, 0])


# Swin: Liu et al. 2021.


class ShiftedWindowAttention(flow.nn.Module):
    """Self-attention within windows of maps (N, H, W, C), which are padded to whole windows."""

    def __init__(self, old: Any, shift: int) -> None:
        super().__init__()
        self.num_heads, self.shift = old.num_heads, shift
        self.relative_position_bias_table = old.relative_position_bias_table
        self.register_buffer("relative_position_index", old.relative_position_index.flatten())
        self.qkv, self.proj = old.qkv, old.proj

    def forward(self, x: Any) -> Any:
        """Return maps of the same shape."""
        images, height, width, channels = x.shape
        below, beside = -height % WINDOW, -width % WINDOW
        x = functional.pad(x, (0, 0, 0, beside, 0, below)) if below or beside else x
        rows, columns = x.shape[1] // WINDOW, x.shape[2] // WINDOW
        shift = tuple(self.shift if count > 1 else 0 for count in (rows, columns))  # one window need not shift
        if any(shift):
            x = flow.roll(x, shifts=tuple(-by for by in shift), dims=(1, 2))
        x = x.reshape(images, rows, WINDOW, columns, WINDOW, channels).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(-1, WINDOW * WINDOW, channels)
        qkv = functional.linear(x, self.qkv.weight, self.qkv.bias)
        qkv = qkv.reshape(*x.shape[:2], 3, self.num_heads, channels // self.num_heads).permute(2, 0, 3, 1, 4)
        scores = flow.matmul(qkv[0] * (channels // self.num_heads) ** -0.5, qkv[1].transpose(-2, -1))
        bias = self.relative_position_bias_table[self.relative_position_index]
        scores = scores + bias.reshape(*scores.shape[-2:], -1).permute(2, 0, 1).unsqueeze(0)
        if any(shift):
            apart = flow.tensor(regions_apart(rows, columns, shift), dtype=x.dtype, device=x.device)
            scores = scores.reshape(images, rows * columns, *scores.shape[1:]) + apart.unsqueeze(1).unsqueeze(0)
            scores = scores.reshape(-1, *scores.shape[2:])
        x = flow.matmul(flow.softmax(scores, dim=-1), qkv[2]).transpose(1, 2).reshape(*x.shape)
        x = functional.linear(x, self.proj.weight, self.proj.bias)
        x = x.reshape(images, rows, columns, WINDOW, WINDOW, channels).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(images, rows * WINDOW, columns * WINDOW, channels)
        if any(shift):
            x = flow.roll(x, shifts=shift, dims=(1, 2))
        return x[:, :height, :width, :] if below or beside else x


@cache
def regions_apart(rows: int, columns: int, shift: tuple[int, int]) -> Any:
    """Return -100 where two pixels of a shifted window come from regions that are not neighbours: (windows, 49, 49)."""
    region, count = np.zeros((rows * WINDOW, columns * WINDOW)), 0
    down, across = ([(0, -WINDOW), (-WINDOW, -by), (-by, None)] for by in shift)
    for top, bottom in down:
        for left, right in across:
            region[top:bottom, left:right] = count
            count += 1
    windows = region.reshape(rows, WINDOW, columns, WINDOW).transpose(0, 2, 1, 3).reshape(-1, WINDOW * WINDOW)
    return np.where(windows[:, None] != windows[:, :, None], -100.0, 0.0)


class SwinTransformerBlock(flow.nn.Module):
    """A block of Swin."""

    def __init__(self, old: Any, shift: int, drop: float) -> None:
        super().__init__()
        self.norm1, self.attn = old.norm1, ShiftedWindowAttention(old.attn, shift)
        self.stochastic_depth = StochasticDepth(drop, "row")
        self.norm2, self.mlp = old.norm2, mlp(old.mlp)

    def forward(self, x: Any) -> Any:
        """Return maps of the same shape."""
        x = x + self.stochastic_depth(self.attn(self.norm1(x)))
        return x + self.stochastic_depth(self.mlp(self.norm2(x)))


class PatchMerging(flow.nn.Module):
    """Join each four pixels of maps (N, H, W, C); odd sides are padded."""

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.reduction, self.norm = old.reduction, old.norm

    def forward(self, x: Any) -> Any:
        """Return maps (N, H / 2, W / 2, 2 C)."""
        below, beside = x.shape[1] % 2, x.shape[2] % 2
        x = functional.pad(x, (0, 0, 0, beside, 0, below)) if below or beside else x
        fourths = [x[:, top::2, left::2, :] for left in (0, 1) for top in (0, 1)]
        return self.reduction(self.norm(flow.cat(fourths, -1)))


class SwinTransformer(flow.nn.Module):
    """Swin, for images of any size."""

    def __init__(self, old: Any, drop: float) -> None:
        super().__init__()
        stages = [nn.Sequential(old.patch_embed.proj, Permute(0, 2, 3, 1), old.patch_embed.norm)]
        drops = iter(rates(drop, [len(layer.blocks) for layer in old.layers]))
        for layer in old.layers:
            blocks = (SwinTransformerBlock(b, i % 2 * (WINDOW // 2), next(drops)) for i, b in enumerate(layer.blocks))
            stages.append(nn.Sequential(*blocks))
            if layer.downsample is not None:
                stages.append(PatchMerging(layer.downsample))
        self.features, self.norm = nn.Sequential(*stages), old.norm
        self.permute, self.avgpool, self.flatten = Permute(0, 3, 1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)
        self.head = old.head

    def forward(self, x: Any) -> Any:
        """Return logits (N, classes) of images."""
        return self.head(self.flatten(self.avgpool(self.permute(self.norm(self.features(x))))))


# ConvNeXt: Liu et al. 2022.


class CNBlock(flow.nn.Module):
    """A block of ConvNeXt."""

    def __init__(self, old: Any, drop: float) -> None:
        super().__init__()
        norm = with_parameters_of(old.norm, nn.LayerNorm(old.norm.normalized_shape, old.norm.eps))
        into, out = Permute(0, 2, 3, 1), Permute(0, 3, 1, 2)
        self.block = nn.Sequential(old.dwconv, into, norm, old.pwconv1, old.act, old.pwconv2, out)
        self.layer_scale = nn.Parameter(old.gamma.detach().reshape(-1, 1, 1))
        self.stochastic_depth = StochasticDepth(drop, "row")

    def forward(self, x: Any) -> Any:
        """Return maps of the same shape."""
        return self.stochastic_depth(self.layer_scale * self.block(x)) + x


class ConvNeXt(flow.nn.Module):
    """ConvNeXt."""

    def __init__(self, old: Any, drop: float) -> None:
        super().__init__()
        drops = iter(rates(drop, [len(stage) for stage in old.stages]))
        stages = []
        for between, blocks in zip(old.downsample_layers, old.stages, strict=True):
            stages += [nn.Sequential(*map(_maps_normalised, between))]
            stages += [nn.Sequential(*(CNBlock(block, next(drops)) for block in blocks))]
        self.features, self.avgpool = nn.Sequential(*stages), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(_maps_normalised(old.norm), nn.Flatten(1), old.head)

    def forward(self, x: Any) -> Any:
        """Return logits (N, classes) of images."""
        return self.classifier(self.avgpool(self.features(x)))


def _maps_normalised(layer: Any) -> Any:
    if isinstance(layer, nn.Conv2d):
        return layer
    return with_parameters_of(layer, LayerNorm2d(layer.normalized_shape, layer.eps))


def rates(drop: float, depths: Sequence[int]) -> list[float]:
    """Return the probability of dropping each block, which rises from 0 to `drop`."""
    blocks = sum(depths)
    return [drop * block / (blocks - 1.0) for block in range(blocks)]


def vit(patch: int, width: int, depth: int, heads: int) -> Callable[..., Any]:
    """Return what builds a Vision Transformer for images of `image_size` pixels."""

    def build(image_size: int = 224) -> Any:
        size = {"img_size": image_size, "patch_size": patch, "embed_dim": width}
        return VisionTransformer(models.vision_transformer.VisionTransformer(**size, depth=depth, num_heads=heads))

    return build


def swin(width: int, depths: Sequence[int], heads: Sequence[int], drop: float) -> Callable[[], Any]:
    """Return what builds a Swin; `drop` is the stochastic depth of the last block."""
    size = {"embed_dim": width, "depths": depths, "num_heads": heads}
    return lambda: SwinTransformer(models.swin_transformer.SwinTransformer(**size), drop)


def convnext(widths: Sequence[int], depths: Sequence[int], drop: float) -> Callable[[], Any]:
    """Return what builds a ConvNeXt; `drop` is the stochastic depth of the last block."""
    return lambda: ConvNeXt(models.convnext.ConvNeXt(dims=widths, depths=depths), drop)


def resnext101_64x4d() -> Any:
    """Build the ResNet that flowvision has the class for, and no name."""
    resnet = models.resnet
    return resnet.ResNet(resnet.Bottleneck, [3, 4, 23, 3], groups=64, width_per_group=4)


# torchvision's name -> what builds it, with torchvision's stochastic depth.
ARRANGED: dict[str, Callable[..., Any]] = {
    "resnext101_64x4d": resnext101_64x4d,
    "vit_b_16": vit(16, 768, 12, 12),
    "vit_b_32": vit(32, 768, 12, 12),
    "vit_l_16": vit(16, 1024, 24, 16),
    "vit_l_32": vit(32, 1024, 24, 16),
    "vit_h_14": vit(14, 1280, 32, 16),
    "swin_t": swin(96, (2, 2, 6, 2), (3, 6, 12, 24), 0.2),
    "swin_s": swin(96, (2, 2, 18, 2), (3, 6, 12, 24), 0.3),
    "swin_b": swin(128, (2, 2, 18, 2), (4, 8, 16, 32), 0.5),
    "convnext_tiny": convnext((96, 192, 384, 768), (3, 3, 9, 3), 0.1),
    "convnext_small": convnext((96, 192, 384, 768), (3, 3, 27, 3), 0.4),
    "convnext_base": convnext((128, 256, 512, 1024), (3, 3, 27, 3), 0.5),
    "convnext_large": convnext((192, 384, 768, 1536), (3, 3, 27, 3), 0.5),
}
