"""Embeddings: features that are computed once, and all that is done with them.

A network without its head turns each image into a vector. From one file of such vectors: arrays with labels, a map in
which images that are alike lie together, the nearest neighbours of an image, cosine and Euclidean similarity, and a
classifier that needs no network any more.

    python examples/embeddings.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

import tlx
import tutorial
from tutorial import DATA, Tutorial

SIZES = {"check": (40, 20), "small": (200, 80), "whole": (4000, 1000)}  # images of the training and the test part


def by_hand(images: Any, weights: str) -> np.ndarray:
    """What `tlx.embed` replaces: take the head off, and remember no_grad, eval, the pixels' scale and the batches."""
    import torch
    import torchvision
    from safetensors.torch import load_file

    model = torchvision.models.resnet18()
    model.load_state_dict(load_file(weights), strict=False)
    model.fc = torch.nn.Identity()
    model.eval()
    prepare = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize((224, 224)),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    with torch.no_grad():
        return np.concatenate([model(prepare(image)[None]).numpy() for image in images])


def source(t: Tutorial) -> tuple[Any, str]:
    """The images and the weights: CIFAR-10 and ImageNet's, or scanned digits and those of a network that knows them."""
    train, test = SIZES[t.form]
    if t.real:
        weights = str(DATA / "weights" / "resnet18-imagenet-backbone.safetensors")
        return tlx.load_data("cifar10", root=DATA, limit_train=train, limit_test=test, val_fraction=0), weights
    data = tlx.load_data("digits", limit_train=train, limit_test=test, val_fraction=0)
    return data, str(t.out / "knows-digits")


def runs(t: Tutorial) -> None:
    """Without real data a network learns the digits; then the features are computed, once."""
    if not t.real:
        fields = {"data": "digits", "strategy": "scratch", "image_size": 16, "limit_train": 200, "lr": 0.05}
        t.run("knows-digits", **fields, epochs=1, limit_test=20, precision="float32")
    file = t.out / "embeddings.parquet"

    def embed() -> dict[str, Any]:
        data, weights = source(t)
        file.parent.mkdir(parents=True, exist_ok=True)
        done = tlx.embed("resnet18", data, file, weights=weights, quiet=True)
        return {"images": done.images, "width": done.width}

    command = "tlx embed resnet18 my_photos -o embeddings.parquet --weights resnet18-imagenet-backbone.safetensors"
    t.once("embed", embed, command)


def show(t: Tutorial) -> None:
    """Arrays, similarities, a classifier, neighbours and a map, all from the file."""
    from sklearn.linear_model import LogisticRegression

    file = t.out / "embeddings.parquet"
    if not t.rows:
        return
    row = t.rows["embed"]
    t.say(f"{row['images']} vectors of {row['width']} numbers, computed in {row['seconds']:.0f} s")
    train, test = (tlx.load_embeddings(file, part=part) for part in ("train", "test"))
    t.say(f"train: {train.vectors.shape} {train.vectors.dtype}, labels {sorted(set(train.labels))}")

    vectors, labels = np.asarray(test.vectors, float), np.asarray(test.labels)
    directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = directions @ directions.T
    euclidean = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    other = ~np.eye(len(labels), dtype=bool)
    same = labels[:, None] == labels[None]
    for name, values in (("cosine similarity", cosine), ("Euclidean distance", euclidean)):
        within, between = values[same & other].mean(), values[~same].mean()
        t.say(f"{name}: {within:.3f} within a class, {between:.3f} between classes")

    classifier = LogisticRegression(max_iter=2000).fit(train.vectors, train.labels)
    t.say(f"a logistic regression on the vectors: {classifier.score(test.vectors, test.labels):.3f} of the test part")

    data, weights = source(t)
    queries = [data.test.open(i) for i in range(2)]
    sheet: Path = t.picture("neighbours.png")
    tlx.similar("resnet18", queries, file, top=6, sheet=sheet, weights=weights, quiet=True)
    tlx.tsne(file, t.picture("map.png"), quiet=True)


if __name__ == "__main__":
    sys.exit(0 if tutorial.main("embeddings", runs, show) else 1)
