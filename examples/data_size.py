"""Which strategy, by the size of the data.

Cats against dogs of CIFAR-10, at 200, 1,000, 5,000 and 10,000 images: the head alone (Adam, 1e-3), the last stage and
the head (1e-4 and 1e-3), or everything (1e-4). The table shows where each of them wins, with the spread of its seeds,
and what `tlx advise` says before any of them is trained. It looks at the same training images, and at no test image.
The two classes are named, so their labels become 0 and 1 by themselves.

    python examples/data_size.py
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import tlx
import tutorial
from tutorial import Tutorial, cifar10

STRATEGIES: dict[str, dict[str, Any]] = {
    "feature_extract": {"strategy": "feature_extract", "lr": 1e-3},
    "partial": {"strategy": "partial", "stages": ("layer4",), "lr": 1e-3, "backbone_lr": 1e-4},
    "full": {"strategy": "full", "lr": 1e-4},
}
SIZES = {  # images to train on, test images, pixels, epochs, seeds
    "check": ((40, 80), 40, 16, 1, 1),
    "small": ((50, 200), 200, 64, 2, 2),
    "whole": ((200, 1000, 5000, 10000), 2000, 224, 3, 3),
}


def by_hand(model: Any, strategy: str) -> Any:
    """What a strategy's name replaces: the flags, the groups and the rates of one optimizer, in torch."""
    import torch

    for name, parameter in model.named_parameters():
        head, last = name.startswith("fc."), name.startswith("layer4.")
        parameter.requires_grad = strategy == "full" or head or (strategy == "partial" and last)
    if strategy == "full":
        return torch.optim.Adam(model.parameters(), lr=1e-4)
    groups = [{"params": model.fc.parameters(), "lr": 1e-3}]
    if strategy == "partial":
        groups.append({"params": model.layer4.parameters(), "lr": 1e-4})
    return torch.optim.Adam(groups)


def runs(t: Tutorial) -> None:
    """Each strategy at each size, with each seed."""
    sizes, test, pixels, epochs, seeds = SIZES[t.form]
    shared = {"optimizer": "adam", "weight_decay": 0.0, "augment": "none", "batch_size": 32}
    for images in sizes:
        data = {"image_size": pixels, "classes": ("cat", "dog"), "limit_train": images, "limit_test": test}
        if t.real:  # random weights have nothing to transfer
            t.once(f"{images}-advise", partial(advised, cifar10(t, **shared, **data, epochs=epochs)))
        for name, fields in STRATEGIES.items():
            for seed in range(seeds):
                asked = {**shared, **fields, **data, "epochs": epochs, "val_fraction": 0, "seed": seed}
                t.run(f"{images}-{name}.{seed}", **cifar10(t, **asked))


def advised(fields: dict[str, Any]) -> dict[str, Any]:
    """What `tlx advise` recommends among the three, or others, and why."""
    advice = tlx.advise(quiet=True, **fields)
    return {"advice": advice.strategy, "rule": advice.rule, "reasons": advice.reasons}


def show(t: Tutorial) -> None:
    """One row for each size, and the same as a plot."""
    sizes = SIZES[t.form][0]
    means: dict[str, list[float | None]] = {name: [] for name in STRATEGIES}
    t.say(f"{'images':>8}  " + "  ".join(f"{name:>17}" for name in STRATEGIES) + "  tlx advise" * t.real)
    for images in sizes:
        cells = []
        for name in STRATEGIES:
            label = f"{images}-{name}."
            values = [row["accuracy"] for key, row in t.rows.items() if key.startswith(label)]
            means[name].append(statistics.mean(values) if values else None)
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}" if values else "to do")
        advice = t.rows.get(f"{images}-advise", {}).get("advice", "to do")
        t.say(f"{images:>8}  " + "  ".join(f"{cell:>17}" for cell in cells) + f"  {advice}" * t.real)
    if any("accuracy" in row for row in t.rows.values()):
        tutorial.plot(t.picture("sizes.svg"), "test accuracy, by images to train on", sizes, means)


if __name__ == "__main__":
    tutorial.main("data_size", runs, show)
