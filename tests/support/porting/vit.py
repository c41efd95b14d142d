"""(1) A vision transformer: class token, learned positions, merged projections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from support.porting.case import Case, Net, Rename, chosen, double, drawn, spread, train_mode
from support.porting.parts import gelu, layer_norm
from tlx.proof import mapping

WIDTH, HEADS, DEPTH, PATCH, SIDE, CLASSES = 16, 2, 2, 4, 16, 5
TOKENS = (SIDE // PATCH) ** 2


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * (c // HEADS) ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        mixed: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(n, t, c))
        return mixed


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 2 * WIDTH)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, TOKENS + 1, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        logits: Tensor = self.head(x[:, 0])
        return logits


DEFAULTS = {
    "qkv": "merged",  # or "separate"
    "gelu": "module",
    "norm": "module",
    "patches": "convolution",  # or "linear"
    "attention": "matmul",  # or "einsum"
    "reversed": False,  # the order of registration
    "eps": 1e-6,
    "dropout": None,  # a Dropout of this rate behind each sublayer
    # What goes wrong, and in the second block only where there are two.
    "scale": True,
    "axis": -1,
    "heads": "right",
    "order": "qkv",
    "token": "first",
    "positions": "after",
    "pool": "token",
    "final_norm": True,
    "residual": "right",
    "scan": "rows",
    "bias": True,
    "detach": "",
    "gradient": 1.0,
}


def port(fw: Any, **choices: Any) -> Any:
    """The port; `choices` says how it is written, or what is wrong with it."""
    to = chosen(DEFAULTS, choices)
    nn, functional = fw.nn, fw.nn.functional

    class SelfAttention(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, last: bool) -> None:
            super().__init__()
            self.last = last
            if to.reversed:
                self.out = nn.Linear(WIDTH, WIDTH)
            if to.qkv == "merged":
                self.in_proj = nn.Linear(WIDTH, 3 * WIDTH)
            else:
                self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
            if not to.reversed:
                self.out = nn.Linear(WIDTH, WIDTH)

        def projections(self, x: Any) -> list[Any]:
            if to.qkv == "separate":
                three = [self.query(x), self.key(x), self.value(x)]
            else:
                bias = self.in_proj.bias if to.bias or not self.last else None
                three = list(functional.linear(x, self.in_proj.weight, bias).chunk(3, -1))
            return [three["qkv".index(letter)] for letter in (to.order if self.last else "qkv")]

        def forward(self, x: Any) -> Any:
            n, t, c = x.shape
            q, k, v = (self.split(y) for y in self.projections(x))
            if self.last and to.detach == "keys":
                k = (k * 1.0).detach()  # OneFlow's detach forgets the strides of a permuted tensor
            einsum = to.attention == "einsum"
            scores = fw.einsum("nhqc,nhkc->nhqk", q, k) if einsum else fw.matmul(q, k.transpose(2, 3))
            if to.scale or not self.last:
                scores = scores / (c // HEADS) ** 0.5
            y = fw.matmul(functional.softmax(scores, to.axis if self.last else -1), v)
            joined = y.reshape(n, t, c) if self.last and to.heads == "joined wrongly" else self.join(y)
            return self.out(joined)

        def split(self, x: Any) -> Any:
            n, t, c = x.shape
            if self.last and to.heads == "split wrongly":
                return x.reshape(n, HEADS, t, c // HEADS)
            if self.last and to.heads == "interleaved":
                return x.reshape(n, t, c // HEADS, HEADS).permute(0, 3, 1, 2)
            return x.reshape(n, t, HEADS, c // HEADS).permute(0, 2, 1, 3)

        def join(self, x: Any) -> Any:
            n, h, t, c = x.shape
            return x.permute(0, 2, 1, 3).reshape(n, t, h * c)

    class EncoderLayer(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, last: bool) -> None:
            super().__init__()
            self.last = last
            if to.reversed:
                self.fc_out, self.fc_in = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
            self.ln_1 = layer_norm(fw, WIDTH, to.norm, to.eps if last else 1e-6)
            self.self_attention = SelfAttention(last)
            self.ln_2 = layer_norm(fw, WIDTH, to.norm, 1e-6)
            if not to.reversed:
                self.fc_in, self.fc_out = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
            if to.dropout is not None:
                self.drop = nn.Dropout(to.dropout)

        def forward(self, x: Any) -> Any:
            drop = self.drop if to.dropout is not None else lambda y: y
            wrong = to.residual if self.last else "right"
            normed = self.ln_1(x)
            attended = self.self_attention(normed)
            if self.last and to.detach == "attention":
                attended = attended.detach()
            x = drop(attended) + (normed if wrong == "from the norm" else x)
            hidden = gelu(fw, self.fc_in(self.ln_2(x)), to.gelu if self.last or to.gelu == "formula" else "module")
            y = drop(self.fc_out(hidden))
            if wrong == "missing":
                return y
            return y * to.gradient + (y * (1 - to.gradient)).detach() + x if self.last else x + y

    class Vit(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            if to.reversed:
                self.classifier, self.ln = nn.Linear(WIDTH, CLASSES), layer_norm(fw, WIDTH, to.norm, 1e-6)
            self.token = nn.Parameter(fw.zeros(1, 1, WIDTH))
            self.positions = nn.Parameter(fw.zeros(1, TOKENS + 1, WIDTH))
            if to.patches == "linear":
                self.patchify = nn.Linear(3 * PATCH * PATCH, WIDTH)
            else:
                self.patchify = nn.Conv2d(3, WIDTH, PATCH, PATCH)
            self.encoder = nn.Module()
            for number in range(DEPTH):
                self.encoder.add_module(f"layer_{number}", EncoderLayer(number == DEPTH - 1))
            if not to.reversed:
                self.ln, self.classifier = layer_norm(fw, WIDTH, to.norm, 1e-6), nn.Linear(WIDTH, CLASSES)

        def patches(self, x: Any) -> Any:
            if to.patches == "linear":
                n, c, h, w = x.shape
                y = x.reshape(n, c, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
                return self.patchify(y.reshape(n, -1, c * PATCH * PATCH))
            y = self.patchify(x)
            if to.scan == "columns":
                y = y.transpose(2, 3)
            return y.flatten(2).transpose(1, 2)

        def forward(self, x: Any) -> Any:
            x = self.patches(x)
            token = self.token.expand(x.shape[0], -1, -1)
            if to.positions == "before":  # the token is added without its own
                x = fw.cat([token, x + self.positions[:, 1:]], dim=1)
            elif to.positions == "shifted":
                x = fw.cat([token + self.positions[:, -1:], x + self.positions[:, :-1]], dim=1)
            else:
                x = fw.cat([x, token] if to.token == "last" else [token, x], dim=1) + self.positions
            for number in range(DEPTH):
                x = getattr(self.encoder, f"layer_{number}")(x)
            if to.pool == "before the norm":
                return self.classifier(self.ln(x.mean(1)))
            x = self.ln(x) if to.final_norm else x
            if to.pool == "mean":
                return self.classifier(x.mean(1))
            return self.classifier(x[:, -1] if to.token == "last" else x[:, 0])

    return Vit()


def rename(**choices: Any) -> Rename:
    """What the port calls the reference's modules and parameters."""
    to = chosen(DEFAULTS, choices)
    names: dict[str, Any] = {"cls_token": "token", "pos_embed": "positions", "norm": "ln", "head": "classifier"}
    names["patch_embed"] = "patchify"
    for n in range(DEPTH):
        names |= {
            f"blocks.{n}.norm1": f"encoder.layer_{n}.ln_1",
            f"blocks.{n}.norm2": f"encoder.layer_{n}.ln_2",
            f"blocks.{n}.attn.qkv": f"encoder.layer_{n}.self_attention.in_proj",
            f"blocks.{n}.attn.proj": f"encoder.layer_{n}.self_attention.out",
            f"blocks.{n}.mlp.fc1": f"encoder.layer_{n}.fc_in",
            f"blocks.{n}.mlp.fc2": f"encoder.layer_{n}.fc_out",
        }
    if to.qkv == "separate":
        for n in range(DEPTH):
            attention = f"encoder.layer_{n}.self_attention"
            names[f"blocks.{n}.attn.qkv"] = tuple(f"{attention}.{part}" for part in ("query", "key", "value"))
    if to.patches == "linear":
        names["patch_embed"] = mapping.reshape("patchify")
    return names


