"""The second loss, of images that may have several labels, in a proof: equal where it is, and found where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.backends import FRAMEWORKS
from support.multilabel import digits
from tlx import parity
from tlx.backend import Handle, Lazy, Model, registry
from tlx.conformance import reference
from tlx.proof.recorder import Proxy
from tlx.proof.result import Verdict

FIELDS: dict[str, Any] = {
    **{"model": "tiny-mlp", "weights": "none", "image_size": 8, "strategy": "full", "batch_size": 8, "epochs": 2},
    **{"label_smoothing": 0.1, "workers": 0, "augment": "none"},
}


class Softmax(Proxy):
    """Takes several labels as shares of one class."""

    def backward(self, model: Model, batch: Handle, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        _, correct = self.inner.backward(model, batch, scale)
        return self.inner.evaluate(model, batch)[0] * 0 + softmax_loss(self.inner, model, batch), correct


class Summed(Proxy):
    """Sums over the classes, where their mean is meant."""

    def backward(self, model: Model, batch: Handle, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        total, correct = self.inner.backward(model, batch, scale * 4)
        return total * 4, correct


def softmax_loss(backend: Any, model: Model, batch: Handle) -> Any:
    """The cross-entropy of the targets, summed over the samples."""
    (logits,) = backend.fetch([backend.logits(model, batch)])
    targets = batch.labels if batch.targets is None else batch.targets
    return np.array(reference.cross_entropy(logits, batch.labels, targets)[0] * len(logits))


def judged(candidate: Any, keep: Path) -> Any:
    return parity(data=digits(420), reference="loopback", candidate=candidate, quick=True, keep=keep, **FIELDS)


def test_the_loss_of_several_labels_is_equal_to_itself(tmp_path: Path) -> None:
    report = judged("loopback", tmp_path / "kept")
    assert report.verdict == Verdict.EQUAL, str(report)
    manifests = [*(tmp_path / "kept").rglob("manifest.json")]
    assert manifests and all("binary cross-entropy of each class" in file.read_text() for file in manifests)


@pytest.mark.parametrize("fault", [Softmax, Summed])
def test_another_loss_of_several_labels_is_found_and_named(fault: type[Proxy], tmp_path: Path) -> None:
    report = judged(fault(registry.load("loopback")), tmp_path / "kept")
    assert report.verdict == Verdict.DIFFERENT and "the loss function differs" in report.first, str(report)


@pytest.mark.thorough
@pytest.mark.needs(*FRAMEWORKS)
def test_the_frameworks_agree_on_several_labels(tmp_path: Path) -> None:
    fields = {**FIELDS, "model": "resnet18", "image_size": 32, "strategy": "head_then_full", "phase_epochs": 1}
    report = parity(data=digits(420), quick=True, keep=tmp_path / "kept", **fields)
    assert report.verdict == Verdict.EQUAL, str(report)
