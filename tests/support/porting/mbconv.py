"""(3) MBConv: depthwise convolutions, BatchNorm, squeeze-excite and stochastic depth."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from support.porting.case import Case, Net, Rename, chosen, drawn, spread
from support.porting.parts import batch_norm_by_hand, drop_path, swish
from tlx.proof import mapping

WIDTH, EXPANDED, SQUEEZED, CLASSES, EPS = 8, 16, 4, 5, 1e-3


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(EXPANDED, SQUEEZED, 1)
        self.act = nn.SiLU()
        self.expand = nn.Conv2d(SQUEEZED, EXPANDED, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))
        return y


class MBConv(nn.Module):
    def __init__(self, stride: int, rate: float) -> None:
        super().__init__()
        self.conv_pw = nn.Conv2d(WIDTH, EXPANDED, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(EXPANDED, eps=EPS)
        self.conv_dw = nn.Conv2d(EXPANDED, EXPANDED, 3, stride, 1, groups=EXPANDED, bias=False)
        self.bn2 = nn.BatchNorm2d(EXPANDED, eps=EPS)
        self.act = nn.SiLU()
        self.se = SqueezeExcite()
        self.conv_pwl = nn.Conv2d(EXPANDED, WIDTH, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(WIDTH, eps=EPS)
        self.drop_path = StochasticDepth(rate, "row")
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv_pw(x)))
        y = self.se(self.act(self.bn2(self.conv_dw(y))))
        y = self.bn3(self.conv_pwl(y))
        return x + self.drop_path(y) if self.stride == 1 else y  # type: ignore[no-any-return]


class MobileNet(nn.Module):
    def __init__(self, rate: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, WIDTH, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH, eps=EPS)
        self.act = nn.SiLU()
        self.blocks = nn.Sequential(MBConv(1, rate), MBConv(2, rate), MBConv(1, rate))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act(self.bn1(self.conv_stem(x))))
        logits: Tensor = self.classifier(self.dropout(self.pool(x).flatten(1)))
        return logits


DEFAULTS = {
    "norm": "module",
    "swish": "silu",
    "squeeze": "convolution",  # or "linear"
    "rate": 0.0,
    "dropout": 0.0,
    "dropped": "module",  # or "functional"
    "reversed": False,
    # What goes wrong in the last block, or at the named place.
    "act": "silu",
    "gate": "sigmoid",
    "squeezed": "silu",
    "pool": "mean",
    "excite": "times",
    "eps": EPS,
    "momentum": 0.1,
    "biased": False,
    "frozen": False,
    "drop": "right",
    "residual": "right",
    "same": False,
    "linear": True,
    "order": "right",
    "drop_at": "head",
    "stem": "right",
    "groups": "right",
}


def port(fw: Any, **choices: Any) -> Any:
    """The port; `choices` says how it is written, or what is wrong with it."""
    to = chosen(DEFAULTS, choices)
    nn, functional = fw.nn, fw.nn.functional

    def norm(width: int, last: bool = False) -> Any:
        eps, momentum = (to.eps, to.momentum) if last else (EPS, 0.1)
        if to.norm == "by hand":
            return batch_norm_by_hand(fw, width, eps, momentum, to.biased and last)
        return nn.BatchNorm2d(width, eps=eps, momentum=momentum)

    class Gate(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, last: bool) -> None:
            super().__init__()
            self.last = last
            make = nn.Linear if to.squeeze == "linear" else (lambda a, b: nn.Conv2d(a, b, 1))
            self.fc1, self.fc2 = make(EXPANDED, SQUEEZED), make(SQUEEZED, EXPANDED)

        def forward(self, x: Any) -> Any:
            last, linear = self.last, to.squeeze == "linear"
            y = x.amax((2, 3), keepdim=True) if last and to.pool == "max" else x.mean((2, 3), keepdim=True)
            y = self.fc1(y.flatten(1) if linear else y)
            y = self.fc2(swish(fw, y, to.squeezed if last else to.swish))
            y = functional.hardsigmoid(y) if last and to.gate == "hard" else fw.sigmoid(y)
            y = y.reshape(y.shape[0], -1, 1, 1) if linear else y
            if last and to.excite == "detached":
                y = y.detach()
            if last and to.excite == "on the batch's first":
                y = y[:1]
            return x + y if last and to.excite == "plus" else x * y

    class InvertedResidual(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, stride: int, last: bool) -> None:
            super().__init__()
            self.stride, self.last = stride, last
            if to.reversed:
                self.norm_c, self.linear = norm(WIDTH), nn.Conv2d(EXPANDED, WIDTH, 1, bias=False)
            self.widen = nn.Conv2d(WIDTH, EXPANDED, 1, bias=False)
            self.norm_a = norm(EXPANDED)
            self.depthwise = nn.Conv2d(EXPANDED, EXPANDED, 3, stride, 1, groups=EXPANDED, bias=False)
            self.norm_b = norm(EXPANDED, last)
            self.excite = Gate(last)
            if not to.reversed:
                self.linear, self.norm_c = nn.Conv2d(EXPANDED, WIDTH, 1, bias=False), norm(WIDTH)
            self.skip = drop_path(fw, to.rate, to.drop if last else "right")

        def normed(self, y: Any) -> Any:
            if self.last and to.frozen:
                self.norm_b.eval()
            return self.norm_b(y)

        def forward(self, x: Any) -> Any:
            act = to.act if self.last else to.swish
            y = swish(fw, self.norm_a(self.widen(x)), to.swish)
            if self.stride == 2 and to.same:  # as TensorFlow pads
                y = functional.conv2d(functional.pad(y, (0, 1, 0, 1)), self.depthwise.weight, None, 2, 0, 1, EXPANDED)
            else:
                y = self.depthwise(y)
            if self.last and to.order == "excite before the activation":
                y = swish(fw, self.excite(self.normed(y)), act)
            else:
                y = self.excite(swish(fw, self.normed(y), act))
            y = self.norm_c(self.linear(y))
            if self.last and not to.linear:
                y = swish(fw, y, "silu")
            if self.stride == 2:
                return y
            if self.last and to.residual == "missing":
                return self.skip(y)
            if self.last and to.residual == "after the depth":
                return self.skip(x + y)
            return x + self.skip(y)

    class Port(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1, bias=False), norm(WIDTH))
            self.features = nn.Sequential(*(InvertedResidual(s, n == 2) for n, s in enumerate((1, 2, 1))))
            self.drop, self.fc = nn.Dropout(to.dropout), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Any) -> Any:
            x = self.stem(x) if to.stem == "right" else self.stem[1](self.stem[0](x.flip(1)))
            x = self.features(swish(fw, x, to.swish))
            if to.drop_at == "before the pool":
                return self.fc(self.drop(x).mean((2, 3)))
            x = x.mean((2, 3))
            if to.dropped == "functional":
                return self.fc(functional.dropout(x, to.dropout, training=self.training))
            return self.fc(self.drop(x))

    return Port()


PARTS = {"conv_pw": "widen", "bn1": "norm_a", "conv_dw": "depthwise", "bn2": "norm_b", "se.reduce": "excite.fc1"}
SQUEEZES = {"reduce": "fc1", "expand": "fc2"}
PARTS |= {"se.expand": "excite.fc2", "conv_pwl": "linear", "bn3": "norm_c"}


def rename(**choices: Any) -> Rename:
    """What the port calls the reference's modules and parameters."""
    to = chosen(DEFAULTS, choices)
    names: dict[str, Any] = {"conv_stem": "stem.0", "bn1": "stem.1", "classifier": "fc"}
    names |= {f"blocks.*.{ours}": f"features.*.{theirs}" for ours, theirs in PARTS.items()}
    if to.squeeze == "linear":
        names |= {f"blocks.*.se.{a}": mapping.reshape(f"features.*.excite.{b}") for a, b in SQUEEZES.items()}
    return names


