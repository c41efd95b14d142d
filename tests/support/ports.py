"""Networks written twice, as a library has them and as someone porting them might; the latter with planted faults.

`networks(framework)` has the same classes on PyTorch and on OneFlow.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import SimpleNamespace
from typing import Any


@cache
def networks(framework: str) -> SimpleNamespace:
    """Every network of this file, as classes of a framework."""
    fw = importlib.import_module(framework)
    made = SimpleNamespace(fw=fw)
    for define in (_layers, _transformers, _convolutional, _others):
        define(fw, fw.nn, made)
    return made


def _layers(fw: Any, nn: Any, made: SimpleNamespace) -> None:
    class Dense(nn.Module):  # type: ignore[misc]
        """A linear layer whose weight is [in, out]."""

        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.kernel = nn.Parameter(fw.randn(inputs, outputs) * 0.3)
            self.bias = nn.Parameter(fw.randn(outputs) * 0.3)

        def forward(self, x: Any) -> Any:
            return fw.matmul(x, self.kernel) + self.bias

    class Norm2d(nn.LayerNorm):  # type: ignore[misc]
        """A layer norm over the channels of NCHW."""

        def forward(self, x: Any) -> Any:
            return super().forward(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2).contiguous()

    class Permute(nn.Module):  # type: ignore[misc]
        def __init__(self, *axes: int) -> None:
            super().__init__()
            self.axes = axes

        def forward(self, x: Any) -> Any:
            return x.permute(*self.axes).contiguous()

    class Kernel(nn.Module):  # type: ignore[misc]
        """A convolution over NHWC with a kernel HWIO."""

        def __init__(self, inputs: int, outputs: int, size: int) -> None:
            super().__init__()
            self.size = size
            self.kernel = nn.Parameter(fw.randn(size, size, inputs, outputs) * 0.3)
            self.bias = nn.Parameter(fw.randn(outputs) * 0.3)

        def forward(self, x: Any) -> Any:
            images, weight = x.permute(0, 3, 1, 2).contiguous(), self.kernel.permute(3, 2, 0, 1).contiguous()
            y = nn.functional.conv2d(images, weight, self.bias, padding=self.size // 2)
            return y.permute(0, 2, 3, 1).contiguous()

    class BatchNormLast(nn.BatchNorm2d):  # type: ignore[misc]
        """A batch norm over NHWC."""

        def forward(self, x: Any) -> Any:
            return super().forward(x.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1).contiguous()

    made.Dense, made.Norm2d, made.Permute, made.Kernel, made.BatchNormLast = (
        Dense,
        Norm2d,
        Permute,
        Kernel,
        BatchNormLast,
    )


def _transformers(fw: Any, nn: Any, made: SimpleNamespace) -> None:
    width, heads, tokens = 8, 2, 5

    def attention(q: Any, k: Any, v: Any) -> Any:
        count = q.shape[1]
        q, k, v = (x.reshape(x.shape[0], count, heads, width // heads).transpose(1, 2) for x in (q, k, v))
        scores = fw.softmax(fw.matmul(q, k.transpose(2, 3)) * (width // heads) ** -0.5, dim=-1)
        return fw.matmul(scores, v).transpose(1, 2).reshape(q.shape[0], count, width)

    class Attention(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x: Any) -> Any:
            return self.proj(attention(*self.qkv(x).chunk(3, dim=-1)))

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(), nn.LayerNorm(width)
            self.fc1, self.act, self.fc2 = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)

        def forward(self, x: Any) -> Any:
            x = x + self.attn(self.norm1(x))
            return x + self.fc2(self.act(self.fc1(self.norm2(x))))

    class ViT(nn.Module):  # type: ignore[misc]
        """Merged query, key and value; patches by a convolution. For images of 16 pixels."""

        def __init__(self) -> None:
            super().__init__()
            self.cls_token, self.pos_embed = (nn.Parameter(fw.randn(1, n, width)) for n in (1, tokens))
            self.patch_embed = nn.Conv2d(3, width, 8, stride=8)
            self.blocks = nn.Sequential(Block(), Block())
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

        def forward(self, x: Any) -> Any:
            x = self.patch_embed(x).flatten(2).transpose(1, 2)
            x = fw.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
            return self.head(self.norm(self.blocks(x))[:, 0])

    class Separate(nn.Module):  # type: ignore[misc]
        def __init__(self, fault: str) -> None:
            super().__init__()
            self.fault = fault
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

        def forward(self, x: Any) -> Any:
            query, key = (self.key, self.query) if self.fault == "swapped" else (self.query, self.key)
            return attention(query(x), key(x), self.value(x))

    class Layer(nn.Module):  # type: ignore[misc]
        """Its norms are registered the other way round."""

        def __init__(self, fault: str) -> None:
            super().__init__()
            self.after, self.before = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attention, self.output = Separate(fault), nn.Linear(width, width)
            self.intermediate, self.dense = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
            self.act = nn.ReLU() if fault == "activation" else nn.GELU()

        def forward(self, x: Any) -> Any:
            x = x + self.output(self.attention(self.before(x)))
            return x + self.dense(self.act(self.intermediate(self.after(x))))

    class SeparateViT(nn.Module):  # type: ignore[misc]
        """Separate query, key and value; patches cut by hand; a buffer that only it has."""

        def __init__(self, fault: str = "") -> None:
            super().__init__()
            self.position, self.token = nn.Parameter(fw.randn(tokens, width)), nn.Parameter(fw.randn(width))
            self.patch = nn.Linear(192, width)
            self.layer = nn.ModuleList([Layer(""), Layer(fault)])
            self.layernorm, self.classifier = nn.LayerNorm(width), nn.Linear(width, 5)
            self.register_buffer("index", fw.ones(tokens))

        def forward(self, x: Any) -> Any:
            n = x.shape[0]
            x = x.reshape(n, 3, 2, 8, 2, 8).permute(0, 2, 4, 1, 3, 5).reshape(n, 4, 192)
            x = fw.cat([self.token.reshape(1, 1, -1).expand(n, -1, -1), self.patch(x)], dim=1) + self.position
            for layer in self.layer:
                x = layer(x)
            return self.classifier(self.layernorm(x)[:, 0])

    made.ViT, made.SeparateViT = ViT, SeparateViT


def _convolutional(fw: Any, nn: Any, made: SimpleNamespace) -> None:
    class InChannelsLast(nn.Module):  # type: ignore[misc]
        """A block of ConvNeXt as torchvision has it: linear layers over NHWC."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.layer_scale = nn.Parameter(fw.randn(width, 1, 1))
            narrow, wide = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
            depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
            self.block = nn.Sequential(
                *(depthwise, made.Permute(0, 2, 3, 1), nn.LayerNorm(width), narrow),
                *(nn.GELU(), wide, made.Permute(0, 3, 1, 2)),
            )

        def forward(self, x: Any) -> Any:
            return x + self.layer_scale * self.block(x)

    class ConvNeXt(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), made.Norm2d(6)),
                nn.Sequential(InChannelsLast(6), InChannelsLast(6)),
                nn.Sequential(made.Norm2d(6), nn.Conv2d(6, 8, 2, stride=2)),
                nn.Sequential(InChannelsLast(8), InChannelsLast(8)),
            )
            self.classifier = nn.Sequential(made.Norm2d(8), nn.Flatten(1), nn.Linear(8, 5))

        def forward(self, x: Any) -> Any:
            return self.classifier(self.features(x).mean((2, 3), keepdim=True))

    class Pointwise(nn.Module):  # type: ignore[misc]
        """The same block by 1x1 convolutions over NCHW."""

        def __init__(self, width: int, fault: str = "") -> None:
            super().__init__()
            self.dwconv, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), made.Norm2d(width)
            self.pwconv1, self.pwconv2 = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)
            self.act = nn.ReLU() if fault == "activation" else nn.GELU()
            self.gamma = nn.Parameter(fw.randn(width))

        def forward(self, x: Any) -> Any:
            y = self.pwconv2(self.act(self.pwconv1(self.norm(self.dwconv(x)))))
            return x + self.gamma.reshape(1, -1, 1, 1) * y

    class PointwiseConvNeXt(nn.Module):  # type: ignore[misc]
        """Its stages and what lies between them are registered apart."""

        def __init__(self, fault: str = "") -> None:
            super().__init__()
            stem = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), made.Norm2d(6))
            between = nn.Sequential(made.Norm2d(6), nn.Conv2d(6, 8, 2, stride=2))
            self.downsample_layers = nn.ModuleList([stem, between])
            first, second = (Pointwise(6), Pointwise(6)), (Pointwise(8), Pointwise(8, fault))
            self.stages = nn.ModuleList([nn.Sequential(*first), nn.Sequential(*second)])
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

        def forward(self, x: Any) -> Any:
            for down, stage in zip(self.downsample_layers, self.stages, strict=True):
                x = stage(down(x))
            return self.head(self.norm(x.mean((2, 3))))

    class Maps(nn.Module):  # type: ignore[misc]
        """Gives a map for each image, NCHW."""

        def __init__(self) -> None:
            super().__init__()
            self.c1, self.bn, self.c2 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

        def forward(self, x: Any) -> Any:
            return self.c2(fw.relu(self.bn(self.c1(x))))

    class MapsLast(nn.Module):  # type: ignore[misc]
        """Takes and gives NHWC."""

        def __init__(self, fault: str = "") -> None:
            super().__init__()
            self.fault = fault
            self.conv, self.norm, self.dense = made.Kernel(3, 8, 3), made.BatchNormLast(8), made.Dense(8, 2)

        def forward(self, x: Any) -> Any:
            y = fw.relu(self.norm(self.conv(x)))
            return self.dense(y.flip([1]) if self.fault else y)

    made.ConvNeXt, made.PointwiseConvNeXt, made.Maps, made.MapsLast = ConvNeXt, PointwiseConvNeXt, Maps, MapsLast


