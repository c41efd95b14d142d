"""What every contender shares: its arguments, the images, and the JSON line it prints. No contender's loop is here."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LR, HEAD_LR, MOMENTUM, DECAY = 1e-3, 1e-2, 0.9, 5e-4


def arguments() -> Any:
    """Parse the one command line of all contenders, and read the images: uint8 NHWC in an .npz."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--strategy", choices=["full", "diff_lr", "feature_extract", "partial"], required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--augment", choices=["none", "flips"], default="flips")
    parser.add_argument("--backend", choices=["torch", "oneflow"], default="torch")
    parser.add_argument("--evaluate", action="store_true", help="time evaluation by itself")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--frozen-norm", choices=["adapt", "keep"], default="adapt", help="of the loop by hand")
    a = parser.parse_args()
    with np.load(a.data) as parts:
        return SimpleNamespace(**vars(a), **{name: parts[name] for name in ("xtr", "ytr", "xte", "yte")})


class Clock:
    """Adds up the seconds of training and of evaluation, which the contender starts and stops."""

    def __init__(self) -> None:
        self.train = self.evaluation = 0.0
        self.since = time.perf_counter()

    def start(self) -> None:
        self.since = time.perf_counter()

    def trained(self) -> None:
        self.train += time.perf_counter() - self.since

    def evaluated(self) -> None:
        self.evaluation += time.perf_counter() - self.since


def report(a: Any, train_seconds: float, evaluation_seconds: float, evaluated: int, accuracy: float) -> None:
    """Print the result; the wall time and the memory of the whole process are the caller's to take."""
    line = {
        "train_images_per_second": a.epochs * len(a.xtr) / train_seconds,
        "eval_images_per_second": evaluated / evaluation_seconds if evaluation_seconds else None,
        "accuracy": accuracy,
    }
    print(json.dumps(line), flush=True)
