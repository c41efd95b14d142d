"""Ants and bees: fine-tuned, and as a fixed extractor, by two protocols.

PyTorch's transfer-learning tutorial: 244 photos of ants and bees, a ResNet-18 with ImageNet weights, random-resized
crops, SGD at 0.001 with momentum 0.9, a tenth of the rate every 7 epochs, 25 epochs. It keeps the best epoch *on the
photos that it reports*, with the BatchNorm of the frozen part adapting, and prints 0.9477 fine-tuned and 0.9542 fixed.
That number is a choice and no test: the best of 25 looks at 153 photos. With `test_fraction=0` tlx does the same and
says so; its own protocol chooses on photos that are held out of the training part, and reads the others once.

    python examples/ants_and_bees.py
"""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import tlx
import tutorial
from tutorial import DATA, Tutorial

PUBLISHED = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
JOB: dict[str, Any] = {
    **{"optimizer": "sgd", "lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0, "schedule": "step", "step_size": 7},
    **{"gamma": 0.1, "augment": "crop+hflip", "batch_size": 4, "precision": "float32"},
}
# pixels, epochs, seeds by the tutorial's protocol, seeds by hand and by tlx's own protocol
SIZES = {"check": (16, 1, 1, 1), "small": (64, 2, 1, 1), "whole": (224, 25, 10, 5)}
METHODS: dict[str, dict[str, Any]] = {
    "fine-tuned": {"strategy": "full"},
    "fixed": {"strategy": "feature_extract", "frozen_norm": "adapt"},
}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "tutorial": {"test_fraction": 0.0},  # the best epoch on the photos that are reported
    "tested": {"val_fraction": 0.2},  # chosen on photos of the training part, tested once
}


def by_hand(photos: Path, weights: str, size: int, epochs: int, seed: int, fixed: bool) -> list[float]:
    """The tutorial's loop in torch: the accuracy on val/ after each epoch."""
    import torch
    import torchvision
    from safetensors.torch import load_file
    from torch import nn
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    torch.manual_seed(seed)
    normalised = [transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    crop = transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *normalised])
    centre = transforms.Compose([transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size), *normalised])
    train, val = ImageFolder(str(photos / "train"), crop), ImageFolder(str(photos / "val"), centre)
    model = torchvision.models.resnet18()
    if weights != "none":
        model.load_state_dict(load_file(weights), strict=False)
    for parameter in model.parameters():
        parameter.requires_grad = not fixed
    model.fc = nn.Linear(model.fc.in_features, len(train.classes))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    accuracies = []
    for _ in range(epochs):
        model.train()
        for images, labels in torch.utils.data.DataLoader(train, batch_size=4, shuffle=True):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        model.eval()
        with torch.no_grad():
            batches = torch.utils.data.DataLoader(val, batch_size=64)
            accuracies.append(sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / len(val))
    return accuracies


def runs(t: Tutorial) -> None:
    """All runs of the form."""
    size, epochs, seeds, fewer = SIZES[t.form]
    weights = str(DATA / "weights" / "resnet18-imagenet-backbone.safetensors") if t.real else "none"
    folder = photos(t)
    fields = {**JOB, "data": str(folder), "weights": weights, "image_size": size, "epochs": epochs}
    for seed in range(seeds):
        for name, method in METHODS.items():
            for protocol, how in PROTOCOLS.items():
                if protocol == "tutorial" or seed < fewer:
                    t.run(f"{name}-{protocol}.{seed}", **fields, **method, **how, seed=seed)
            if seed < fewer:
                loop = partial(hand, folder, weights, size, epochs, seed, name == "fixed")
                t.once(f"{name}-by-hand.{seed}", loop)
    for name, method in METHODS.items() if t.form != "check" else ():  # one seed: OneFlow trains 5 photos a second here
        t.run(f"{name}-oneflow", **fields, **method, **PROTOCOLS["tutorial"], backend="oneflow")


def hand(folder: Path, weights: str, size: int, epochs: int, seed: int, fixed: bool) -> dict[str, Any]:
    """The loop by hand, and as its accuracy the best epoch, as the tutorial has it."""
    curve = by_hand(folder, weights, size, epochs, seed, fixed)
    return {"accuracy": max(curve), "tested": False, "curve": curve}


def photos(t: Tutorial) -> Path:
    """The photos as they are published; without them scanned digits as photos, and called what they are."""
    if t.real:
        return DATA / "hymenoptera_data"
    data = tlx.load_data("digits", classes=("3", "8"), limit_train=24, limit_test=12, val_fraction=0)
    for part, images in (("train", data.train), ("val", data.test)):
        for i in range(0 if images is None else len(images)):
            target = t.out / "photos" / part / data.classes[images.labels[i]] / f"{i}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            images.open(i).resize((24, 24)).save(target)
    return t.out / "photos"


@contextmanager
def served(folder: Path, archive: Path) -> Iterator[str]:
    """Serve the photos as an archive on this machine, and give its address with its SHA-1, as a publisher would."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        for photo in sorted(folder.rglob("*.*")):
            name = f"{folder.name}/{photo.relative_to(folder)}"
            file.writestr(zipfile.ZipInfo(name, (2017, 1, 1, 0, 0, 0)), photo.read_bytes())
    sha1 = hashlib.sha1(archive.read_bytes()).hexdigest()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(archive.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{archive.name}#sha1={sha1}"
    server.shutdown()
    server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and prints nothing."""

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def flower(target: Path) -> Path:
    """A photo that is of neither class, which scikit-learn brings along: the answer is one of the two all the same."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    Image.fromarray(load_sample_image("flower.jpg")).save(target)
    return target


def show(t: Tutorial) -> None:
    """The folders of the archive, a batch, the table, six predictions, and one photo of one's own."""
    folder = photos(t)
    with served(folder, t.out / "archive" / "hymenoptera_data.zip") as address:
        data = tlx.load_data(address, val_fraction=0)
        name, _, digest = address.rpartition("/")[2].partition("#")
        t.say(f"{name}, {digest}: {len(data.classes)} classes")
    for part, images in data.parts.items():
        t.say(f"  {part}: {data.class_counts(images)}")
    t.say(f"  {data.notes[0]}")
    tlx.draw(folder, t.picture("batch.png"), part="train", count=4 if t.form == "check" else 8)
    t.table("ants and bees")
    for name in METHODS:
        t.overlap(f"{name}-tutorial", f"{name}-by-hand")
        t.near(f"{name}-tutorial", f"{name}-oneflow", 0.02)  # three photos of 153
    run = t.folder("fixed-tested.0")
    if run:
        tlx.draw(folder, t.picture("six.png"), run=run, part="test", count=6)
        photo = t.photo or flower(t.out / "flower.png")
        tlx.draw(photo, t.picture("own.png"), run=run, count=1)
        (answer,) = tlx.predict(run, photo)
        t.say(f"\n{photo.name}: {answer['class']} with a probability of {answer['probability']:.2f}")


if __name__ == "__main__":
    tutorial.main("ants_and_bees", runs, show)
