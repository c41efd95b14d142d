"""Features cached at the boundary of the frozen part change no bit of a run, and are computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.features import FIELDS, outcome
from tlx.backend import Preprocess
from tlx.data import load_data
from tlx.data.augment import Augment
from tlx.data.loader import Loader
from tlx.training import features
from tlx.training.boundary import packed, unpacked
from tlx.training.feature_store import CHECKED

JOBS: dict[str, dict[str, Any]] = {
    "both flips": {},
    "no augmentation": {"augment": "none"},
    "the head first": {"strategy": "head_then_full", "phase_epochs": 3},
    "random crops": {"augment": "photo", "augment_repeats": 2},
    "changed colours": {"augment": "hflip+color", "augment_repeats": 3},
    "micro-batches and a balanced sampler": {"micro_batch": 5, "sampler": "balanced", "class_weights": "balanced"},
    "moving average": {"ema": 0.9, "label_smoothing": 0.1},
    "adapting statistics": {"frozen_norm": "adapt"},
}


@pytest.mark.parametrize("name", JOBS)
def test_cached_features_change_no_bit(name: str, tmp_path: Path, seen: dict[str, list[int]]) -> None:
    fields = {**FIELDS, **JOBS[name]}
    without = tlx.run(fields, quiet=True, feature_cache="off", out=str(tmp_path / "off"))
    assert seen["features"] == []
    steps = len(seen["pixels"])
    cached = tlx.run(fields, quiet=True, out=str(tmp_path / "cached"))
    assert outcome(cached) == outcome(without)
    assert seen["features"], "nothing was cached"
    assert len(seen["pixels"]) - steps == (10 if name == "the head first" else 0)


def test_each_variant_of_an_image_is_computed_once(tmp_path: Path, seen: dict[str, list[int]]) -> None:
    """72 images of the training part and 18 of the validation part, and a few to choose the boundary."""
    fields = {**FIELDS, "feature_cache": "run"}
    tlx.run({**fields, "augment": "none"}, quiet=True, out=str(tmp_path / "a"))
    assert 72 + 18 <= sum(seen["features"]) <= 72 + 18 + CHECKED
    seen["features"].clear()
    tlx.run({**fields, "epochs": 40}, quiet=True, out=str(tmp_path / "b"))
    assert 3 * 72 < sum(seen["features"]) <= 4 * 72 + 18 + CHECKED


@pytest.mark.parametrize(
    "fields",
    [
        {"strategy": "full"},  # nothing is frozen
        {"epochs": 1},  # nothing comes twice
        {"augment": "photo"},  # no two crops are alike
        {"mixup": 0.2},  # pixels of two images are mixed
    ],
)
def test_training_images_are_not_cached_where_that_gains_nothing(
    fields: dict[str, Any], tmp_path: Path, seen: dict[str, list[int]]
) -> None:
    result = tlx.run({**FIELDS, **fields}, quiet=True, val_fraction=0, out=str(tmp_path / "run"))
    assert not seen["features"] and sum(seen["pixels"]) == 90 * result.recipe.epochs


def test_what_is_too_large_for_memory_lies_in_a_file_that_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(FIELDS, "feature_cache", "run")
    expected = outcome(tlx.run(FIELDS, out=str(tmp_path / "memory")))
    assert "what enters dropout is computed once and cached: 72 train images in 4 variants" in capsys.readouterr().err
    monkeypatch.setenv("TLX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "MEMORY_PART", 0)
    assert outcome(tlx.run(FIELDS, out=str(tmp_path / "disk"))) == expected
    assert "(disk)" in capsys.readouterr().err
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(features, "DISK_PART", 0)
    assert outcome(tlx.run(FIELDS, out=str(tmp_path / "neither"))) == expected
    assert "is not cached" in capsys.readouterr().err


def test_augmentation_repeats_after_the_epochs_asked_for() -> None:
    images = load_data("digits", limit_train=20, val_fraction=0).train

    def epochs(repeats: int | None) -> list[dict[int, bytes]]:
        loader = Loader(
            images,
            Preprocess(6),
            batch_size=8,
            augment=Augment.parse("photo"),
            shuffle=True,
            workers=0,
            augment_repeats=repeats,
        )
        return [
            {
                int(i): image.tobytes()
                for batch in loader.epoch(e)
                for i, image in zip(batch.indices, batch.images, strict=True)
            }
            for e in range(4)
        ]

    repeated, free = epochs(2), epochs(None)
    assert repeated[0] == repeated[2] and repeated[1] == repeated[3] and repeated[0] != repeated[1]
    assert repeated[:2] == free[:2] and free[0] != free[2]


def test_halves_of_bfloat16_numbers_come_back() -> None:
    numbers = np.array([[0.0, -1.5, 2.0**127, 1 / 256]], np.float32)
    assert np.array_equal(unpacked(packed(numbers)), numbers)
    with pytest.raises(AssertionError, match="bfloat16"):
        packed(np.array([[1 / 3]], np.float32))
