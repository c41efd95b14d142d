"""(5) A DenseNet with GroupNorm: concatenations, transitions, pools."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from support.porting.case import Case, Net, Rename, chosen, drawn, spread

START, GROWTH, GROUPS, CLASSES = 8, 4, 4, 5


class DenseLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(width, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.relu(self.norm(x)))], dim=1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, START, 3, padding=1)
        self.pool0 = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        self.denselayer1 = DenseLayer(START)
        self.denselayer2 = DenseLayer(START + GROWTH)
        self.norm = nn.GroupNorm(GROUPS, START + 2 * GROWTH)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(START + 2 * GROWTH, START, 1, bias=False)
        self.pool = nn.MaxPool2d(2, 2)
        self.denselayer3 = DenseLayer(START)
        self.norm5 = nn.GroupNorm(GROUPS, START + GROWTH)
        self.classifier = nn.Linear(4 * (START + GROWTH), CLASSES)
        self.avgpool = nn.AdaptiveAvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.denselayer2(self.denselayer1(self.pool0(self.conv0(x))))
        x = self.denselayer3(self.pool(self.conv(self.relu(self.norm(x)))))
        logits: Tensor = self.classifier(self.avgpool(self.relu(self.norm5(x))).flatten(1))
        return logits


DEFAULTS = {
    "norm": "module",
    "flat": False,  # the layers as attributes of the network
    "lists": False,  # features kept in a list and joined at each layer
    "pooling": "module",
    "reversed": False,
    # What goes wrong in the second layer, or at the named place.
    "join": "right",
    "groups": GROUPS,
    "eps": 1e-5,
    "order": "right",
    "relu": "relu",
    "counted": False,
    "ceil": False,
    "transition": "max",
    "final": "right",
    "dilation": 1,
    "inplace": False,
    "detach": False,
    "dropout": 0.0,
    "flatten": "right",
    "swap": False,
    "kernel": "right",
}


def port(fw: Any, **choices: Any) -> Any:
    """The port; `choices` says how it is written, or what is wrong with it."""
    to = chosen(DEFAULTS, choices)
    nn, functional = fw.nn, fw.nn.functional

    class HandNorm(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, groups: int, width: int, eps: float) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(fw.ones(width)), nn.Parameter(fw.zeros(width))
            self.groups, self.eps = groups, eps

        def forward(self, x: Any) -> Any:
            n, c, h, w = x.shape
            y = x.reshape(n, self.groups, -1)
            centred = y - y.mean(2, keepdim=True)
            y = centred / fw.sqrt((centred * centred).mean(2, keepdim=True) + self.eps)
            return y.reshape(n, c, h, w) * self.weight.reshape(1, c, 1, 1) + self.bias.reshape(1, c, 1, 1)

    def norm(width: int, groups: int = GROUPS, eps: float = 1e-5) -> Any:
        return HandNorm(groups, width, eps) if to.norm == "by hand" else nn.GroupNorm(groups, width, eps=eps)

    class Layer(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, width: int, faulty: bool) -> None:
            super().__init__()
            self.faulty = faulty
            self.to = to if faulty else chosen(DEFAULTS, {})
            self.gn = norm(width, self.to.groups, self.to.eps)
            self.grow = nn.Conv2d(width, GROWTH, 3, padding=self.to.dilation, dilation=self.to.dilation, bias=False)
            self.drop = nn.Dropout(self.to.dropout)

        def forward(self, x: Any) -> Any:
            to = self.to
            if to.inplace:  # the activation of what is joined later
                y = self.grow(functional.relu(self.gn(x)))
                x = functional.relu(x)
                return fw.cat([x, y], dim=1)
            if to.order == "activation first":
                y = self.grow(self.gn(functional.relu(x)))
            else:
                normed = self.gn(x)
                y = functional.leaky_relu(normed, 0.01) if to.relu == "leaky" else functional.relu(normed)
                if to.join == "normed":
                    x = normed
                y = self.grow(y)
            y = self.drop(y)
            x = x.detach() if to.detach else x
            return fw.cat([y, x] if to.join == "new first" else [x, y], dim=1)

    class Port(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            if to.reversed:
                self.fc = nn.Linear(4 * (START + GROWTH), CLASSES)
            self.stem = nn.Conv2d(3, START, 3, padding=1)
            layers = [Layer(START, False), Layer(START + GROWTH, True), Layer(START, False)]
            self.dense = nn.ModuleList(layers)
            self.squash = nn.Sequential(norm(START + 2 * GROWTH), nn.Conv2d(START + 2 * GROWTH, START, 1, bias=False))
            self.last = norm(START + GROWTH)
            if not to.reversed:
                self.fc = nn.Linear(4 * (START + GROWTH), CLASSES)
            self.first_pool = nn.AvgPool2d(3, 2, 1, count_include_pad=to.counted)
            self.second_pool = nn.MaxPool2d(2, 2, ceil_mode=to.ceil)

        def first(self, x: Any) -> Any:
            if to.pooling == "functional":
                return functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
            if to.kernel == "two":
                return functional.avg_pool2d(x, 2, 2)
            return self.first_pool(x)

        def second(self, x: Any) -> Any:
            if to.transition == "mean":
                return functional.avg_pool2d(x, 2, 2)
            if to.transition == "stride":
                return x[:, :, ::2, ::2]
            return functional.max_pool2d(x, 2, 2) if to.pooling == "functional" else self.second_pool(x)

        def forward(self, x: Any) -> Any:
            x = self.dense[1](self.dense[0](self.first(self.stem(x))))
            x = self.squash[1](functional.relu(self.squash[0](x)))
            x = self.dense[2](self.second(x))
            x = functional.relu(self.last(x))
            if to.final == "by halves":  # equal where the halves are
                half = (x.shape[2] // 2, x.shape[3] // 2)
                x = functional.avg_pool2d(x, half, half)[:, :, :2, :2]
            elif to.final == "max":
                x = functional.adaptive_max_pool2d(x, 2)
            elif to.final == "one":
                x = functional.adaptive_avg_pool2d(x, 1).expand(-1, -1, 2, 2)
            else:
                x = functional.adaptive_avg_pool2d(x, 2)
            if to.flatten == "NHWC":
                x = x.permute(0, 2, 3, 1)
            return self.fc(x.reshape(x.shape[0], -1))

    return Port()


def rename(**choices: Any) -> Rename:
    """What the port calls the reference's modules and parameters."""
    names: dict[str, Any] = {"conv0": "stem", "norm": "squash.0", "conv": "squash.1", "norm5": "last"}
    names["classifier"] = "fc"
    for number in range(3):
        names |= {f"denselayer{number + 1}.norm": f"dense.{number}.gn"}
        names |= {f"denselayer{number + 1}.conv": f"dense.{number}.grow"}
    return names


