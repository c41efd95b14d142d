"""fastai's `vision_learner`, as its documentation has it, with the head, the last stage or everything free."""

from __future__ import annotations

import os

os.environ.setdefault("FASTAI_TB_CLEAR_FRAMES", "1")

from functools import partial

import numpy as np
import torch
import torchvision
from common import DECAY, HEAD_LR, LR, MOMENTUM, Clock, arguments, report
from fastai.vision.all import (
    SGD,
    CategoryBlock,
    DataBlock,
    Flip,
    ImageBlock,
    IndexSplitter,
    Normalize,
    PILImage,
    Resize,
    accuracy,
    imagenet_stats,
    params,
    vision_learner,
)
from safetensors.numpy import load_file

a = arguments()
images, labels = np.concatenate([a.xtr, a.xte]), np.concatenate([a.ytr, a.yte])
block = DataBlock(
    blocks=(ImageBlock, CategoryBlock(vocab=list(range(int(a.ytr.max()) + 1)))),
    get_items=list,
    get_x=lambda i: PILImage.create(images[i]),
    get_y=lambda i: int(labels[i]),
    splitter=IndexSplitter(range(len(a.xtr), len(labels))),
    item_tfms=Resize(a.size),
    batch_tfms=[*([Flip()] if a.augment == "flips" else []), Normalize.from_stats(*imagenet_stats)],
)
loaders = block.dataloaders(range(len(labels)), bs=a.batch, num_workers=2)
learner = vision_learner(
    loaders,
    torchvision.models.resnet18,
    pretrained=False,
    metrics=accuracy,
    opt_func=partial(SGD, mom=MOMENTUM, wd=DECAY, decouple_wd=False),
    normalize=False,
    splitter=lambda net: [params(net[0][:7]), params(net[0][7:]), params(net[1])],  # the last stage is a group
)
body = torchvision.models.resnet18()
start = load_file(a.weights)
body.load_state_dict({name: torch.tensor(v) for name, v in start.items() if not name.startswith("fc.")}, strict=False)
learner.model[0].load_state_dict(torch.nn.Sequential(*list(body.children())[:-2]).state_dict())
learner.unfreeze()
if a.strategy == "feature_extract":
    learner.freeze()
elif a.strategy == "partial":
    learner.freeze_to(1)
rate = [LR, LR, HEAD_LR] if a.strategy in ("diff_lr", "partial") else HEAD_LR

clock, found = Clock(), 0.0
with learner.no_bar(), learner.no_logging():
    clock.start()
    # One call: training and the validation after each epoch together, so training's rate includes the latter.
    learner.fit(a.epochs, lr=rate)
    clock.trained()
    clock.start()
    found = float(learner.validate()[1])
    clock.evaluated()
report(a, clock.train, clock.evaluation, len(a.xte), found)
