"""(4) Shared and tied modules: a Linear and a norm used several times, an autoencoder whose halves share a matrix."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from support.porting.case import Case, Net, Rename, chosen, drawn, spread

WIDTH, NARROW, PATCH, CLASSES = 12, 6, 4, 5


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.norm = nn.LayerNorm(WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.act = nn.Tanh()
        self.down = nn.Linear(WIDTH, NARROW)
        self.up_bias = nn.Linear(1, WIDTH)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).mean(2)
        for _ in range(3):
            x = x + self.act(self.mix(self.norm(x)))
        code = F.relu(self.down(x))
        x = x + F.linear(code, self.down.weight.t()) + self.up_bias(x.mean(1, keepdim=True))
        x = self.second(self.act(self.first(x)))
        logits: Tensor = self.head(self.norm(x))
        return logits


DEFAULTS = {
    "style": "module",  # or "functional": parameters alone, and functions
    "tie": "parameter",  # or "module": one Linear and a bias
    "loop": "for",  # or "written out"
    "reversed": False,
    # What goes wrong.
    "rounds": 3,
    "normed": "each round",
    "last_norm": True,
    "input": "right",
    "tied": "tied",
    "act": "tanh",
    "between": True,
    "bias": "own",
    "round2": "right",
    "mixed": "right",
}


def port(fw: Any, **choices: Any) -> Any:
    """The port; `choices` says how it is written, or what is wrong with it."""
    to = chosen(DEFAULTS, choices)
    nn, functional = fw.nn, fw.nn.functional

    class Vector(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(fw.zeros(WIDTH))

    class Port(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            if to.reversed:
                self.classifier = nn.Linear(WIDTH, CLASSES)
            self.patchify = nn.Conv2d(3, WIDTH, PATCH, PATCH)
            self.mixer, self.ln = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
            self.encode, self.shift = nn.Linear(WIDTH, NARROW), nn.Linear(1, WIDTH)
            self.one = nn.Linear(WIDTH, WIDTH)
            self.two = Vector() if to.tie == "module" else nn.Linear(WIDTH, WIDTH)
            if to.tie == "parameter" and to.tied != "untied":
                self.two.weight = self.one.weight
            if not to.reversed:
                self.classifier = nn.Linear(WIDTH, CLASSES)

        def mix(self, x: Any, number: int) -> Any:
            if to.style == "functional":
                y = functional.layer_norm(x, (WIDTH,), self.ln.weight, self.ln.bias)
                y = functional.linear(y, self.mixer.weight, self.mixer.bias)
            else:
                y = self.ln(x) if to.normed == "each round" or number == 0 else x
                y = self.mixer(y.detach() if to.round2 == "detached" and number == 1 else y)
            if to.round2 == "transposed" and number == 1:
                y = functional.linear(self.ln(x), self.mixer.weight.transpose(0, 1), self.mixer.bias)
            if to.round2 == "without its bias" and number == 1:
                y = functional.linear(self.ln(x), self.mixer.weight)
            return functional.relu(y) if to.act == "relu" else fw.tanh(y)

        def forward(self, x: Any) -> Any:
            start = x = self.patchify(x).flatten(2).mean(2)
            if to.loop == "for":
                for number in range(to.rounds):
                    x = x + self.mix(start if to.input == "first" and number else x, number)
            else:
                x = x + self.mix(x, 0)
                x = x + self.mix(x, 1)
                x = x + self.mix(x, 2)
            code = functional.relu(self.encode(x))
            weight = self.encode.weight.transpose(0, 1)
            if to.tied == "decoder detached":
                weight = weight.detach()
            decoded = functional.linear(code, weight)
            mean = code.mean(1, keepdim=True) if to.mixed == "of the code" else x.mean(1, keepdim=True)
            x = x + decoded + self.shift(mean)
            y = fw.tanh(self.one(x)) if to.between else self.one(x)
            if to.tied == "transposed":
                x = functional.linear(y, self.one.weight.transpose(0, 1), self.two.bias)
            elif to.tied == "detached":
                x = functional.linear(y, self.one.weight.detach(), self.two.bias)
            elif to.bias == "shared":
                x = functional.linear(y, self.one.weight, self.one.bias) + 0 * self.two.bias
            elif to.tie == "module":
                x = functional.linear(y, self.one.weight, self.two.bias)
            else:
                x = self.two(y)
            return self.classifier(self.ln(x) if to.last_norm else x)

    return Port()


def rename(**choices: Any) -> Rename:
    """What the port calls the reference's modules and parameters."""
    names = {"embed": "patchify", "norm": "ln", "mix": "mixer", "down": "encode", "up_bias": "shift", "first": "one"}
    return {**names, "second": "two", "head": "classifier"}


NET = Net(name="shared", reference=lambda: drawn(Shared()), port=port, rename=rename, fields={"image_size": 16})
ROUNDS = ("mix", "mix>mix", "norm", "norm>mix", "mix>norm", "act", "embed>norm")
AFTER = ("mix>down", "mix>norm", "down")
TIED = ("first>second", "second", "first")

EQUAL = [
    Case(name="plain"),
    Case(name="functional", choices={"style": "functional"}),
    Case(name="tied by one module", choices={"tie": "module"}),
    Case(name="written out, reversed registration", choices={"loop": "written out", "reversed": True}),
    Case(name="AdamW, clipped", fields={"optimizer": "adamw", "lr": 1e-3, "clip_norm": 0.5}),
    Case(
        name="functional, tied by one module, Nesterov's sizes",
        choices={"style": "functional", "tie": "module"},
        fields={"image_size": 24, "momentum": 0.8},
    ),
]
FAULTS = [
    Case(name="two rounds for three", choices={"rounds": 2}, places=(*AFTER, *ROUNDS)),
    Case(name="norm in the first round alone", choices={"normed": "once"}, places=ROUNDS),
    Case(name="each round from the first's input", choices={"input": "first"}, places=ROUNDS),
    Case(name="second round transposed", choices={"round2": "transposed"}, places=ROUNDS),
    Case(name="second round without its bias", choices={"round2": "without its bias"}, places=ROUNDS),
    Case(name="second round detached", choices={"round2": "detached"}, places=ROUNDS),
    Case(name="ReLU for tanh", choices={"act": "relu"}, places=("mix>norm", "mix>down", "act")),
    Case(
        name="last norm missing",
        choices={"last_norm": False},
        places=("norm", "norm>head", "second>norm", "second>head"),
    ),
    Case(
        name="untied", choices={"tied": "untied"}, refused=True, says=r"first\.weight = second\.weight is one parameter"
    ),
    Case(name="second use detached", choices={"tied": "detached"}, says=r"gradient first\.weight.* own code"),
    Case(name="second use transposed", choices={"tied": "transposed"}, places=(*TIED, "first>norm", "second>norm")),
    Case(name="bias tied too", choices={"bias": "shared"}, places=(*TIED, "first>norm", "second>norm")),
    Case(name="decoder detached", choices={"tied": "decoder detached"}, says=r"gradient down\.weight.* own code"),
    Case(name="activation between missing", choices={"between": False}, places=("first>second", "act", "first>norm")),
    Case(name="shift from the code", choices={"mixed": "of the code"}, places=("down>up_bias", "up_bias")),
]
CASES = spread("shared", EQUAL, FAULTS)
