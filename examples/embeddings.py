"""Embeddings: features that are computed once, and all that is done with them.

A network without its head turns each image into a vector. From one file of such vectors: arrays with labels, a map in
which images that are alike lie together, the nearest neighbours of an image, cosine and Euclidean similarity, and a
classifier that needs no network any more.

    python examples/embeddings.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

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


def source(t: Tutorial) -> tuple[Path, str]:
    """A folder of photos and the weights: CIFAR-10 and ImageNet's, or digits and those of a network that knows them."""
    train, test = SIZES[t.form]
    folder, limits = t.out / "photos", {"limit_train": train, "limit_test": test, "val_fraction": 0}
    if not folder.exists():
        data = tlx.load_data("cifar10", root=DATA, **limits) if t.real else tlx.load_data("digits", **limits)
        for part, images in data.parts.items():
            for i in range(len(images)):
                target = folder / part / data.classes[images.labels[i]] / f"{i}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                images.open(i).save(target)
    weights = DATA / "weights" / "resnet18-imagenet-backbone.safetensors" if t.real else t.out / "knows-digits"
    return folder, str(weights)


def runs(t: Tutorial) -> None:
    """Without real data a network learns the digits; then the features are computed, once, and classified."""
    if not t.real:
        fields = {"data": "digits", "strategy": "scratch", "image_size": 16, "limit_train": 200, "lr": 0.05}
        t.run("knows-digits", **fields, epochs=1, limit_test=20, precision="float32")
    file = t.out / "embeddings.parquet"

    def embed() -> dict[str, Any]:
        folder, weights = source(t)
        done = tlx.embed("resnet18", folder, file, weights=weights, quiet=True)
        return {"images": done.images, "width": done.width}

    def classify() -> dict[str, Any]:
        train, test = (tlx.load_embeddings(file, part=part) for part in ("train", "test"))
        classifier = LogisticRegression(max_iter=2000).fit(train.vectors, train.labels)
        return {"accuracy": classifier.score(test.vectors, test.labels)}

    weights = "$DATA/weights/resnet18-imagenet-backbone.safetensors"
    if not file.exists():
        t.rows.pop("embed", None)  # a published row is of a file that may be on another machine
    t.once("embed", embed, f"tlx embed resnet18 runs/photos -o runs/embeddings.parquet --weights {weights}")
    t.once("logistic-regression", classify)


def show(t: Tutorial) -> None:
    """Arrays, similarities, a classifier, neighbours and a map, all from the file."""
    file = t.out / "embeddings.parquet"
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

    t.table("the vectors, classified")

    folder, weights = source(t)
    queries = sorted((folder / "test").glob("*/*"))[:: max(1, row["images"] // 8)][:2]
    tlx.similar("resnet18", queries, file, top=6, sheet=t.picture("neighbours.png"), weights=weights, quiet=True)
    tlx.tsne(file, t.picture("map.png"), quiet=True)


if __name__ == "__main__":
    tutorial.main("embeddings", runs, show)
