"""On the real frameworks too, features cached at the boundary of the frozen part change no bit of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tlx
from support.backends import FRAMEWORKS, each_backend
from support.features import outcome
from tlx.backend.registry import load

JOBS: dict[str, dict[str, Any]] = {
    "the head": {"strategy": "feature_extract", "augment": "hflip"},
    "the last stage and the head": {"strategy": "partial", "augment": "none", "micro_batch": 5},
    "dropout before the head": {"strategy": "feature_extract", "model": "squeezenet1_0", "augment": "none"},
    "adapters behind it": {"strategy": "lora", "lora_targets": ("layer4.1.*",), "augment": "none"},
}
SAMPLED = ("the head", "dropout before the head")
FIELDS: dict[str, Any] = {
    **{"model": "resnet18", "weights": "none", "data": "digits", "image_size": 32, "limit_train": 41, "limit_test": 20},
    **{"val_fraction": 0.25, "batch_size": 8, "epochs": 3, "lr": 0.01, "optimizer": "adam"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in SAMPLED else pytest.param(name, marks=pytest.mark.thorough) for name in JOBS]
)
@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_cached_features_change_no_bit(
    backend: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In float32, and in bfloat16 where that is what `auto` takes."""
    fields = {**FIELDS, **JOBS[name], "backend": backend}
    for precision in {"float32", load(backend).capabilities().precisions["cpu"][0]}:
        fields["precision"] = precision
        expected = outcome(tlx.run(fields, feature_cache="off", quiet=True, out=str(tmp_path / precision / "off")))
        assert outcome(tlx.run(fields, out=str(tmp_path / precision / "cached"))) == expected
        assert capsys.readouterr().err.count("is computed once and cached") == 2
