"""Small networks of a framework's own modules that several processes train together."""

from __future__ import annotations

from typing import Any

from support.nets import Nets


def make(framework: str, name: str) -> Any:
    nets = Nets(framework)
    fw, nn = nets.fw, nets.nn
    fw.manual_seed(0)
    if name == "vit":
        return nets.vit()

    class ConvNorm(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
            self.bn1 = nn.BatchNorm2d(6, momentum=None if name == "cumulative" else 0.1)
            self.conv2 = nn.Conv2d(6, 8, 3, stride=2, bias=False)
            self.bn2 = nn.BatchNorm2d(8, affine=name != "plain")
            self.bn3 = nn.BatchNorm1d(8, track_running_stats=name != "untracked")
            self.drop = nn.Dropout(0.5 if name == "dropout" else 0.0)
            self.unused = nn.Linear(2, 2)
            self.fc = nn.Linear(8, 5)

        def forward(self, x: Any) -> Any:
            x = nn.functional.relu(self.bn1(self.conv1(x)))
            x = nn.functional.relu(self.bn2(self.conv2(x))).flatten(2).mean(2)
            return self.fc(self.drop(self.bn3(x)))

    return ConvNorm()
