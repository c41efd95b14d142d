"""The tutorials' loop by hand, on either framework: PIL transforms, a DataLoader with 2 workers, fp32."""

from __future__ import annotations

from typing import Any

from common import DECAY, HEAD_LR, LR, MEAN, MOMENTUM, STD, Clock, arguments, report
from PIL import Image
from safetensors.numpy import load_file

a = arguments()
if a.backend == "oneflow":
    import flowvision.models as zoo
    import flowvision.transforms as T
    import oneflow as fw
    from oneflow.utils.data import DataLoader, Dataset
else:
    import torch as fw
    import torchvision.models as zoo
    import torchvision.transforms as T
    from torch.utils.data import DataLoader, Dataset

nn = fw.nn
fw.manual_seed(0)
plain = [T.Resize(a.size), T.ToTensor(), T.Normalize(MEAN, STD)]
flips = [T.RandomHorizontalFlip(), T.RandomVerticalFlip()] if a.augment == "flips" else []


class Images(Dataset):
    def __init__(self, images: Any, labels: Any, transform: Any) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])


train = DataLoader(Images(a.xtr, a.ytr, T.Compose([*flips, *plain])), batch_size=a.batch, shuffle=True, num_workers=2)
test = DataLoader(Images(a.xte, a.yte, T.Compose(plain)), batch_size=a.batch, shuffle=False, num_workers=2)

model = zoo.resnet18()
start = load_file(a.weights)
model.load_state_dict({name: fw.tensor(v) for name, v in start.items() if not name.startswith("fc.")}, strict=False)
model.fc = nn.Linear(model.fc.in_features, int(a.ytr.max()) + 1)
head = list(model.fc.parameters())
body = [p for name, p in model.named_parameters() if not name.startswith("fc.")]
rule = {"momentum": MOMENTUM, "weight_decay": DECAY}
if a.strategy == "full":
    groups = [{"params": [*body, *head], "lr": HEAD_LR}]
elif a.strategy == "diff_lr":
    groups = [{"params": body, "lr": LR}, {"params": head, "lr": HEAD_LR}]
else:
    for p in body:
        p.requires_grad = False
    groups = [{"params": head, "lr": HEAD_LR}]
    if a.strategy == "partial":
        last = list(model.layer4.parameters())
        for p in last:
            p.requires_grad = True
        groups.insert(0, {"params": last, "lr": LR})
optimizer = fw.optim.SGD(groups, lr=HEAD_LR, **rule)
loss_of = nn.CrossEntropyLoss()


def evaluate() -> float:
    model.eval()
    right = 0
    with fw.no_grad():
        for x, y in test:
            right += int((model(x).argmax(dim=1) == y).sum().item())
    return right / len(a.xte)


clock, accuracy = Clock(), 0.0
for _ in range(a.epochs):
    clock.start()
    model.train()
    if a.frozen_norm == "keep":  # as tlx does, and the tutorials forget: frozen statistics stay what they are
        for module in model.modules():
            if isinstance(module, fw.nn.BatchNorm2d):
                module.eval()
    for x, y in train:
        loss = loss_of(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    float(loss)  # what is asked for last is computed last: OneFlow works behind the script's back
    clock.trained()
    clock.start()
    accuracy = evaluate()
    clock.evaluated()
report(a, clock.train, clock.evaluation, a.epochs * len(a.xte), accuracy)
