"""Small networks of a framework's own modules that several processes train together."""

from __future__ import annotations

from typing import Any

from support.nets import Nets

MIXING: dict[str, Any] = {
    "instance": lambda nn: nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
    "sync": lambda nn: nn.SyncBatchNorm(6),
}


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
            self.unused = nn.Linear(2, 2)  # has no gradient in any process
            self.fc = nn.Linear(8, 5)
            if name in MIXING:
                self.other = MIXING[name](nn)

        def forward(self, x: Any) -> Any:
            x = nn.functional.relu(self.bn1(self.conv1(x)))
            if name == "functional":
                x = nn.functional.dropout(x, 0.5, self.training)
            elif name == "homemade" and self.training:
                x = x - x.mean(0, keepdim=True)
            elif name in MIXING:
                x = self.other(x)
            x = nn.functional.relu(self.bn2(self.conv2(x))).flatten(2).mean(2)
            return self.fc(self.drop(x if name == "maps" else self.bn3(x)))

    return ConvNorm()
