"""Lightning's Trainer around the tutorial's model, with a frozen or a free backbone."""

from __future__ import annotations

import logging
import tempfile
import warnings
from typing import Any

import lightning
import torch
import torchvision
import torchvision.transforms as T
from common import DECAY, HEAD_LR, LR, MEAN, MOMENTUM, STD, Clock, arguments, report
from PIL import Image
from safetensors.numpy import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")
a = arguments()
lightning.seed_everything(0, verbose=False)
plain = [T.Resize(a.size), T.ToTensor(), T.Normalize(MEAN, STD)]
flips = [T.RandomHorizontalFlip(), T.RandomVerticalFlip()] if a.augment == "flips" else []


class Images(Dataset):
    def __init__(self, images: Any, labels: Any, transform: Any) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])


class Transfer(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = torchvision.models.resnet18()
        start = load_file(a.weights)
        kept = {name: torch.tensor(v) for name, v in start.items() if not name.startswith("fc.")}
        self.model.load_state_dict(kept, strict=False)
        self.model.fc = nn.Linear(self.model.fc.in_features, int(a.ytr.max()) + 1)
        self.right = 0

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.model(x), y)

    def validation_step(self, batch: Any, number: int) -> None:
        x, y = batch
        self.right += int((self.model(x).argmax(1) == y).sum())

    def on_validation_epoch_start(self) -> None:
        self.right = 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        head = list(self.model.fc.parameters())
        body = [p for name, p in self.model.named_parameters() if not name.startswith("fc.")]
        if a.strategy == "full":
            groups = [{"params": [*body, *head], "lr": HEAD_LR}]
        elif a.strategy == "diff_lr":
            groups = [{"params": body, "lr": LR}, {"params": head, "lr": HEAD_LR}]
        else:
            for p in body:
                p.requires_grad = False
            groups = [{"params": head, "lr": HEAD_LR}]
            if a.strategy == "partial":
                last = list(self.model.layer4.parameters())
                for p in last:
                    p.requires_grad = True
                groups.insert(0, {"params": last, "lr": LR})
        return torch.optim.SGD(groups, lr=HEAD_LR, momentum=MOMENTUM, weight_decay=DECAY)


train = DataLoader(Images(a.xtr, a.ytr, T.Compose([*flips, *plain])), batch_size=a.batch, shuffle=True, num_workers=2)
test = DataLoader(Images(a.xte, a.yte, T.Compose(plain)), batch_size=a.batch, num_workers=2)
clock, job = Clock(), Transfer()
with tempfile.TemporaryDirectory() as scratch:
    trainer = lightning.Trainer(
        max_epochs=a.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=scratch,
    )
    clock.start()
    # One call: training and the validation after each epoch together, so training's rate includes the latter.
    trainer.fit(job, train, test)
    clock.trained()
    clock.start()
    trainer.validate(job, test, verbose=False)
    clock.evaluated()
report(a, clock.train, clock.evaluation, len(a.xte), job.right / len(a.xte))
