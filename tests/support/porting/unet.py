"""(6) A U-shaped net: a pool down, two ways up, skips that are concatenated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.porting.case import Case, Net, Rename, chosen, drawn, spread

WIDTH, CLASSES = 6, 5


def double(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inc = double(3, WIDTH)
        self.down1 = double(WIDTH, 2 * WIDTH)
        self.down2 = double(2 * WIDTH, 2 * WIDTH)
        self.pool = nn.MaxPool2d(2)
        self.up1 = nn.ConvTranspose2d(2 * WIDTH, WIDTH, 2, 2)
        self.conv1 = double(3 * WIDTH, WIDTH)
        self.conv2 = double(2 * WIDTH, WIDTH)
        self.outc = nn.Conv2d(WIDTH, WIDTH, 1)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        a = self.inc(x)
        b = self.down1(self.pool(a))
        c = self.down2(self.pool(b))
        y = self.conv1(torch.cat([b, padded(self.up1(c), b)], dim=1))
        y = F.interpolate(y, size=a.shape[2:], mode="bilinear", align_corners=False)
        y = self.outc(self.conv2(torch.cat([a, y], dim=1)))
        logits: Tensor = self.head(torch.sigmoid(y).mean((2, 3)))
        return logits


def padded(x: Tensor, like: Tensor) -> Tensor:
    return F.pad(x, (0, like.shape[3] - x.shape[3], 0, like.shape[2] - x.shape[2]))


DEFAULTS = {
    "names": "lists",
    "up": "module",  # or "functional"
    "sigmoid": "function",
    "reversed": False,
    # What goes wrong.
    "corners": False,
    "mode": "bilinear",
    "by": "size",
    "join": "right",
    "skip": "right",
    "pad": "right",
    "ceil": False,
    "act": "relu",
    "pool": "max",
    "flip": False,
    "bias": True,
    "end": "right",
    "padding": "right",
    "norm": "right",
    "inplace": False,
}


def port(fw: Any, **choices: Any) -> Any:
    """The port; `choices` says how it is written, or what is wrong with it."""
    to = chosen(DEFAULTS, choices)
    nn, functional = fw.nn, fw.nn.functional

    class Unit(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, a: int, b: int, faulty: bool = False) -> None:
            super().__init__()
            self.faulty = faulty
            self.convolution, self.normalise = nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b)

        def forward(self, x: Any) -> Any:
            if self.faulty and to.padding == "replicate":
                x = functional.pad(x, (1, 1, 1, 1), mode="replicate")
                x = functional.conv2d(x, self.convolution.weight, self.convolution.bias)
            else:
                x = self.convolution(x)
            if self.faulty and to.norm == "activation before":
                return self.normalise(functional.relu(x))
            x = self.normalise(x)
            if self.faulty and to.act == "elu":
                return functional.elu(x, alpha=1.0)
            return functional.relu(x)

    class Port(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            if to.reversed:
                self.fc, self.mixed = nn.Linear(WIDTH, CLASSES), nn.Conv2d(WIDTH, WIDTH, 1)
            encoders = [Unit(3, WIDTH), Unit(WIDTH, 2 * WIDTH, True), Unit(2 * WIDTH, 2 * WIDTH)]
            self.encoder = nn.ModuleList(encoders)
            self.transposed = nn.ConvTranspose2d(2 * WIDTH, WIDTH, 2, 2)
            self.decoder = nn.ModuleList([Unit(3 * WIDTH, WIDTH), Unit(2 * WIDTH, WIDTH)])
            if not to.reversed:
                self.mixed, self.fc = nn.Conv2d(WIDTH, WIDTH, 1), nn.Linear(WIDTH, CLASSES)
            self.shrink = nn.MaxPool2d(2, ceil_mode=to.ceil)

        def grown(self, c: Any, b: Any) -> Any:
            if to.flip:
                weight, bias = self.transposed.weight.flip([2, 3]), self.transposed.bias
                y = functional.conv_transpose2d(c, weight, bias, stride=2)
            elif to.up == "functional" or not to.bias:
                bias = self.transposed.bias if to.bias else None
                y = functional.conv_transpose2d(c, self.transposed.weight, bias, stride=2)
            else:
                y = self.transposed(c)
            right, below = b.shape[3] - y.shape[3], b.shape[2] - y.shape[2]
            if to.pad == "left":
                return functional.pad(y, (right, 0, below, 0))
            if to.pad == "enlarged":
                return functional.interpolate(y, size=b.shape[2:], mode="nearest")
            return functional.pad(y, (0, right, 0, below))

        def enlarged(self, y: Any, a: Any) -> Any:
            size = (int(a.shape[2]), int(a.shape[3]))
            if to.mode == "nearest":
                return functional.interpolate(y, size=size, mode="nearest")
            if to.mode == "bicubic":
                return functional.interpolate(y, size=size, mode="bicubic", align_corners=False)
            if to.by == "twice":  # and what is too much, cropped
                y = functional.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
                return functional.pad(y, (0, size[1] - y.shape[3], 0, size[0] - y.shape[2]))
            return functional.interpolate(y, size=size, mode="bilinear", align_corners=to.corners)

        def pooled(self, x: Any) -> Any:
            return functional.avg_pool2d(x, 2) if to.pool == "mean" else self.shrink(x)

        def forward(self, x: Any) -> Any:
            a = self.encoder[0](x)
            b = self.encoder[1](self.pooled(a))
            c = self.encoder[2](self.pooled(b))
            grown = self.grown(c, b)
            skip = {"detached": b.detach(), "missing": b * 0, "of the pool": functional.relu(b - b.mean())}.get(
                to.skip, b
            )
            y = self.decoder[0](fw.cat([grown, skip] if to.join == "up first" else [skip, grown], dim=1))
            y = self.enlarged(y, a)
            y = self.mixed(self.decoder[1](fw.cat([y, a] if to.join == "up first, at the top" else [a, y], dim=1)))
            if to.end == "mean before the sigmoid":
                return self.fc(fw.sigmoid(y.mean((2, 3))))
            if to.end == "softmax":
                return self.fc(functional.softmax(y, 1).mean((2, 3)))
            return self.fc((1 / (1 + fw.exp(-y)) if to.sigmoid == "formula" else fw.sigmoid(y)).mean((2, 3)))

    return Port()


def rename(**choices: Any) -> Rename:
    """What the port calls the reference's modules and parameters."""
    names: dict[str, Any] = {"up1": "transposed", "outc": "mixed", "head": "fc"}
    units = {"inc": "encoder.0", "down1": "encoder.1", "down2": "encoder.2", "conv1": "decoder.0", "conv2": "decoder.1"}
    for ours, theirs in units.items():
        names |= {f"{ours}.0": f"{theirs}.convolution", f"{ours}.1": f"{theirs}.normalise"}
    return names


