"""(2) A ConvNeXt: the reference goes through NHWC with Linear, the port through NCHW with 1x1 convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from support.porting.case import Case, Net, Rename, chosen, drawn, spread
from support.porting.parts import drop_path, gelu, layer_norm
from tlx.proof import mapping

WIDTHS, CLASSES, EPS = (8, 12), 5, 1e-6


class Block(nn.Module):
    def __init__(self, width: int, rate: float) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.pwconv1 = nn.Linear(width, 2 * width)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))
        self.drop_path = StochasticDepth(rate, "row")

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(y)))
        return x + self.drop_path(y.permute(0, 3, 1, 2))  # type: ignore[no-any-return]


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        first, second = WIDTHS
        self.stem = nn.Conv2d(3, first, 2, 2)
        self.stem_norm = LayerNorm2d(first, eps=EPS)
        self.stage0 = nn.Sequential(Block(first, rate), Block(first, rate))
        self.down_norm = LayerNorm2d(first, eps=EPS)
        self.down = nn.Conv2d(first, second, 2, 2)
        self.stage1 = nn.Sequential(Block(second, rate))
        self.norm = nn.LayerNorm(second, eps=EPS)
        self.head = nn.Linear(second, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage0(self.stem_norm(self.stem(x)))
        x = self.stage1(self.down(self.down_norm(x)))
        logits: Tensor = self.head(self.norm(x.mean((2, 3))))
        return logits


DEFAULTS = {
    "pointwise": "linear",  # or "convolution"
    "norm": "module",
    "gelu": "module",
    "scale": "vector",  # or "map": of shape [1, C, 1, 1]
    "rate": 0.0,
    # What goes wrong in the second block of the first stage, or at the named place.
    "eps": EPS,
    "gamma": "right",
    "axis": -1,
    "drop": "right",
    "dilation": 1,
    "padding": "zeros",
    "residual": "right",
    "pool": "mean",
    "down_norm": "before",
    "crop": 0,
    "bias": True,
    "ceil": False,
    "order": "right",
    "dwbias": "right",
}


def port(fw: Any, **choices: Any) -> Any:
    """The port; `choices` says how it is written, or what is wrong with it."""
    to = chosen(DEFAULTS, choices)
    nn, functional = fw.nn, fw.nn.functional

    class Layer(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, width: int, faulty: bool) -> None:
            super().__init__()
            self.faulty, self.width = faulty, width
            self.to = to if faulty else chosen(DEFAULTS, {k: choices[k] for k in STYLE & choices.keys()})
            self.scale = nn.Parameter(fw.ones(*((1, width, 1, 1) if to.scale == "map" else (width,))))
            self.spatial = nn.Conv2d(width, width, 5, padding=2, groups=width)
            self.ln = layer_norm(fw, width, to.norm, self.to.eps, 1 if to.pointwise == "convolution" else -1)
            make = (lambda a, b: nn.Conv2d(a, b, 1)) if to.pointwise == "convolution" else nn.Linear
            self.expand, self.project = make(width, 2 * width), make(2 * width, width)
            self.depth = drop_path(fw, to.rate, self.to.drop)

        def convolved(self, x: Any) -> Any:
            conv, to = self.spatial, self.to
            if to.padding != "zeros":
                x = functional.pad(x, (2, 2, 2, 2), mode=to.padding)
                return functional.conv2d(x, conv.weight, conv.bias, 1, 0, 1, self.width)
            return functional.conv2d(x, conv.weight, conv.bias, 1, 2 * to.dilation, to.dilation, self.width)

        def scaled(self, y: Any, shape: tuple[int, ...]) -> Any:
            gamma, to = self.scale, self.to
            if to.gamma == "missing":
                return y + 0 * gamma.reshape(shape)
            if to.gamma == "one more":
                return y * (1 + gamma.reshape(shape))
            if to.gamma == "detached":
                return y * gamma.detach().reshape(shape)
            if to.gamma == "along the width":
                return y * gamma.reshape((1, 1, 1, -1) if shape[1] > 1 else (1, 1, -1, 1))
            return y * gamma.reshape(shape)

        def forward(self, x: Any) -> Any:
            to, flat = self.to, to_nchw
            y = self.convolved(x)
            if not flat:
                y = y.permute(0, 2, 3, 1)
            if to.order == "activation before the norm":
                y = self.expand(self.ln(gelu(fw, y, "module")))
            else:
                y = gelu(fw, self.expand(self.ln(y)), to.gelu)
            y = self.project(y)
            if to.residual == "inside the scale":
                y = y + (x if flat else x.permute(0, 2, 3, 1))
            y = self.scaled(y, (1, -1, 1, 1) if flat else (1, 1, 1, -1))
            if not flat:
                y = y.permute(0, 3, 1, 2)
            if to.residual == "inside the scale":
                return self.depth(y)
            if to.residual == "inside the depth":
                return self.depth(x + y)
            if to.residual == "subtracted":
                return x - self.depth(y)
            return x + self.depth(y)

    class ChannelNorm(nn.LayerNorm):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def channel_norm(width: int, eps: float) -> Any:
        return ChannelNorm(width, eps=eps) if to.norm == "module" else layer_norm(fw, width, to.norm, eps, 1)

    to_nchw = to.pointwise == "convolution"

    class Port(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            first, second = WIDTHS
            self.patchify = nn.Sequential(nn.Conv2d(3, first, 2, 2), channel_norm(first, EPS))
            self.layers = nn.ModuleList([Layer(first, False), Layer(first, True), Layer(second, False)])
            self.shrink = nn.Sequential(channel_norm(first, EPS), nn.Conv2d(first, second, 2, 2))
            self.ln, self.fc = nn.LayerNorm(second, eps=EPS), nn.Linear(second, CLASSES)

        def forward(self, x: Any) -> Any:
            x = self.layers[1](self.layers[0](self.patchify(x)))
            if to.ceil:
                x = functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
            norm, conv = self.shrink[0], self.shrink[1]
            x = conv(x + 0 * norm(x)) if to.down_norm == "missing" else conv(norm(x))
            x = self.layers[2](x[:, :, to.crop :, to.crop :])
            if to.pool == "after the norm":
                return self.fc(self.ln(x.permute(0, 2, 3, 1)).mean((1, 2)))
            return self.fc(self.ln(x.amax((2, 3)) if to.pool == "max" else x.mean((2, 3))))

    return Port()


STYLE = {"pointwise", "norm", "scale", "rate"}
BLOCKS = {"stage0.0": "layers.0", "stage0.1": "layers.1", "stage1.0": "layers.2"}


def rename(**choices: Any) -> Rename:
    """What the port calls the reference's modules and parameters."""
    to = chosen(DEFAULTS, choices)
    names: dict[str, Any] = {"stem": "patchify.0", "stem_norm": "patchify.1", "down_norm": "shrink.0"}
    names |= {"down": "shrink.1", "norm": "ln", "head": "fc"}
    for ours, theirs in BLOCKS.items():
        names |= {f"{ours}.dwconv": f"{theirs}.spatial", f"{ours}.norm": f"{theirs}.ln"}
        names |= {f"{ours}.pwconv1": f"{theirs}.expand", f"{ours}.pwconv2": f"{theirs}.project"}
        names |= {f"{ours}.gamma": f"{theirs}.scale"}
    for ours, theirs in BLOCKS.items():
        if to.scale == "map":
            names[f"{ours}.gamma"] = mapping.reshape(f"{theirs}.scale")
        if to.pointwise == "convolution":
            for inner, outer in (("norm", "ln"), ("pwconv1", "expand"), ("pwconv2", "project")):
                names[f"{ours}.{inner}"] = mapping.layout(mapping.reshape(f"{theirs}.{outer}"), (0, 3, 1, 2))
    return names


