"""What a run says of several labels: thresholds from its validation part, and figures of both parts."""

from __future__ import annotations

import numpy as np

from tlx.data import Data
from tlx.runs.logits import Spool
from tlx.training.multilabel import Figures, Multilabel, choose_thresholds, figures


def judge_multilabel(data: Data, spools: dict[str, Spool]) -> Multilabel:
    """Choose a threshold for each class on the validation part, 0.5 without one, and measure what was evaluated."""
    logits = {part: np.concatenate(list(spool.blocks())) for part, spool in spools.items()}
    thresholds = np.full(len(data.classes), 0.5)
    if data.val is not None and "val" in logits:
        thresholds = choose_thresholds(logits["val"], data.val.labels)
    found: dict[str, Figures | None] = {"val": None, "test": None}
    for part, values in logits.items():
        found[part] = figures(values, data.parts[part].labels, thresholds, data.classes)
    chosen = dict(zip(data.classes, thresholds.tolist(), strict=True))
    return {"thresholds": chosen, "val": found["val"], "test": found["test"]}
