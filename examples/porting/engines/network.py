"""The network that the engines beside this file port: two convolutions, a BatchNorm, a linear head, in PyTorch."""

from __future__ import annotations

import torch
from torch import nn


class Network(nn.Module):
    """3 x 16 x 16 pixels to 5 classes. `mix` has a square weight, which can be used transposed unnoticed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.mix = nn.Linear(16, 16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.conv(x)).mean((2, 3))
        return self.fc(torch.relu(self.mix(x)))