NET = Net(name="vit", reference=lambda: drawn(VisionTransformer()), port=port, rename=rename, fields={"image_size": 16})
LAST = f"blocks.{DEPTH - 1}"
IN_ATTENTION = (f"{LAST}.attn", f"{LAST}.attn.qkv>{LAST}.attn.proj")
IN_MLP = (f"{LAST}.mlp", f"{LAST}.mlp.act", f"{LAST}.mlp.fc1>{LAST}.mlp.fc2")
AT_THE_START = ("patch_embed>blocks.0.norm1",)
AT_THE_END = (f"{LAST}.mlp.fc2>norm", LAST)

EQUAL = [
    Case(name="plain"),
    Case(name="norm and GELU by hand", choices={"norm": "by hand", "gelu": "formula"}),
    Case(name="separate query, key and value", choices={"qkv": "separate"}),
    Case(name="patches by Linear", choices={"patches": "linear"}),
    Case(name="einsum, reversed registration", choices={"attention": "einsum", "reversed": True}),
    Case(name="Dropout(0)", choices={"dropout": 0.0}),
    Case(name="AdamW, decay on weights", fields={"optimizer": "adamw", "decay_on": "weights", "lr": 1e-3}),
    Case(
        name="AdamW, norms by hand, decay on weights",
        choices={"norm": "by hand"},
        fields={"optimizer": "adamw", "decay_on": "weights", "lr": 1e-3},
    ),
    Case(name="moving average, clipped, train mode", fields={"ema": 0.9, "clip_norm": 0.5}, prepare=train_mode),
    Case(name="float64 on one side", prepare=double),
]
FAULTS = [
    Case(name="GELU by tanh", choices={"gelu": "tanh"}, places=IN_MLP),
    Case(name="GELU by sigmoid", choices={"gelu": "sigmoid"}, places=IN_MLP),
    Case(name="GELU with a float32 constant", choices={"gelu": "float32 constant"}, places=IN_MLP),
    Case(name="eps 1e-5 for 1e-6", choices={"eps": 1e-5}, places=(f"{LAST}.norm1",)),
    Case(name="attention without its scale", choices={"scale": False}, places=IN_ATTENTION),
    Case(name="softmax over the queries", choices={"axis": 2}, places=IN_ATTENTION),
    Case(name="heads split without a transposition", choices={"heads": "split wrongly"}, places=IN_ATTENTION),
    Case(name="heads joined without a transposition", choices={"heads": "joined wrongly"}, places=IN_ATTENTION),
    Case(name="heads interleaved", choices={"heads": "interleaved"}, places=IN_ATTENTION),
    Case(name="query and key swapped", choices={"order": "kqv"}, places=IN_ATTENTION),
    Case(name="key and value swapped", choices={"order": "qvk"}, places=IN_ATTENTION),
    Case(name="projection without its bias", choices={"bias": False}, places=(*IN_ATTENTION, f"{LAST}.attn.qkv")),
    Case(name="class token appended", choices={"token": "last"}, places=AT_THE_START),
    Case(name="positions added before the token", choices={"positions": "before"}, places=AT_THE_START),
    Case(name="positions off by one", choices={"positions": "shifted"}, places=AT_THE_START),
    Case(name="patches read by columns", choices={"scan": "columns"}, places=AT_THE_START),
    Case(name="mean for the class token", choices={"pool": "mean"}, places=("norm>head",)),
    Case(name="mean before the last norm", choices={"pool": "before the norm"}, places=(*AT_THE_END, "norm>head")),
    Case(name="last norm missing", choices={"final_norm": False}, places=("norm", "norm>head", f"{LAST}.mlp.fc2>head")),
    Case(name="residual missing", choices={"residual": "missing"}, places=AT_THE_END),
    Case(
        name="residual from behind the norm",
        choices={"residual": "from the norm"},
        places=(f"{LAST}.attn.proj>{LAST}.norm2", LAST),
    ),
    Case(name="keys detached", choices={"detach": "keys"}, places=IN_ATTENTION),
    Case(
        name="attention detached",
        choices={"detach": "attention"},
        places=(f"{LAST}.attn.proj>{LAST}.norm2", LAST, f"{LAST}.attn.proj"),
    ),
    Case(
        name="gradient of a branch halved",
        choices={"gradient": 0.5},
        places=(*AT_THE_END, f"{LAST}.mlp.fc2"),
    ),
    Case(name="Dropout(0.1) that was not there", choices={"dropout": 0.1}, places=("encoder.layer_0.drop",)),
]
CASES = spread("vit", EQUAL, FAULTS)