def _others(fw: Any, nn: Any, made: SimpleNamespace) -> None:
    class Words(nn.Module):  # type: ignore[misc]
        """An embedding whose weight is the head's too: as an attribute ("head" or "emb" first), or by a function."""

        def __init__(self, tied: str = "emb", fault: str = "") -> None:
            super().__init__()
            self.tied, self.fault = tied, fault
            emb, out = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
            for name, layer in (("head", out), ("emb", emb)) if tied == "head" else (("emb", emb), ("head", out)):
                setattr(self, name, layer)
            if tied == "head":
                self.emb.weight = self.head.weight
            elif tied == "emb":
                self.head.weight = self.emb.weight
            elif tied == "function":
                del self.head
            self.mix = nn.Linear(6, 6)

        def forward(self, ids: Any) -> Any:
            hidden = fw.tanh(self.mix(self.emb(ids))) * (1.001 if self.fault else 1.0)
            weight = self.emb.weight if self.tied == "function" else self.head.weight
            return fw.matmul(hidden, weight.transpose(0, 1))

    class Two(nn.Module):  # type: ignore[misc]
        """Takes two inputs and perhaps a mask; gives two outputs."""

        def __init__(self, gives: Any = dict) -> None:
            super().__init__()
            self.gives = gives
            self.a, self.b, self.n = nn.Linear(6, 8), nn.Linear(4, 8), nn.BatchNorm1d(8)
            self.h1, self.h2 = nn.Linear(8, 3), nn.Linear(8, 1)

        def forward(self, image: Any, extra: Any, mask: Any = None) -> Any:
            h = self.n(fw.relu(self.a(image) + self.b(extra)))
            h = h if mask is None else h * mask.to(h.dtype)
            logits, value = self.h1(h), self.h2(h)
            return {"logits": logits, "value": value} if self.gives is dict else (logits, value)

    class TwoByKernels(nn.Module):  # type: ignore[misc]
        """Has weights [in, out], and gives its outputs in another order."""

        def __init__(self, fault: str = "") -> None:
            super().__init__()
            self.fault = fault
            self.a, self.b, self.n = made.Dense(6, 8), made.Dense(4, 8), nn.BatchNorm1d(8)
            self.h1, self.h2 = made.Dense(8, 3), made.Dense(8, 1)

        def forward(self, image: Any, extra: Any, mask: Any = None) -> Any:
            h = self.n(fw.relu(self.a(image) + self.b(extra)))
            h = h if mask is None else h * mask.to(h.dtype)
            return {"value": self.h2(h) + (0.01 if self.fault else 0.0), "logits": self.h1(h)}

    made.Words, made.Two, made.TwoByKernels = Words, Two, TwoByKernels