NET = Net(name="dense", reference=lambda: drawn(DenseNet()), port=port, rename=rename, fields={"image_size": 20})
LAYER = "denselayer2"
JOIN = (LAYER, f"{LAYER}.conv>norm")
NORM = (f"{LAYER}.norm",)
ACT = (LAYER, f"{LAYER}.relu", f"{LAYER}.norm>{LAYER}.conv")
FIRST = ("pool0", "conv0>denselayer1.norm", "conv0>denselayer1")
SECOND = ("pool", "conv>denselayer3.norm", "conv>denselayer3")
FINAL = ("avgpool", "norm5>classifier")

EQUAL = [
    Case(name="plain"),
    Case(name="GroupNorm by hand", choices={"norm": "by hand"}),
    Case(name="functional pools, reversed registration", choices={"pooling": "functional", "reversed": True}),
    Case(name="AdamW", fields={"optimizer": "adamw", "lr": 1e-3}),
    Case(name="GroupNorm by hand, RMSprop", choices={"norm": "by hand"}, fields={"optimizer": "rmsprop", "lr": 1e-3}),
    Case(name="odd images, moving average", fields={"image_size": 23, "ema": 0.9, "micro_batch": 16}),
]
FAULTS = [
    Case(name="new features first", choices={"join": "new first"}, places=JOIN),
    Case(name="normed features joined", choices={"join": "normed"}, places=JOIN),
    Case(name="two groups for four", choices={"groups": 2}, places=NORM),
    Case(name="one group", choices={"groups": 1}, places=NORM),
    Case(name="eps 1e-6 for 1e-5", choices={"eps": 1e-6}, places=NORM),
    Case(
        name="activation before the norm",
        choices={"order": "activation first"},
        places=(*ACT, *NORM, f"denselayer1.conv>{LAYER}.norm"),
    ),
    Case(name="leaky ReLU", choices={"relu": "leaky"}, places=ACT),
    Case(name="padding counted in the average", choices={"counted": True}, places=FIRST),
    Case(name="average over two by two", choices={"kernel": "two"}, places=FIRST),
    Case(name="odd maps rounded up", choices={"ceil": True}, fields={"image_size": 21}, places=SECOND),
    Case(name="mean pool for max pool", choices={"transition": "mean"}, places=SECOND),
    Case(name="every second pixel for max pool", choices={"transition": "stride"}, places=SECOND),
    Case(name="max pool at the end", choices={"final": "max"}, framework="torch", places=FINAL),
    Case(name="pooled to one by one", choices={"final": "one"}, places=FINAL),
    Case(name="pooled by halves, odd maps", choices={"final": "by halves"}, fields={"image_size": 20}, places=FINAL),
    Case(
        name="pooled by halves, even maps at the recipe's size",
        choices={"final": "by halves"},
        fields={"image_size": 16},
        places=FINAL,
    ),
    Case(name="flattened from NHWC", choices={"flatten": "NHWC"}, places=FINAL),
    Case(name="dilated", choices={"dilation": 2}, places=(f"{LAYER}.conv",)),
    Case(name="activation of what is joined", choices={"inplace": True}, places=JOIN),
    Case(name="joined features detached", choices={"detach": True}, places=JOIN),
    Case(name="dropout that was not there", choices={"dropout": 0.2}, places=("dense.1.drop",)),
]
CASES = spread("dense", EQUAL, FAULTS)
