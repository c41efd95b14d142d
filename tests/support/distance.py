"""How far two arrays are apart."""

from __future__ import annotations

import numpy as np

from tlx.backend import Array


def relative_distance(reference: Array, candidate: Array) -> float:
    """Relative L2 distance; absolute where the reference is zero."""
    a, b = (np.asarray(x, dtype=np.float64).ravel() for x in (reference, candidate))
    return float(np.linalg.norm(a - b) / (np.linalg.norm(a) or 1.0))
