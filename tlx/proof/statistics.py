"""P10: do two backends reach the same final accuracy? An equivalence test over paired seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tlx.errors import TlxError
from tlx.proof.result import Row, Stage, Verdict

LEAST_PAIRS = 5  # fewer leave Student's t so wide that only gross differences could be excluded


def equivalence(
    reference: Sequence[float], candidate: Sequence[float], margin: float = 0.005, alpha: float = 0.05
) -> Stage:
    """Compare final accuracies (between 0 and 1) of runs paired by their seed; see `verdict_of` for the outcome.

    Two one-sided paired t-tests (TOST): equivalence is shown at level `alpha` where the ``1 - 2 alpha`` confidence
    interval of the mean difference, candidate minus reference, lies inside ``(-margin, margin)``. The figure is the
    smallest margin that these runs could have shown, the interval's bound that is farther from 0. An interval wholly
    outside shows a difference, at the same level; one that straddles the margin shows neither.

    Sources: D. J. Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987) 657-680, for the test; G. Piaggio et al., JAMA 308
    (2012) 2594-2604, for the three readings of the interval.

    Raises:
        TlxError: the two differ in length, are empty or not finite, or margin or alpha is out of range.
    """
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise TlxError(f"equivalence needs one accuracy of each backend per seed; got {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise TlxError("equivalence needs finite accuracies; a run that failed is no pair")
    if not (0 < margin < np.inf and 0 < alpha < 0.5):
        raise TlxError(f"margin is {margin} and alpha {alpha}; expected margin above 0, alpha between 0 and 0.5")
    differences = b - a
    mean, half = float(differences.mean()), _half_width(differences, alpha)
    low, high = mean - half, mean + half
    shown = max(-low, high) + 0.0  # never -0
    if len(a) < LEAST_PAIRS:
        passed, reading = None, "few"
    elif shown < margin:
        passed, reading = True, "equivalent"
    elif max(low, -high) >= margin:
        passed, reading = False, "different"
    else:
        passed, reading = None, "undecided"
    pairs = zip(map(float, a), map(float, b), strict=True)
    rows = (
        *(
            Row(kind="pair", number=number, error=abs(y - x), passed=True, values=(x, y))
            for number, (x, y) in enumerate(pairs, 1)
        ),
        Row(kind="mean", error=abs(mean), passed=True, values=(float(a.mean()), float(b.mean()))),
        Row(kind="margin if equal", error=half, passed=half < margin),
        Row(kind="margin", error=shown, passed=shown < margin),
    )
    facts = {
        "pairs": len(a),
        "mean": mean,
        "low": low,
        "high": high,
        "level": 100 * (1 - 2 * alpha),
        "reading": reading,
        "least": LEAST_PAIRS,
    }
    return Stage("P10", shown, margin, passed, rows, facts, enough=passed is not None)


def verdict_of(stage: Stage) -> Verdict:
    """Return the outcome of `equivalence`: equal, different, or underpowered where the runs could show neither."""
    if stage.passed is None:
        return Verdict.UNDERPOWERED
    return Verdict.EQUAL if stage.passed else Verdict.DIFFERENT


def _half_width(differences: np.ndarray[tuple[int], np.dtype[np.float64]], alpha: float) -> float:
    """Half of the interval's width; 0 where the differences do not vary, infinite for one pair."""
    from scipy.stats import t  # type: ignore[import-untyped]

    n = len(differences)
    if n < 2:
        return float("inf")
    return float(t.ppf(1 - alpha, n - 1) * differences.std(ddof=1) / np.sqrt(n))
