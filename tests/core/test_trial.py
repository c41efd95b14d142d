"""What is found before the first step: batches that BatchNorm cannot take, gradients that do not come out twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.training import FIELDS, training_of
from tlx.backend import registry
from tlx.errors import RecipeError
from tlx.models.weights import digest
from tlx.training.trial import check_small_batches, find_unrepeatable, part_sizes

TINY: dict[str, Any] = {"backend": "loopback", "model": "tiny-mlp", "image_size": 8}


@pytest.mark.parametrize(
    ("images", "batch_size", "micro_batch", "sizes"),
    [
        (32, 16, None, {16}),
        (33, 16, None, {16, 1}),
        (10, 16, None, {10}),
        (33, 16, 7, {5, 6, 1}),
        (35, 16, 2, {2, 1}),
        (1, 16, None, {1}),
    ],
)
def test_the_sizes_are_those_of_the_batches(
    images: int, batch_size: int, micro_batch: int | None, sizes: set[int]
) -> None:
    assert part_sizes(images, batch_size, micro_batch) == sizes
    training = training_of(**TINY, limit_train=max(images, 10), batch_size=batch_size, micro_batch=micro_batch)
    taken = {len(part) for batch in training.loader.epoch(0) for part in batch.parts(micro_batch)}
    assert images < 10 or taken == sizes


@pytest.mark.parametrize(
    ("fields", "said", "better"),
    [
        ({}, "the last batch of an epoch (33 images in batches of 16) has 1 image, ", {"batch_size": 15}),
        ({"batch_size": 32}, "batches of 32) has 1 image", {"batch_size": 33}),
        ({"batch_size": 1}, "each batch has 1 image", {"batch_size": 3}),
        ({"batch_size": 11, "micro_batch": 1}, "a part of a batch (micro_batch=1) has 1 image", {"batch_size": 11}),
    ],
)
@pytest.mark.needs("loopback")
def test_a_batch_of_one_is_refused_before_anything_is_written(
    fields: dict[str, Any], said: str, better: dict[str, Any], tmp_path: Path
) -> None:
    asked = {**FIELDS, **TINY, **fields, "out": str(tmp_path / "run"), "quiet": True}
    with pytest.raises(RecipeError) as error:
        tlx.run(**asked)
    assert said in str(error.value) and not list(tmp_path.iterdir())
    name = "micro_batch" if "micro_batch" in fields else f"batch_size {better['batch_size']}"
    assert name in error.value.fix
    assert tlx.run(**{**asked, **better, "micro_batch": None}).epochs_run == 1


@pytest.mark.needs("loopback")
def test_a_batch_of_two_is_noted(tmp_path: Path) -> None:
    result = tlx.run(**{**FIELDS, **TINY, "limit_train": 34, "out": str(tmp_path / "run"), "quiet": True})
    assert any("has 2 images, whose values BatchNorm turns into 1 and -1" in note for note in result.notes)


@pytest.mark.needs("loopback")
def test_a_batch_of_one_is_taken_where_no_norm_trains() -> None:
    assert check_small_batches(training_of(**TINY, strategy="feature_extract")) == ""


@pytest.mark.parametrize("fields", [TINY, {**TINY, "model": "tiny-mlp-dropout", "strategy": "head_then_full"}])
@pytest.mark.needs("loopback")
def test_a_trial_moves_no_bit(fields: dict[str, Any]) -> None:
    training = training_of(**{"epochs": 3, "limit_train": 32, **fields})
    before = digest(training.backend.dump_arrays(training.model))
    assert find_unrepeatable(training) is None and check_small_batches(training) == ""
    assert digest(training.backend.dump_arrays(training.model)) == before
    assert training.backend.dump_optimizer(training.optimizer) == {}


@pytest.mark.needs("loopback")
def test_memory_that_a_gradient_leaves_as_it_was_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the parameter trains."""
    backend = registry.load("loopback")
    honest = backend.backward

    def leave(model: Any, batch: Any, scale: float = 1.0) -> Any:
        result = honest(model, batch, scale)
        if "fc1.weight" in model.grads:
            shape = model.grads["fc1.weight"].shape
            model.grads["fc1.weight"] = np.empty((64, *shape), np.float32)[0]  # more than NumPy keeps for itself
        return result

    monkeypatch.setattr(backend, "backward", leave)
    assert find_unrepeatable(training_of(**TINY)) == "fc1.weight"
    assert find_unrepeatable(training_of(**TINY, strategy="feature_extract")) is None
