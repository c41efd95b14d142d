"""Tutorial 2. Porting a model by hand, from PyTorch to OneFlow: weights, the first divergence, its cause, the proof.

The model is in no zoo: a small network in the manner of ConvNeXt. Its port below is a first attempt, with the mistakes
of a first attempt. `tlx.parity` names them one after the other, each is fixed, and the last run is the proof.

    python examples/porting/2_by_hand.py
"""

from __future__ import annotations

import sys
from typing import Any

import oneflow as flow
import torch
from torch import nn

import tlx
from tlx.errors import TlxError


class Block(nn.Module):
    """Depthwise 7 x 7, LayerNorm over channels, two pointwise layers with GELU between, a scaled residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 2 * width)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(2 * width, width)
        self.gamma = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma(self.pwconv2(self.act(self.pwconv1(y))))
        return x + y.permute(0, 3, 1, 2)


class Reference(nn.Module):
    """What you have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.stem(x))).mean((2, 3)))


class PortedBlock(flow.nn.Module):
    """The port of `Block`; `fixes` says which of its mistakes are corrected."""

    def __init__(self, width: int, fixes: set[str]) -> None:
        super().__init__()
        self.fixes = fixes
        self.dwconv = flow.nn.Conv2d(width, width, 7, padding=3, groups=width)
        # Mistake 1: LayerNorm's customary eps is 1e-5, this model's is 1e-6.
        self.norm = flow.nn.LayerNorm(width, eps=1e-6 if "eps" in fixes else 1e-5)
        self.pwconv1 = flow.nn.Linear(width, 2 * width)
        # Mistake 2: another activation, which looks much the same when plotted.
        self.act = flow.nn.GELU() if "activation" in fixes else flow.nn.SiLU()
        self.pwconv2 = flow.nn.Linear(2 * width, width)
        self.gamma = flow.nn.Linear(width, width, bias=False)

    def forward(self, x: Any) -> Any:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(self.act(self.pwconv1(y)))
        # Mistake 3: the weight is square, so nothing complains when it is used the other way round.
        y = self.gamma(y) if "transposed" in self.fixes else flow.matmul(y, self.gamma.weight)
        return x + y.permute(0, 3, 1, 2)


class Port(flow.nn.Module):
    """What you wrote. The stem has another name here."""

    def __init__(self, fixes: set[str]) -> None:
        super().__init__()
        self.patchify = flow.nn.Conv2d(3, 16, 4, stride=4)
        self.blocks = flow.nn.Sequential(PortedBlock(16, fixes), PortedBlock(16, fixes))
        self.norm = flow.nn.BatchNorm2d(16)
        self.head = flow.nn.Linear(16, 5)

    def forward(self, x: Any) -> Any:
        return self.head(self.norm(self.blocks(self.patchify(x))).mean((2, 3)))


def main() -> int:
    torch.manual_seed(0)
    reference = Reference()

    print("First: do the names match?")
    try:
        tlx.parity(reference=reference, candidate=Port(set()), copy_weights=True, quick=True)
    except TlxError as error:
        print(f"   {error}\n")

    rename = {"stem": "patchify"}
    fixes: set[str] = set()
    # Which mistake is corrected after each report.
    for mistake in ("eps", "activation", "transposed", ""):
        report = tlx.parity(
            reference=reference, candidate=Port(fixes), rename=rename, copy_weights=True, quick=True, image_size=32
        )
        print(f"Fixed so far: {', '.join(sorted(fixes)) or 'nothing'}. {report.verdict.name}. {report.first}\n")
        if mistake:
            fixes.add(mistake)
    print(report)
    return int(report.verdict)


if __name__ == "__main__":
    sys.exit(main())
