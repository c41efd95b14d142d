"""A small network with BatchNorm and dropout, of the same values in each framework."""

from __future__ import annotations

from typing import Any

import numpy as np


def net_of(framework: Any) -> Any:
    """Return the network in a framework's own modules: its head is `fc`."""
    nn = framework.nn
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1))

    class Net(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.fc = backbone, nn.Linear(256, 10)

        def forward(self, images: Any) -> Any:
            return self.fc(self.backbone(images))

    net, drawn = Net(), np.random.default_rng(0)
    for _, parameter in net.named_parameters():
        values = drawn.normal(0.0, 0.1, tuple(parameter.shape)).astype(np.float32)
        parameter.data.copy_(framework.from_numpy(values))
    return net
