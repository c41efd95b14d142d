"""CIFAR-10, three ways and from scratch.

OneFlow's transfer-learning tutorial: a ResNet-18 with ImageNet weights learns CIFAR-10 at 224 pixels with both flips,
batches of 64, SGD at 0.001 with momentum 0.9 and weight decay 5e-4, for 3 epochs. Method 1 trains everything, method 2
trains the backbone ten times slower, method 3 trains the head alone; from scratch there are no weights. The tutorial
reports 0.9017 for method 1 and 0.4957 from scratch, with torchvision's own weights. The weights here are others, so the
yardstick is the same loop written by hand with the same weights and images.

All 50,000 images are for PyTorch. On OneFlow they are one command too: the one of `all-full-torch` with
`--backend oneflow`, which takes some eight hours on 2 cores, at 5 images a second.

    python examples/cifar10.py
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import tlx
import tutorial
from tlx.comparison.statistics import bootstrap
from tutorial import Tutorial, cifar10

METHODS = {"full": "method 1", "diff_lr": "method 2", "feature_extract": "method 3", "scratch": "from scratch"}
JOB: dict[str, Any] = {"batch_size": 64, "augment": "flips", "val_fraction": 0, "precision": "float32", "epochs": 3}
SIZES = {  # training images: both backends, method 3 on both, by hand, MobileNetV2; test images; pixels; seeds; epochs
    "check": (60, 60, 60, 60, 40, 16, 1, 1),
    "small": (128, 256, 128, 128, 200, 64, 1, 1),
    "whole": (2000, 5000, 5000, 10000, 2000, 224, 3, 3),
}


def method(strategy: str, **fields: Any) -> dict[str, Any]:
    """The tutorial's job by one of its methods."""
    rates = {"diff_lr": {"lr": 1e-3, "backbone_lr": 1e-4}}.get(strategy, {"lr": 1e-3})
    fields = {"strategy": strategy, **JOB, **rates, **fields}
    return {**fields, "weights": None} if strategy == "scratch" else fields


def by_hand(weights: str, train: Any, test: Any, size: int, epochs: int, seed: int) -> float:
    """Method 1 without tlx: the tutorial's loop in torch. `train` and `test` are images and labels as arrays."""
    import torch
    import torchvision
    from safetensors.torch import load_file
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(seed)
    model = torchvision.models.resnet18()
    model.fc = nn.Linear(model.fc.in_features, 10)
    if weights != "none":
        model.load_state_dict(load_file(weights), strict=False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def prepared(images: torch.Tensor) -> torch.Tensor:
        images = nn.functional.interpolate(images.permute(0, 3, 1, 2).float(), size=size, mode="bilinear")
        return (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)

    batches = DataLoader(TensorDataset(*map(torch.from_numpy, train)), batch_size=64, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    loss_of = nn.CrossEntropyLoss()
    for _ in range(epochs):
        model.train()
        for images, labels in batches:
            for axis in (1, 2):  # each image is flipped with a probability of one half, up-down and left-right
                flipped = torch.rand(len(images)) < 0.5
                images[flipped] = images[flipped].flip(axis)
            loss = loss_of(model(prepared(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    right = 0
    with torch.no_grad():
        for images, labels in DataLoader(TensorDataset(*map(torch.from_numpy, test)), batch_size=64):
            right += int((model(prepared(images)).argmax(1) == labels).sum())
    return right / len(test[1])


def runs(t: Tutorial) -> None:
    """All runs of the form."""
    both, third, hand, mobile, test, size, seeds, epochs = SIZES[t.form]
    sizes = {"image_size": size, "epochs": epochs}
    for strategy in METHODS:  # both backends from the same weights, with the same batches
        for backend in ("torch", "oneflow"):
            images = third if strategy == "feature_extract" else both
            fields = method(strategy, backend=backend, **sizes, limit_train=images, limit_test=test)
            t.run(f"both-{strategy}-{backend}", **start(t, fields))
        folders = [t.folder(f"both-{strategy}-{backend}") for backend in ("torch", "oneflow")]
        if all(folders):
            t.once(f"both-{strategy}-apart", partial(apart, *folders))
    fields = {**sizes, "limit_train": hand, "limit_test": test, "epochs": min(epochs, 2)}
    for seed in range(seeds):
        t.run(f"tlx-full.{seed}", **start(t, method("full", seed=seed, **fields)))
        t.once(f"by-hand-full.{seed}", partial(loop, t, fields, seed))
    if t.form == "check":
        return
    for strategy in METHODS:
        fields = method(strategy, model="mobilenet_v2", **sizes, precision="auto", limit_train=mobile, limit_test=test)
        t.run(f"mobilenet-{strategy}", **start(t, fields))
    if t.form == "whole":  # all 50,000 images
        for strategy in METHODS:
            t.run(f"all-{strategy}-torch", **start(t, method(strategy, **sizes, precision="auto")))


def start(t: Tutorial, fields: dict[str, Any]) -> dict[str, Any]:
    """Add the data, and the weights to all but what begins from scratch."""
    scratch = {"weights": None} if fields["strategy"] == "scratch" else {}
    fields = cifar10(t, **{name: value for name, value in fields.items() if name != "weights"})
    return {**fields, **scratch}


def loop(t: Tutorial, fields: dict[str, Any], seed: int) -> dict[str, Any]:
    """The loop by hand on the same images."""
    asked = cifar10(t, **fields)
    limits = {name: asked[name] for name in ("limit_train", "limit_test")}
    data = tlx.load_data(asked["data"], root=asked.get("data_root"), val_fraction=0, **limits)
    parts = [(np.stack([i.pixels(n) for n in range(len(i))]), i.labels) for i in (data.train, data.test)]
    return {"accuracy": by_hand(asked["weights"], *parts, asked["image_size"], fields["epochs"], seed)}


def show(t: Tutorial) -> None:
    """The table of all runs, and how far the two backends are apart on the same test images."""
    t.table("CIFAR-10")
    if any(label.endswith("-apart") for label in t.rows):
        t.say("\ntorch minus oneflow on the same test images, with the 95 % interval over the images:")
    for strategy, said in METHODS.items():
        found = t.rows.get(f"both-{strategy}-apart")
        if found:
            t.say(f"{said:12}  {found['mean']:+.4f}  [{found['low']:+.4f}, {found['high']:+.4f}]")
        t.near(f"both-{strategy}-torch", f"both-{strategy}-oneflow", 0.02 if strategy == "scratch" else 0.01)
    t.overlap("tlx-full", "by-hand-full")
    folder = t.folder("both-full-torch") or t.folder("both-feature_extract-torch")
    if folder:
        source = cifar10(t)
        drawn = t.picture("answers.png")
        tlx.draw(source["data"], drawn, run=folder, part="test", count=12, data_root=source.get("data_root"))


def apart(*folders: Any) -> dict[str, Any]:
    """How far two runs are apart on the same test images, with the 95 % interval over the images."""
    first, second = (right(folder) for folder in folders)
    mean, low, high = bootstrap([first - second])
    return {"mean": mean, "low": low, "high": high}


def right(folder: Any) -> np.ndarray:
    """Which test images a run has right, as 0.0 and 1.0 [N]."""
    table = tlx.load_predictions(folder, "test")
    return np.equal(table["label"], table["prediction"]).astype(float)


if __name__ == "__main__":
    tutorial.main("cifar10", runs, show)
