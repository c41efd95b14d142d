"""What the frameworks' own kernels do at small sizes is found before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import tlx
from support.backends import each_backend
from support.training import FIELDS, training_of
from tlx.backend import registry
from tlx.errors import BackendError, RecipeError
from tlx.models.weights import digest
from tlx.training import trial
from tlx.training.trial import check_small_batches, find_unrepeatable

# ResNet-18's layer4 begins with 1x1 maps here.
SMALL_MAPS: dict[str, Any] = {"backend": "torch", "model": "resnet18", "image_size": 16}


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


@pytest.mark.needs("torch")
def test_what_a_trial_told_is_remembered_for_the_same_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bfloat16()
    monkeypatch.setenv("TLX_CACHE", str(tmp_path))
    training = training_of(**SMALL_MAPS, precision="bfloat16")
    found = find_unrepeatable(training, {"model": "resnet18"})
    (record,) = (tmp_path / "trials").iterdir()
    kept = record.read_text()
    assert kept.endswith(f" {found}") and found
    with monkeypatch.context() as patch:
        patch.setattr(trial, "_unrepeatable", lambda training, sizes: "computed anew")
        assert find_unrepeatable(training, {"model": "resnet18"}) == found
        for damaged in (kept[:-1], kept[: -len(found)], kept.replace("w", "v"), found, ""):
            record.write_text(damaged)
            assert find_unrepeatable(training, {"model": "resnet18"}) == "computed anew"
    assert find_unrepeatable(training, {"model": "another"}) == found
    assert find_unrepeatable(training) == found
