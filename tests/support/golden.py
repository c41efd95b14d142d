"""The golden set, tests/golden/weights.json, and how it describes weights and the processor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tlx.backend import Array
from tlx.backend.threads import processor

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN: dict[str, Any] = json.loads((FOLDER / "weights.json").read_text(encoding="utf-8"))


def same_processor() -> bool:
    """Whether this machine is of the kind that made the golden set. On another kind the last bits may differ."""
    return bool(GOLDEN["processor"] == hashlib.sha256(processor().encode()).hexdigest()[:16])


def bits(arrays: Mapping[str, Array]) -> str:
    """The SHA-256 of every bit of named arrays, and of their names, dtypes and shapes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def sketch(arrays: Mapping[str, Array]) -> list[float]:
    """Eight sums of absolute values, each over every eighth number, which move when any number does."""
    flat = np.concatenate([np.asarray(arrays[name], np.float64).ravel() for name in sorted(arrays)])
    return [float(np.abs(flat[first::8]).sum()) for first in range(8)]