NET = Net(name="unet", reference=lambda: drawn(UNet()), port=port, rename=rename, fields={"image_size": 16})
ENLARGED = ("conv1.1>conv2.0", "conv1>conv2", "conv1.1>conv2", "conv1>conv2.0")
JOINED = ("up1>conv1.0", "up1>conv1")
POOLED = ("pool", "inc.1>down1.0", "inc>down1", "inc>down1.0", "inc.1>down1")
END = ("outc>head",)
UNIT = ("down1.2", "down1.1>down2.0", "down1.1>down2", "down1")

EQUAL = [
    Case(name="plain"),
    Case(name="functional, sigmoid by hand", choices={"up": "functional", "sigmoid": "formula"}),
    Case(name="reversed registration", choices={"reversed": True}),
    Case(name="odd images", fields={"image_size": 19}),
    Case(
        name="twice as large, even images",
        choices={"by": "size"},
        fields={"image_size": 24, "optimizer": "adamw", "lr": 1e-3},
    ),
    Case(name="frozen parts, clipped", fields={"strategy": "head_then_full", "phase_epochs": 2, "clip_norm": 1.0}),
]
FAULTS = [
    Case(name="corners aligned", choices={"corners": True}, places=ENLARGED),
    Case(name="nearest for bilinear", choices={"mode": "nearest"}, places=ENLARGED),
    Case(name="bicubic for bilinear", choices={"mode": "bicubic"}, places=ENLARGED),
    Case(
        name="twice as large, odd images cropped", choices={"by": "twice"}, fields={"image_size": 19}, places=ENLARGED
    ),
    Case(name="up first in the concatenation", choices={"join": "up first"}, places=JOINED),
    Case(name="up first, at the top", choices={"join": "up first, at the top"}, places=ENLARGED),
    Case(
        name="skip detached",
        choices={"skip": "detached"},
        places=(*JOINED, "down1.1>down2.0", "down1.1>down2", "down1"),
    ),
    Case(name="skip missing", choices={"skip": "missing"}, places=JOINED),
    Case(name="skip centred", choices={"skip": "of the pool"}, places=JOINED),
    Case(name="padded on the left", choices={"pad": "left"}, fields={"image_size": 18}, places=JOINED),
    Case(name="enlarged, not padded", choices={"pad": "enlarged"}, fields={"image_size": 18}, places=JOINED),
    Case(
        name="odd maps rounded up",
        choices={"ceil": True},
        fields={"image_size": 18},
        places=("pool", "down1.1>down2.0", "down1>down2", "down1.1>down2", "down1>down2.0", *POOLED),
    ),
    Case(name="mean pool for max pool", choices={"pool": "mean"}, places=POOLED),
    Case(name="ELU for ReLU", choices={"act": "elu"}, places=UNIT),
    Case(
        name="activation before the norm",
        choices={"norm": "activation before"},
        places=(*UNIT, "down1.1", "down1.0>down1.1"),
    ),
    Case(
        name="replicated at the border",
        choices={"padding": "replicate"},
        places=("down1.0", "down1", *POOLED, "inc.1>down1.1"),
    ),
    Case(
        name="transposed kernel flipped",
        choices={"flip": True},
        places=("up1", "down2.1>up1", "down2.1>conv1.0", *JOINED),
    ),
    Case(
        name="transposed convolution without its bias",
        choices={"bias": False},
        places=("up1", "down2.1>conv1.0", *JOINED),
    ),
    Case(name="mean before the sigmoid", choices={"end": "mean before the sigmoid"}, places=END),
    Case(name="softmax for sigmoid", choices={"end": "softmax"}, places=END),
]
CASES = spread("unet", EQUAL, FAULTS)
