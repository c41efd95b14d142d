"""The best loop by hand in torch: bfloat16 where it is native, channels last, whole-batch transforms."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as tlx sets it: spinning threads starve other processes

import numpy as np
import torch
import torchvision
from common import DECAY, HEAD_LR, LR, MEAN, MOMENTUM, STD, Clock, arguments, report
from safetensors.numpy import load_file
from torch import nn

a = arguments()
torch.manual_seed(0)
model = torchvision.models.resnet18()
start = load_file(a.weights)
model.load_state_dict({name: torch.tensor(v) for name, v in start.items() if not name.startswith("fc.")}, strict=False)
model.fc = nn.Linear(model.fc.in_features, int(a.ytr.max()) + 1)
model = model.to(memory_format=torch.channels_last)
head = list(model.fc.parameters())
body = [p for name, p in model.named_parameters() if not name.startswith("fc.")]
if a.strategy == "full":
    groups = [{"params": [*body, *head], "lr": HEAD_LR}]
elif a.strategy == "diff_lr":
    groups = [{"params": body, "lr": LR}, {"params": head, "lr": HEAD_LR}]
else:
    raise SystemExit("by_hand_fast.py has no cache; it races where everything trains")
optimizer = torch.optim.SGD(groups, lr=HEAD_LR, momentum=MOMENTUM, weight_decay=DECAY)
able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
native = able.get("amx_bf16", False) or able.get("avx512_bf16", False)
half = a.precision == "bfloat16" or (a.precision == "auto" and native)
mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
images = {
    name: torch.from_numpy(np.ascontiguousarray(getattr(a, name).transpose(0, 3, 1, 2))) for name in ("xtr", "xte")
}
labels = {name: torch.from_numpy(getattr(a, name)).long() for name in ("ytr", "yte")}


def ready(x: torch.Tensor) -> torch.Tensor:
    x = nn.functional.interpolate(x.float(), size=a.size, mode="bilinear", align_corners=False)
    return ((x / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def flipped(x: torch.Tensor) -> torch.Tensor:
    if a.augment == "flips":
        for dim in (3, 2):
            chosen = torch.rand(len(x)) < 0.5
            x[chosen] = x[chosen].flip(dim)
    return x


clock, accuracy = Clock(), 0.0
for _ in range(a.epochs):
    clock.start()
    model.train()
    for rows in torch.randperm(len(a.xtr)).split(a.batch):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            logits = model(ready(flipped(images["xtr"][rows])))
        loss = nn.functional.cross_entropy(logits.float(), labels["ytr"][rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    clock.trained()
    clock.start()
    model.eval()
    right = 0
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        for rows in torch.arange(len(a.xte)).split(a.batch):
            right += int((model(ready(images["xte"][rows])).argmax(1) == labels["yte"][rows]).sum())
    accuracy = right / len(a.xte)
    clock.evaluated()
report(a, clock.train, clock.evaluation, a.epochs * len(a.xte), accuracy)
