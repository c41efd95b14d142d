"""A run whose frozen part is cached, and all that may not change when it is."""

from __future__ import annotations

from typing import Any

from safetensors.numpy import load_file

from support.finished_runs import ON_DIGITS
from tlx.runs.result import Result

FIELDS: dict[str, Any] = {
    **ON_DIGITS,
    "strategy": "feature_extract",
    "augment": "flips",
    "epochs": 5,
    "optimizer": "adam",
}


def outcome(result: Result) -> tuple[Any, ...]:
    """The history without its times, the test accuracy, and the bytes of every weight."""
    history = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in result.history]
    values = load_file(result.run_dir / "model.safetensors")
    return history, result.test_accuracy, {name: array.tobytes() for name, array in values.items()}
