"""What a run of strategy probe fitted."""

from __future__ import annotations

from typing import Any

import pytest

from tlx.training.logistic import fit_logistic


def fits_of(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that grows by the features of the training images, and what was fitted to them, with each run."""
    fits: list[Any] = []

    def kept(features: Any, labels: Any, *others: Any, **options: Any) -> Any:
        probe = yield from fit_logistic(features, labels, *others, **options)
        fits.append((features, probe.linear))
        return probe

    monkeypatch.setattr("tlx.training.fit.fit_logistic", kept)
    return fits
