"""A network of one's own against a frozen giant.

Three convolutions and two linear layers, as tutorials write them with `view`, learn cats and dogs from nothing. Beside
them stands a network that has seen ImageNet: a new head of two layers learns with Adam while all the rest is frozen,
and then everything learns at a smaller rate. The photos are an archive with the folders train/ and valid/. The giants
are a ResNet-18 and a MobileNetV2; a ResNet-101 joins them where its ImageNet weights lie beside theirs, as torchvision
publishes them (resnet101-63fe2227.pth).

    python examples/own_network.py
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import tlx
import tutorial
from tutorial import DATA, Tutorial, cifar10

# photos in train/ and valid/, pixels, epochs, epochs of the head alone, seeds
SIZES = {"check": (40, 20, 16, 2, 1, 1), "small": (200, 100, 64, 4, 2, 1), "whole": (2000, 1000, 224, 10, 4, 3)}


def network(fw: Any, size: int, classes: int = 2) -> Any:
    """The network as its tutorial writes it, on either framework."""
    nn = fw.nn

    class Network(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
            self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
            self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
            self.pool = nn.MaxPool2d(2, 2)
            self.fc1 = nn.Linear(64 * (size // 8) ** 2, 500)
            self.fc2 = nn.Linear(500, classes)

        def forward(self, x: Any) -> Any:
            for conv in (self.conv1, self.conv2, self.conv3):
                x = self.pool(fw.relu(conv(x)))
            x = x.view(-1, 64 * (size // 8) ** 2)
            return self.fc2(fw.relu(self.fc1(x)))

    return Network()


def giant(name: str, weights: str, epochs: int, head_epochs: int) -> dict[str, Any]:
    """A pretrained network with a head of two layers: the head first, then everything, by Adam."""
    return {
        **{"model": name, "weights": weights, "hidden": 256, "optimizer": "adam", "weight_decay": 0.0},
        **{"strategy": "head_then_full", "lr": 1e-3, "backbone_lr": 1e-4, "epochs": epochs},
        "phase_epochs": head_epochs,
    }


def by_hand(model: Any, head: Any, epochs: int, head_epochs: int, batches: Any) -> None:
    """What the giant's recipe replaces: freeze, train the head, thaw, train everything at another rate."""
    import torch

    for parameter in model.parameters():
        parameter.requires_grad = False
    for parameter in head.parameters():
        parameter.requires_grad = True
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    for epoch in range(epochs):
        if epoch == head_epochs:
            for parameter in model.parameters():
                parameter.requires_grad = True
            inside = set(map(id, head.parameters()))
            backbone = [p for p in model.parameters() if id(p) not in inside]
            optimizer = torch.optim.Adam([{"params": backbone, "lr": 1e-4}, {"params": head.parameters(), "lr": 1e-3}])
        model.train()
        if epoch < head_epochs:  # the frozen part must not adapt its BatchNorm, and is easily forgotten
            model.eval()
            head.train()
        for images, labels in batches:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def runs(t: Tutorial) -> None:
    """Both networks on the same photos; each giant of which there are weights."""
    import torch

    _, _, size, epochs, head_epochs, seeds = SIZES[t.form]
    shared = {"data": str(archive(t)), "image_size": size, "batch_size": 20, "augment": "hflip"}
    for seed in range(seeds):
        torch.manual_seed(seed)
        own = {"model": network(torch, size), "head": "fc2", "strategy": "scratch", "lr": 0.01, "epochs": epochs}
        t.run(f"own.{seed}", **shared, **own, seed=seed, val_fraction=0.2)
        for model, weights in giants(t).items():
            fields = giant(model, weights, epochs, head_epochs)
            t.run(f"{model}.{seed}", **shared, **fields, seed=seed, val_fraction=0.2)


def giants(t: Tutorial) -> dict[str, str]:
    """The pretrained networks, each with its weights: those of which there is a file."""
    if not t.real:
        return {"resnet18": "none"} if t.form == "check" else {"resnet18": "none", "mobilenet_v2": "none"}
    weights = DATA / "weights"
    here = {name: weights / f"{name}-imagenet-backbone.safetensors" for name in ("resnet18", "mobilenet_v2")}
    found = {name: str(file) for name, file in here.items() if t.listing or file.exists()}
    for file in weights.glob("resnet101-*"):
        found["resnet101"] = str(file)
    return found


def archive(t: Tutorial) -> Path:
    """Cats and dogs of CIFAR-10 (without it, two scanned digits) as an archive of photos in train/ and valid/."""
    target = t.out / "pets.zip"
    if target.exists() or t.listing:
        return target
    train, valid, *_ = SIZES[t.form]
    asked = cifar10(t, classes=("cat", "dog"), limit_train=train, limit_test=valid)
    names = ("data_root", "weights", "image_size")
    fields = {name: value for name, value in asked.items() if name not in (*names, "data")}
    data = tlx.load_data(asked["data"], root=asked.get("data_root"), val_fraction=0, **fields)
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target.with_suffix(".part"), "w") as file:
        for part, images in (("train", data.train), ("valid", data.test)):
            for i in range(len(images)):
                with file.open(f"pets/{part}/{data.classes[images.labels[i]]}/{i}.png", "w") as photo:
                    images.open(i).save(photo, "PNG")
    target.with_suffix(".part").replace(target)
    return target


def show(t: Tutorial) -> None:
    """32 photos with their labels, one table, and one plot."""
    data = tlx.load_data(str(archive(t)))
    t.say(f"pets.zip: {data.notes[0]}")
    tlx.draw(str(archive(t)), t.picture("photos.png"), part="train", count=32)
    t.table("cats and dogs")
    curves = {label.partition(".")[0]: row["curve"] for label, row in t.rows.items() if label.endswith(".0")}
    epochs = max((len(curve) for curve in curves.values()), default=0)
    if epochs:
        title = "accuracy on the validation part, by epoch"
        tutorial.plot(t.picture("curves.svg"), title, range(1, epochs + 1), curves)


if __name__ == "__main__":
    tutorial.main("own_network", runs, show)
