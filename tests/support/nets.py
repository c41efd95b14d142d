"""Small networks of many kinds, in a framework's own modules, each with the faults that people make in a port."""

from __future__ import annotations

import importlib
from typing import Any


class Nets:
    """The networks of one framework."""

    def __init__(self, framework: str) -> None:
        self.fw = importlib.import_module(framework)
        self.nn = self.fw.nn

    def vit(self, fault: str = "") -> Any:
        """A class token and a position in the root, attention and an MLP in blocks."""
        fw, nn = self.fw, self.nn

        class Attention(nn.Module):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.qkv = nn.Linear(8, 24)
                self.proj = nn.Linear(8, 8)

            def forward(self, x: Any) -> Any:
                q, k, v = self.qkv(x).chunk(3, dim=-1)
                scale = 1.0 if fault == "scale" else 8**-0.5
                return self.proj(fw.matmul(fw.softmax(fw.matmul(q, k.transpose(1, 2)) * scale, dim=-1), v))

        class Mlp(nn.Module):  # type: ignore[misc, name-defined]
            def __init__(self, wrong: bool) -> None:
                super().__init__()
                self.fc1 = nn.Linear(8, 16)
                self.act = nn.SiLU() if wrong else nn.GELU()
                self.fc2 = nn.Linear(16, 8)

            def forward(self, x: Any) -> Any:
                return self.fc2(self.act(self.fc1(x)))

        class Block(nn.Module):  # type: ignore[misc, name-defined]
            def __init__(self, wrong: bool) -> None:
                super().__init__()
                self.scale = nn.Parameter(fw.ones(8) * 0.5)  # as ConvNeXt's, in the block itself
                self.norm1 = nn.LayerNorm(8)
                self.attn = Attention()
                self.norm2 = nn.LayerNorm(8)
                self.mlp = Mlp(wrong)

            def forward(self, x: Any) -> Any:
                normed = self.norm1(x)
                x = (normed if fault == "residual" else x) + self.attn(normed)
                return x + (1.0 if fault == "layer scale" else self.scale) * self.mlp(self.norm2(x))

        class ViT(nn.Module):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.token = nn.Parameter(fw.arange(8).float().reshape(1, 1, 8) * 0.3)
                self.position = nn.Parameter(fw.arange(8).float().reshape(1, 1, 8) * 0.1)
                self.patch = nn.Conv2d(3, 8, 4, stride=4)
                self.blocks = nn.ModuleList([Block(False), Block(fault == "activation")])
                self.norm = nn.LayerNorm(8)
                self.fc = nn.Linear(8, 5)

            def forward(self, x: Any) -> Any:
                x = self.patch(x).flatten(2).transpose(1, 2)
                token = self.token.detach() if fault == "detach" else self.token
                x = fw.cat([token.expand(x.shape[0], 1, 8), x], dim=1)
                x = x if fault == "position" else x + self.position
                for block in self.blocks:
                    x = block(x)
                x = self.norm(x)
                return self.fc(x.mean(1) if fault == "pooling" else x[:, 0])

        return ViT()

    def shared(self, fault: str = "") -> Any:
        """One Linear and one activation that run three times, and two layers with one weight."""
        nn = self.nn

        class Shared(nn.Module):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.stem = nn.Conv2d(3, 8, 3, padding=1)
                self.mix = nn.Linear(8, 8)
                self.act = nn.ReLU()
                self.tied = nn.Linear(8, 8, bias=False)
                self.tied.weight = self.mix.weight
                self.last = nn.Hardtanh(-0.1, 0.1) if fault == "elsewhere" else nn.Tanh()
                self.fc = nn.Linear(8, 5)

            def forward(self, x: Any) -> Any:
                x = self.stem(x).flatten(2).mean(2)
                x = self.act(self.mix(x))
                x = self.act(self.mix(x * 2 if fault == "second call" else x))
                x = self.tied(x)
                x = self.last(self.mix(x.detach() if fault == "detach" else x))
                return self.fc(x)

        return Shared()

    def conv(self, fault: str = "", style: str = "") -> Any:
        """A residual block, BatchNorm, a pool, an upsampling and functions between them."""
        fw, nn = self.fw, self.nn
        functional = nn.functional

        class Norm(nn.BatchNorm2d):  # type: ignore[misc, name-defined]
            def forward(self, x: Any) -> Any:
                y = super().forward(x)
                return y if self.training else y * 1.01

        class Block(nn.Module):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                if style == "order":
                    self.act, self.norm, self.conv = nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
                else:
                    self.conv = nn.Conv2d(8, 8, 3, padding=0 if style == "padding" else 1)
                    self.norm = Norm(8) if fault == "eval" else nn.BatchNorm2d(8)
                    if style != "functional":
                        self.act = nn.ReLU(inplace=fault == "in place" or style == "in place")

            def act_(self, x: Any) -> Any:
                return functional.relu(x) if style == "functional" else self.act(x)

            def forward(self, x: Any) -> Any:
                identity = x
                # In place it changes the identity too.
                x = self.act(x) if fault == "in place" else self.act_(x.clone() if style == "in place" else x)
                x = functional.pad(x, (1, 1, 1, 1)) if style == "padding" else x
                x = self.norm(self.conv(x))
                if fault == "training only" and self.training:
                    x = x * 1.01
                if fault == "eval only" and not self.training:
                    x = x * 1.01
                return x if fault == "no residual" else x + identity

        class Conv(nn.Module):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.stem = nn.Conv2d(3, 8, 3, padding=1)
                self.pool = nn.MaxPool2d(3, 3 if fault == "stride" else 2, 1)
                self.block = Block()
                self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=fault == "align_corners")
                self.fc = nn.Linear(8, 5)

            def forward(self, x: Any) -> Any:
                x = self.block(self.pool(self.stem(x) - 0.1))
                x = self.up(x)
                if fault == "odd size":
                    x = functional.interpolate(x, size=(8, 8), mode="bilinear", align_corners=False)
                else:
                    x = functional.adaptive_avg_pool2d(x, 8)
                x = fw.tanh(x).flatten(2).mean(2)
                return self.fc(x)

        return Conv()

    def branches(self, fault: str = "", style: str = "") -> Any:
        """Two branches, a module with two inputs and a keyword, an embedding, and outputs of several kinds."""
        fw, nn = self.fw, self.nn

        class Join(nn.Module):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(fw.ones(8) * 0.7)

            def forward(self, x: Any, y: Any, *, bias: Any = None, factor: float = 2.0) -> Any:
                out = x * self.weight - y * factor * (1.1 if fault == "join" else 1.0)
                return {"sum": out if bias is None else out + bias, "first": x}

        class Branches(nn.Module):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.left = nn.Conv2d(3, 8, 3, padding=1)
                self.right = nn.Conv2d(3, 8, 1)
                self.embed = nn.Embedding(4, 8)
                self.join = Join()
                self.fc = nn.Linear(8, 5)

            def forward(self, x: Any) -> Any:
                if style == "order":
                    right, left = self.right(x), self.left(x)
                else:
                    left, right = self.left(x), self.right(x)
                left, right = left.flatten(2).mean(2), right.flatten(2).mean(2)
                left = left * 1.1 if fault == "left" else left
                code = fw.ones(x.shape[0]).to(x.device).long() * (2 if fault == "code" else 1)
                bias = self.embed(code)
                joined = self.join(right, left, bias=bias) if fault == "swapped" else self.join(left, right, bias=bias)
                return self.fc(joined["first" if fault == "entry" else "sum"])

        return Branches()