FIELDS = {"image_size": 20}
NET = Net(name="mbconv", reference=lambda: drawn(MobileNet()), port=port, rename=rename, fields=FIELDS)
DEEP = Net(name="mbconv", reference=lambda: drawn(MobileNet(0.25)), port=port, rename=rename, fields=FIELDS)
DROPS = Net(name="mbconv", reference=lambda: drawn(MobileNet(0.0, 0.3)), port=port, rename=rename, fields=FIELDS)
LAST = "blocks.2"
EXCITE = (f"{LAST}.se", f"{LAST}.se.expand>{LAST}.conv_pwl")
SQUEEZE = (f"{LAST}.se", f"{LAST}.bn2>{LAST}.se.reduce")
IN_SQUEEZE = (f"{LAST}.se", f"{LAST}.se.act", f"{LAST}.se.reduce>{LAST}.se.expand")
ACT = (LAST, f"{LAST}.act", f"{LAST}.bn2>{LAST}.se.reduce", f"{LAST}.bn2>{LAST}.se")
BEHIND = (LAST, f"{LAST}.bn3>classifier", f"{LAST}.drop_path")
NORM = (f"{LAST}.bn2",)
BY_HAND = {"norm": "by hand", "swish": "formula"}

EQUAL = [
    Case(name="plain"),
    Case(name="BatchNorm and swish by hand", choices={**BY_HAND, "act": "formula", "squeezed": "formula"}),
    Case(name="squeeze-excite by Linear", choices={"squeeze": "linear"}),
    Case(name="reversed registration", choices={"reversed": True}),
    Case(name="RMSprop, clipped", fields={"optimizer": "rmsprop", "lr": 1e-3, "clip_norm": 1.0}),
    Case(name="AdamW, moving average", fields={"optimizer": "adamw", "lr": 1e-3, "ema": 0.9}),
    Case(name="head first, then everything", fields={"strategy": "head_then_full", "phase_epochs": 2}),
    Case(name="mixed, smoothed, balanced", fields={"mixup": 0.4, "label_smoothing": 0.1, "sampler": "balanced"}),
]
FAULTS = [
    Case(name="ReLU for swish", choices={"act": "relu"}, places=ACT),
    Case(name="hard swish", choices={"act": "hard"}, places=ACT),
    Case(name="hard sigmoid in the gate", choices={"gate": "hard"}, places=EXCITE),
    Case(name="ReLU in the squeeze", choices={"squeezed": "relu"}, places=IN_SQUEEZE),
    Case(name="squeezed by the maximum", choices={"pool": "max"}, places=SQUEEZE),
    Case(name="gate added", choices={"excite": "plus"}, places=EXCITE),
    Case(name="gate detached", choices={"excite": "detached"}, places=EXCITE),
    Case(name="one gate for the batch", choices={"excite": "on the batch's first"}, places=EXCITE),
    Case(
        name="excite before the activation", choices={"order": "excite before the activation"}, places=(*ACT, *SQUEEZE)
    ),
    Case(name="BatchNorm's eps 1e-5", choices={"eps": 1e-5}, places=NORM),
    Case(name="BatchNorm's momentum 0.01", choices={"momentum": 0.01}, places=NORM),
    Case(name="BatchNorm's momentum 0.9", choices={"momentum": 0.9}, places=NORM),
    Case(
        name="BatchNorm keeps the biased variance",
        choices={**BY_HAND, "biased": True, "act": "formula", "squeezed": "formula"},
        places=NORM,
    ),
    Case(name="BatchNorm frozen while it trains", choices={"frozen": True}, places=NORM),
    Case(
        name="padded as TensorFlow pads",
        choices={"same": True},
        places=("blocks.1", "blocks.1.conv_dw", "blocks.1.bn1>blocks.1.bn2", "blocks.1.bn1>blocks.1.conv_dw"),
    ),
    Case(name="activation behind the projection", choices={"linear": False}, places=BEHIND),
    Case(name="residual missing", choices={"residual": "missing"}, places=BEHIND),
    Case(name="BGR", choices={"stem": "flipped"}, places=(">conv_stem", "conv_stem")),
]
DEEP_EQUAL = [
    Case(name="stochastic depth by hand", choices={"rate": 0.25}),
    Case(name="stochastic depth, AdamW", choices={"rate": 0.25}, fields={"optimizer": "adamw", "lr": 1e-3}),
]
OWN = r"features\.2\.skip"  # draws random numbers of its own, which no dropout explains
DEEP_FAULTS = [
    Case(name="depth per batch", choices={"rate": 0.25, "drop": "per batch"}, places=BEHIND, says=OWN),
    Case(name="depth unscaled", choices={"rate": 0.25, "drop": "unscaled"}, places=BEHIND, says=OWN),
    Case(name="residual inside the depth", choices={"rate": 0.25, "residual": "after the depth"}, places=BEHIND),
]
DROPS_EQUAL = [
    Case(name="dropout", choices={"dropout": 0.3}),
    Case(name="functional dropout", choices={"dropout": 0.3, "dropped": "functional"}),
]
HEAD = ("dropout", f"{LAST}.bn3>classifier", f"{LAST}>classifier")
DROPS_FAULTS = [
    Case(name="dropout at another rate", choices={"dropout": 0.2}, places=HEAD),
    Case(name="dropout before the pool", choices={"dropout": 0.3, "drop_at": "before the pool"}, places=HEAD),
    Case(name="dropout missing", choices={"dropout": 0.0}, places=HEAD),
]
CASES = spread("mbconv", EQUAL, FAULTS)
DEEP_CASES = spread("mbconv", DEEP_EQUAL, DEEP_FAULTS)
DROPS_CASES = spread("mbconv", DROPS_EQUAL, DROPS_FAULTS)
