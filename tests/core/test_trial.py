"""What is found before the first step: batches that BatchNorm cannot take, gradients that do not come out twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import tlx
from support.backends import each_backend
from tlx.backend import registry
from tlx.errors import BackendError, RecipeError
from tlx.models.weights import digest
from tlx.recipe import Recipe
from tlx.training import build
from tlx.training.loop import Training
from tlx.training.trial import check_small_batches, find_unrepeatable, part_sizes

FIELDS: dict[str, Any] = {
    "weights": "none",
    "data": "digits",
    "limit_train": 33,
    "limit_test": 10,
    "val_fraction": 0.0,
    "batch_size": 16,
    "epochs": 1,
}
TINY = {"backend": "loopback", "model": "tiny-mlp", "image_size": 8}
SMALL_MAPS = {"backend": "torch", "model": "resnet18", "image_size": 16}  # 1x1 where layer4 begins


def training_of(**fields: Any) -> Training:
    recipe = Recipe(**{**FIELDS, **fields}).resolved()
    backend = registry.load(recipe.backend)
    recipe = build.resolve_placement(recipe, backend)
    data = build.open_data(recipe)
    model, arch = build.build_model(recipe, backend, len(data.classes))
    build.load_initial(recipe, backend, model, arch, progress=False)
    return build.make_training(recipe, backend, data, model, arch)


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


@pytest.mark.parametrize("backend", each_backend("torch", "oneflow"))
def test_a_batch_of_one_is_refused_by_what_it_is_at_the_size_of_the_run(backend: str) -> None:
    """Larger maps have more than one value of each image."""
    fields = {**SMALL_MAPS, "backend": backend, "precision": "float32"}
    training = training_of(**fields)
    before = digest(training.backend.dump_arrays(training.model))
    with pytest.raises(RecipeError, match="has 1 image, and BatchNorm cannot take statistics over 1 value"):
        check_small_batches(training)
    assert digest(training.backend.dump_arrays(training.model)) == before
    assert check_small_batches(training_of(**fields | {"image_size": 64})) == ""


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


def bfloat16() -> Any:
    native = "bfloat16" in registry.load("torch").capabilities().precisions["cpu"]
    return None if native else pytest.skip("torch does not compute in bfloat16 on this processor")


@pytest.mark.needs("torch")
def test_taps_that_bfloat16_leaves_uninitialised_are_found(tmp_path: Path) -> None:
    """Under auto the run takes float32, and is the same as one that asks for it."""
    bfloat16()
    fields = {**FIELDS, **SMALL_MAPS, "limit_train": 32, "quiet": True}
    with pytest.raises(BackendError) as error:
        tlx.run(**fields, precision="bfloat16", out=str(tmp_path / "run"))
    assert "the gradient of 'layer4.0.conv1.weight' in bfloat16" in str(error.value)
    assert "use precision float32" in error.value.fix and not list(tmp_path.iterdir())
    runs = [tlx.run(**fields, precision=name, out=str(tmp_path / name)) for name in ("auto", "float32")]
    assert [run.recipe.precision for run in runs] == ["float32", "float32"]
    assert "so precision is float32" in runs[0].notes[0] and runs[0].notes[1:] == runs[1].notes
    first, second = (load_file(run.run_dir / "model.safetensors") for run in runs)
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.needs("torch")
def test_bfloat16_is_taken_where_every_gradient_comes_out_twice() -> None:
    """Also where the convolution at fault does not train."""
    bfloat16()
    fields = {**SMALL_MAPS, "precision": "bfloat16", "limit_train": 32}
    assert find_unrepeatable(training_of(**fields, strategy="feature_extract")) is None
    assert find_unrepeatable(training_of(**{**fields, "model": "squeezenet1_1", "image_size": 32})) is None
    assert find_unrepeatable(training_of(**{**fields, "image_size": 40})) is None
