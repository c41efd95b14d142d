"""(8) An embedding: a classifier of token sequences with positions, padding and one attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from support.porting.case import Case, Net, Rename, chosen, drawn, spread
from support.porting.parts import gelu, layer_norm

WORDS, LENGTH, WIDTH, CLASSES, ROWS, PAD = 20, 9, 8, 5, 24, 0


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH, padding_idx=PAD)
        self.position = nn.Embedding(LENGTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.act = nn.GELU()
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        real = ids != PAD
        x = self.embed(ids) * math.sqrt(WIDTH) + self.position(torch.arange(ids.shape[1], device=ids.device))
        y = self.norm(x)
        scores = self.query(y) @ self.key(y).transpose(1, 2) / math.sqrt(WIDTH)
        x = x + scores.masked_fill(~real[:, None, :], -1e9).softmax(2) @ self.value(y)
        x = x + self.act(self.conv(x.transpose(1, 2))).transpose(1, 2)
        kept = real.to(x.dtype)[:, :, None]
        logits: Tensor = self.head((x * kept).sum(1) / kept.sum(1))
        return logits


DEFAULTS = {
    "positions": "embedding",  # or "parameter"
    "lookup": "module",  # or "functional", "one-hot"
    "norm": "module",
    "gelu": "module",
    "reversed": False,
    "padding": True,
    "scale": True,
    "offset": 0,
    "mask": "right",
    "mean": "real",
    "gelu_kind": "right",
    "eps": 1e-5,
    "root": True,
    "conv": "right",
    "causal": False,
    "embed_norm": False,
    "detach": False,
}


def port(fw: Any, **choices: Any) -> Any:
    """The port; `choices` says how it is written, or what is wrong with it."""
    to = chosen(DEFAULTS, choices)
    nn, functional = fw.nn, fw.nn.functional

    class Positions(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(fw.zeros(LENGTH, WIDTH))

    class Port(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            if to.reversed:
                self.classifier = nn.Linear(WIDTH, CLASSES)
            self.words = nn.Embedding(WORDS, WIDTH, padding_idx=PAD if to.padding else None)
            self.places = nn.Embedding(LENGTH, WIDTH) if to.positions == "embedding" else Positions()
            self.ln = layer_norm(fw, WIDTH, to.norm, to.eps)
            self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
            self.convolution = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
            if not to.reversed:
                self.classifier = nn.Linear(WIDTH, CLASSES)

        def embedded(self, ids: Any) -> Any:
            length = ids.shape[1]
            if to.lookup == "one-hot":
                hot = (ids.unsqueeze(2) == fw.arange(WORDS).reshape(1, 1, -1)).to(self.words.weight.dtype)
                hot = fw.cat([hot[:, :, :1] * 0, hot[:, :, 1:]], dim=2)  # what pads is at 0 and has no gradient
                x = fw.matmul(hot, self.words.weight)
                x = x + (1 - hot.sum(2, keepdim=True)) * self.words.weight[:1].detach()
            else:
                x = self.words(ids)
            x = x.detach() if to.detach else x
            x = x * WIDTH**0.5 if to.scale else x
            if to.positions == "embedding":
                where = (fw.arange(length) + to.offset) % LENGTH
                return x + self.places(where.reshape(1, -1))
            return x + self.places.weight[:length]

        def attended(self, y: Any, real: Any) -> Any:
            scores = fw.matmul(self.q(y), self.k(y).transpose(1, 2))
            scores = scores / WIDTH**0.5 if to.root else scores / WIDTH
            keep = real.to(scores.dtype).unsqueeze(1)
            if to.mask == "queries":
                keep = real.to(scores.dtype).unsqueeze(2)
            if to.mask != "missing":
                scores = scores * keep + (1 - keep) * -1e9
            if to.causal:
                scores = scores + (fw.tril(fw.ones(LENGTH, LENGTH)) - 1).to(scores.dtype) * 1e9
            weights = functional.softmax(scores, dim=2)
            if to.mask == "times":  # behind the softmax, so the rows no longer add up to one
                weights = functional.softmax(fw.matmul(self.q(y), self.k(y).transpose(1, 2)) / WIDTH**0.5, dim=2) * keep
            return fw.matmul(weights, self.v(y))

        def forward(self, ids: Any) -> Any:
            real = ids.ne(PAD)
            x = self.embedded(ids)
            if to.embed_norm:
                x = self.ln(x)
                x = x + self.attended(x, real)
            else:
                x = x + self.attended(self.ln(x), real)
            y = x.transpose(1, 2)
            if to.conv == "causal":
                y = functional.conv1d(functional.pad(y, (2, 0)), self.convolution.weight, self.convolution.bias)
            else:
                y = self.convolution(y)
            x = x + gelu(fw, y, to.gelu).transpose(1, 2)
            if to.mean == "all":
                return self.classifier(x.mean(1))
            kept = real.to(x.dtype).unsqueeze(2)
            if to.mean == "by the length":
                return self.classifier((x * kept).mean(1))
            if to.mean == "first":
                return self.classifier(x[:, 0])
            return self.classifier((x * kept).sum(1) / kept.sum(1))

    return Port()


def rename(**choices: Any) -> Rename:
    """What the port calls the reference's modules and parameters."""
    names = {"embed": "words", "position": "places", "norm": "ln", "query": "q", "key": "k", "value": "v"}
    return {**names, "conv": "convolution", "head": "classifier"}


