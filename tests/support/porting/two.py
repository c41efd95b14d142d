"""(7) Two inputs: a photo and a vector of measurements, joined by a feature-wise scale and shift."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.porting.case import Case, Net, Rename, chosen, drawn, spread

WIDTH, MEASURES, CLASSES, ROWS = 8, 6, 5, 24


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.measure = nn.Linear(MEASURES, WIDTH)
        self.act = nn.Tanh()
        self.scale = nn.Linear(WIDTH, WIDTH)
        self.shift = nn.Linear(WIDTH, WIDTH)
        self.joined = nn.Linear(3 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, photo: Tensor, measures: Tensor) -> Tensor:
        m = self.act(self.measure(measures))
        x = F.relu(self.conv1(photo))
        x = F.relu(self.conv2(x * (1 + self.scale(m)[:, :, None, None]) + self.shift(m)[:, :, None, None]))
        pooled = x.mean((2, 3))
        y = F.relu(self.joined(torch.cat([pooled, m, (pooled - m).abs()], dim=1)))
        logits: Tensor = self.head(y)
        return logits


DEFAULTS = {
    "style": "modules",
    "reversed": False,
    "act": "tanh",
    "film": "right",
    "order": "right",
    "abs": True,
    "swap": False,
    "pool": "mean",
    "measures": "right",
    "stride": "right",
    "bias": True,
    "joined": "relu",
    "photo": "right",
    "groups": 1,
}


def port(fw: Any, **choices: Any) -> Any:
    """The port; `choices` says how it is written, or what is wrong with it."""
    to = chosen(DEFAULTS, choices)
    nn, functional = fw.nn, fw.nn.functional

    class Film(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.gamma, self.beta = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Any, m: Any) -> Any:
            gamma, beta = self.gamma(m), self.beta(m)
            if to.film == "swapped":
                gamma, beta = beta, gamma
            if to.film == "detached":
                gamma = gamma.detach()
            gamma, beta = gamma.reshape(-1, WIDTH, 1, 1), beta.reshape(-1, WIDTH, 1, 1)
            return x * gamma + beta if to.film == "without one" else x * (1 + gamma) + beta

    class Port(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            if to.reversed:
                self.film, self.fc = Film(), nn.Linear(WIDTH, CLASSES)
            self.a, self.b = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)
            self.table, self.mix = nn.Linear(MEASURES, WIDTH), nn.Linear(3 * WIDTH, WIDTH)
            if not to.reversed:
                self.film, self.fc = Film(), nn.Linear(WIDTH, CLASSES)

        def measured(self, measures: Any) -> Any:
            if to.measures == "float32":
                measures = measures / fw.tensor(0.1).to(measures.dtype) * 0.1
            elif to.measures == "centred":
                measures = measures - measures.mean(0, keepdim=True)
            y = functional.linear(measures, self.table.weight, self.table.bias if to.bias else None)
            return fw.sigmoid(y) if to.act == "sigmoid" else fw.tanh(y)

        def convolved(self, x: Any) -> Any:
            if to.stride == "after":  # every second pixel of a convolution without stride, one off
                return functional.conv2d(x, self.b.weight, self.b.bias, 1, 1)[:, :, 1::2, 1::2]
            if to.style == "functional":
                return functional.conv2d(x, self.b.weight, self.b.bias, 2, 1)
            return self.b(x)

        def forward(self, photo: Any, measures: Any) -> Any:
            m = self.measured(measures)
            if to.photo == "transposed":
                photo = photo.transpose(2, 3)
            x = functional.relu(self.a(photo))
            if to.film == "behind the convolution":
                x = functional.relu(self.film(self.convolved(x), m))
            else:
                x = functional.relu(self.convolved(self.film(x, m)))
            pooled = x.sum((2, 3)) if to.pool == "sum" else x.mean((2, 3))
            distance = (pooled - m).abs() if to.abs else pooled - m
            parts = [pooled, m, distance]
            if to.order == "measures first":
                parts = [m, pooled, distance]
            y = self.mix(fw.cat(parts, dim=1))
            return self.fc(y if to.joined == "linear" else functional.relu(y))

    return Port()


def rename(**choices: Any) -> Rename:
    """What the port calls the reference's modules and parameters."""
    return {
        "conv1": "a",
        "conv2": "b",
        "measure": "table",
        "scale": "film.gamma",
        "shift": "film.beta",
        "joined": "mix",
        "head": "fc",
    }


def batch() -> dict[str, Any]:
    """Draw the two inputs and the labels."""
    rng = np.random.default_rng(7)
    photos = rng.standard_normal((ROWS, 3, 9, 9)).astype(np.float32)
    measures = rng.standard_normal((ROWS, MEASURES)).astype(np.float32)
    return {"photo": photos, "measures": measures, "labels": np.arange(ROWS) % CLASSES}


def loss(outputs: Any, batch: Any) -> Any:
    """Cross-entropy, in operations that both frameworks have."""
    labels = batch["labels"].reshape(-1, 1)
    log = outputs - outputs.exp().sum(1, keepdim=True).log()
    return -log.gather(1, labels).mean()


NET = Net(name="two", reference=lambda: drawn(TwoInputs()), port=port, rename=rename, fields={}, batch=batch, loss=loss)
FILM = ("conv1>conv2", "scale>conv2", "shift>conv2", "scale>shift")
JOIN = ("conv2>joined",)
MEASURE = ("act", "measure>scale", "measure>conv1", "measure>shift")

EQUAL = [
    Case(name="plain"),
    Case(name="functional, reversed registration", choices={"style": "functional", "reversed": True}),
    Case(name="AdamW, clipped", fields={"optimizer": "adamw", "lr": 1e-3, "clip_norm": 0.5}),
    Case(name="RMSprop, moving average", fields={"optimizer": "rmsprop", "lr": 1e-3, "ema": 0.9}),
]
FAULTS = [
    Case(name="scale and shift swapped", choices={"film": "swapped"}, places=FILM),
    Case(name="scale without one", choices={"film": "without one"}, places=FILM),
    Case(name="scale detached", choices={"film": "detached"}, places=(*FILM, "scale")),
    Case(
        name="scaled behind the convolution", choices={"film": "behind the convolution"}, places=(*FILM, "conv2>joined")
    ),
    Case(name="measures first", choices={"order": "measures first"}, places=JOIN),
    Case(name="difference without its absolute value", choices={"abs": False}, places=JOIN),
    Case(name="sum for mean", choices={"pool": "sum"}, places=JOIN),
    # Of the port's measures no module is called, so the stretch begins with the network.
    Case(name="sigmoid for tanh", choices={"act": "sigmoid"}, places=(*MEASURE, ">scale")),
    Case(name="measures through float32", choices={"measures": "float32"}, places=(">measure", "measure", ">scale")),
    Case(name="measures centred", choices={"measures": "centred"}, places=(">measure", "measure", ">scale")),
    Case(
        name="measures without their bias", choices={"bias": False}, places=("measure", *MEASURE, ">measure", ">scale")
    ),
    Case(name="photo transposed", choices={"photo": "transposed"}, places=(">conv1", "measure>conv1", "conv1")),
    Case(name="stride off by one", choices={"stride": "after"}, places=("conv2", *FILM, *JOIN, "shift>joined")),
    Case(name="activation missing", choices={"joined": "linear"}, places=("joined>head",)),
]
CASES = spread("two", EQUAL, FAULTS)