NET = Net(name="convnext", reference=lambda: drawn(ConvNeXt()), port=port, rename=rename, fields={"image_size": 16})
DEEP = Net(name="convnext", reference=lambda: drawn(ConvNeXt(0.3)), port=port, rename=rename, fields={"image_size": 16})
LAST = "stage0.1"
IN_MLP = (LAST, f"{LAST}.act", f"{LAST}.pwconv1>{LAST}.pwconv2")
BEHIND = (LAST, f"{LAST}.pwconv2>down_norm", f"{LAST}.pwconv2>{LAST}")
DROP = (*BEHIND, f"{LAST}.drop_path")
CONVOLUTION = (f"{LAST}.dwconv", LAST, f"stage0.0>{LAST}.norm", f"stage0.0.pwconv2>{LAST}.norm")

EQUAL = [
    Case(name="plain"),
    Case(name="NCHW and 1x1 convolutions", choices={"pointwise": "convolution", "norm": "by hand"}),
    Case(name="norm and GELU by hand", choices={"norm": "by hand", "gelu": "formula"}),
    Case(name="layer scale as a map", choices={"scale": "map"}),
    Case(name="AdamW, moving average", fields={"optimizer": "adamw", "lr": 1e-3, "ema": 0.95}),
    Case(name="RMSprop, micro-batches", fields={"optimizer": "rmsprop", "lr": 1e-3, "micro_batch": 32}),
    Case(
        name="1x1 convolutions, layer scale as a map, head first",
        choices={"pointwise": "convolution", "norm": "by hand", "scale": "map"},
        fields={"strategy": "head_then_full", "phase_epochs": 2, "image_size": 24},
    ),
]
FAULTS = [
    Case(name="GELU by tanh", choices={"gelu": "tanh"}, places=IN_MLP),
    Case(name="ReLU for GELU", choices={"gelu": "relu"}, places=IN_MLP),
    Case(name="eps 1e-5 for 1e-6", choices={"eps": 1e-5}, places=(f"{LAST}.norm",)),
    Case(
        name="eps outside the root, by hand",
        choices={"norm": "eps outside"},
        places=("stem_norm",),
    ),
    Case(name="unbiased variance in the norm", choices={"norm": "unbiased"}, places=("stem_norm",)),
    Case(name="layer scale missing", choices={"gamma": "missing"}, places=BEHIND),
    Case(name="layer scale with one more", choices={"gamma": "one more"}, places=BEHIND),
    Case(name="layer scale along the width", choices={"gamma": "along the width"}, places=BEHIND),
    Case(name="layer scale detached", choices={"gamma": "detached"}, places=BEHIND),
    Case(name="residual inside the scale", choices={"residual": "inside the scale"}, places=BEHIND),
    Case(name="residual subtracted", choices={"residual": "subtracted"}, places=BEHIND),
    Case(name="dilated", choices={"dilation": 2}, places=CONVOLUTION),
    Case(name="reflected at the border", choices={"padding": "reflect"}, places=CONVOLUTION),
    Case(
        name="activation before the norm",
        choices={"order": "activation before the norm"},
        places=(*CONVOLUTION, f"{LAST}.norm", f"{LAST}.dwconv>{LAST}.norm"),
    ),
    Case(
        name="norm before downsampling missing",
        choices={"down_norm": "missing"},
        places=("down_norm", "down_norm>down", f"{LAST}.pwconv2>down", f"{LAST}>down"),
    ),
    Case(name="last row and column cropped", choices={"crop": 1}, places=("down>stage1.0.dwconv", "down>stage1.0")),
    Case(
        name="norm before the pool",
        choices={"pool": "after the norm"},
        places=("norm", "norm>head", "stage1.0.pwconv2>norm", "stage1.0>norm"),
    ),
    Case(name="max pool", choices={"pool": "max"}, places=("stage1.0.pwconv2>norm", "stage1.0>norm")),
    Case(
        name="odd sizes padded, not cropped",
        choices={"ceil": True},
        fields={"image_size": 22},
        places=(f"{LAST}.pwconv2>down_norm", f"{LAST}>down_norm", "down_norm", "down", "down_norm>down"),
    ),
]
OWN = r"layers\.1\.depth"  # draws random numbers of its own, which no dropout explains
DEPTH_FAULTS = [
    Case(name="depth per batch", choices={"rate": 0.3, "drop": "per batch"}, places=DROP, says=OWN),
    Case(name="depth unscaled", choices={"rate": 0.3, "drop": "unscaled"}, places=DROP, says=OWN),
    Case(
        name="depth at another rate",
        choices={"rate": 0.2},
        places=(
            *DROP,
            "stage0.0",
            "stage0.0.drop_path",
            "stage0.0.pwconv2>stage0.1.dwconv",
            "stage0.0.pwconv2>stage0.1",
        ),
    ),
    Case(name="residual inside the depth", choices={"rate": 0.3, "residual": "inside the depth"}, places=DROP),
]
DEEP_EQUAL = [Case(name="stochastic depth by hand", choices={"rate": 0.3})]
CASES = spread("convnext", EQUAL, FAULTS)
DEEP_CASES = spread("convnext", DEEP_EQUAL, DEPTH_FAULTS)