def batch() -> dict[str, Any]:
    """Draw sequences of several lengths, padded behind, and labels."""
    rng = np.random.default_rng(8)
    ids = rng.integers(1, WORDS, (ROWS, LENGTH))
    for row, length in enumerate(rng.integers(3, LENGTH + 1, ROWS)):
        ids[row, length:] = PAD
    return {"ids": ids, "labels": np.arange(ROWS) % CLASSES}


def cross_entropy(outputs: Any, labels: Any, kind: str = "mean", smoothing: float = 0.0) -> Any:
    """Cross-entropy in operations that both frameworks have, or with a usual mistake."""
    log = outputs - outputs.exp().sum(1, keepdim=True).log()
    each = -log.gather(1, labels.reshape(-1, 1))
    if smoothing:
        each = each * (1 - smoothing) - log.mean(1, keepdim=True) * smoothing
    if kind == "first class ignored":
        counts = (labels != 0).to(outputs.dtype).reshape(-1, 1)
        return (each * counts).sum() / counts.sum()
    if kind == "of the probabilities":
        again = (log.exp() - log.exp().exp().sum(1, keepdim=True).log()).gather(1, labels.reshape(-1, 1))
        return -again.mean()
    return each.sum() if kind == "sum" else each.mean()


def loss(outputs: Any, batch: Any) -> Any:
    """The reference's loss."""
    return cross_entropy(outputs, batch["labels"])


def other_loss(**options: Any) -> Any:
    """Return a loss with a mistake."""
    return lambda outputs, batch: cross_entropy(outputs, batch["labels"], **options)


NET = Net(name="tokens", reference=lambda: drawn(Tokens()), port=port, rename=rename, fields={}, batch=batch, loss=loss)
EMBEDDED = ("embed>position", "position>norm", "embed>norm")
ATTENTION = ("value>conv", "query>conv", "key>conv", "norm>conv", "key>value")
MEAN = ("conv>head",)
LOSS = r"loss"

EQUAL = [
    Case(name="plain"),
    Case(
        name="positions as a parameter, norm and GELU by hand",
        choices={"positions": "parameter", "norm": "by hand", "gelu": "formula"},
    ),
    Case(name="words by one-hot", choices={"lookup": "one-hot"}),
    Case(name="AdamW, reversed registration", choices={"reversed": True}, fields={"optimizer": "adamw", "lr": 1e-3}),
    Case(name="loss in another form", loss=other_loss(smoothing=0.0)),
]
FAULTS = [
    Case(name="the padding's embedding trains", choices={"padding": False}, places=("embed", "embed>norm")),
    Case(name="embedding without its scale", choices={"scale": False}, places=EMBEDDED),
    Case(name="positions off by one", choices={"offset": 1}, places=("position", *EMBEDDED)),
    Case(name="padding not masked", choices={"mask": "missing"}, places=ATTENTION),
    Case(name="queries masked", choices={"mask": "queries"}, places=ATTENTION),
    Case(name="masked behind the softmax", choices={"mask": "times"}, places=ATTENTION),
    Case(name="attention causal", choices={"causal": True}, places=ATTENTION),
    Case(name="scores divided by the width", choices={"root": False}, places=ATTENTION),
    Case(name="mean over the padding too", choices={"mean": "all"}, places=MEAN),
    Case(name="mean by the whole length", choices={"mean": "by the length"}, places=MEAN),
    Case(name="first word for the mean", choices={"mean": "first"}, places=MEAN),
    Case(name="GELU by tanh", choices={"gelu": "tanh"}, places=("act", *MEAN)),
    Case(name="eps 1e-6 for 1e-5", choices={"eps": 1e-6}, places=("norm",)),
    Case(name="convolution causal", choices={"conv": "causal"}, places=("conv", *ATTENTION, *MEAN, "value>head")),
    Case(name="residual from behind the norm", choices={"embed_norm": True}, places=ATTENTION),
    Case(name="embedding detached", choices={"detach": True}, places=("embed", *EMBEDDED)),
    Case(name="loss summed", loss=other_loss(kind="sum"), says=LOSS),
    Case(name="labels smoothed", loss=other_loss(smoothing=0.1), says=LOSS),
    Case(name="a class ignored", loss=other_loss(kind="first class ignored"), says=LOSS),
    Case(name="softmax taken twice", loss=other_loss(kind="of the probabilities"), says=LOSS),
]
CASES = spread("tokens", EQUAL, FAULTS)
