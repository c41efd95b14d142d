"""One comparison that ran undisturbed, in processes of its own."""

from __future__ import annotations

from typing import Any

import pytest

import tlx

COMMON: dict[str, Any] = {
    **{"backend": "loopback", "model": "tiny-mlp-dropout", "weights": "none", "data": "digits", "image_size": 8},
    **{
        "limit_train": 200,
        "limit_test": 60,
        "val_fraction": 0.2,
        "batch_size": 16,
        "epochs": 6,
        "save_seconds": 0.0,
        "lr": 0.05,
    },
}
# Only the last has a rate of the backbone, with which its loss does not stay finite.
AXES: dict[str, Any] = {"strategies": "full,feature_extract,diff_lr", "grid": {"backbone_lr": [3.0e38]}}


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tlx.Comparison:
    """Two strategies that train, and one that fails."""
    return tlx.compare(**COMMON, **AXES, out=str(tmp_path_factory.mktemp("compare") / "whole"), jobs=2)
