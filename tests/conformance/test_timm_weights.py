"""Where the values of timm's models come from: the hub, files with timm's names and others, and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.backends import skip_module_without

skip_module_without("torch")
timm = pytest.importorskip("timm")

import torch
from tlx_torch import timm_models

import tlx
from support.features import outcome
from support.hub import COMMIT, ask, serving_hub
from support.timm_nets import FIELDS, arrays_of, built, timms_own
from tlx.backend import registry
from tlx.errors import WeightsError
from tlx.models.libraries import versions_of
from tlx.models.weights import safetensors_bytes, write_safetensors
from tlx.training.build import build_model, resolve_placement, start_of

pytestmark = pytest.mark.needs("torch")


def start(model: str, weights: Path | str, size: int = 32, **fields: Any) -> dict[str, NDArray[Any]]:
    """The values that a run starts from."""
    backend = registry.load("torch")
    asked = {**FIELDS, "model": f"timm:{model}", "weights": str(weights), "image_size": size, **fields}
    recipe = resolve_placement(tlx.Recipe(**asked).resolved(), backend)
    net, arch = build_model(recipe, backend, 3)
    arrays, _ = start_of(recipe, backend, net, arch, ("a", "b", "c"))
    backend.load_arrays(net, arrays)
    return arrays


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
def test_a_file_with_timms_names_fills_the_backbone(prefix: str, tmp_path: Path) -> None:
    values = arrays_of(timms_own("test_vit"))
    write_safetensors(tmp_path / "w.safetensors", {prefix + name: value for name, value in values.items()})
    arrays = start("test_vit", tmp_path / "w.safetensors")
    assert all(np.array_equal(arrays[name], values[name]) for name in values if not name.startswith("head."))
    assert not np.array_equal(arrays["head.weight"], values["head.weight"])  # drawn anew


@pytest.mark.parametrize(
    "model",
    ["test_vit", "test_vit3", pytest.param("vit_small_patch14_reg4_dinov2", marks=pytest.mark.thorough)],
)
def test_positions_are_resampled_as_timm_does_for_images_of_another_size(model: str, tmp_path: Path) -> None:
    large, small = {"vit_small_patch14_reg4_dinov2": (70, 42)}.get(model, (80, 48))
    values = arrays_of(timms_own(model, large))
    write_safetensors(tmp_path / "w.safetensors", values)
    overlay = {"file": str(tmp_path / "w.safetensors"), "num_classes": 3}
    theirs = timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay, img_size=small, num_classes=3)
    expected = arrays_of(theirs)
    arrays = start(model, tmp_path / "w.safetensors", small)
    assert expected["pos_embed"].shape != values["pos_embed"].shape
    assert all(np.array_equal(arrays[name], expected[name]) for name in expected if not name.startswith("head."))


def test_a_checkpoint_with_the_authors_names_is_read_as_timm_reads_it(tmp_path: Path) -> None:
    """ConvNeXt of facebookresearch, whose names timm's `checkpoint_filter_fn` knows."""
    values = arrays_of(timms_own("test_convnext"))
    theirs = {}
    for name, value in values.items():
        parts = name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv").split(".")
        if parts[0] == "stem":
            parts = ["downsample_layers", "0", *parts[1:]]
        elif parts[0] == "stages" and parts[2] == "downsample":
            parts = ["downsample_layers", parts[1], *parts[3:]]
        elif parts[0] == "stages":
            parts = ["stages", parts[1], *parts[3:]]
        elif parts[0] == "head":
            parts = ["norm" if parts[1] == "norm" else "head", parts[-1]]
        theirs[".".join(parts)] = value
    assert {"downsample_layers.0.0.weight", "stages.0.0.dwconv.weight", "norm.weight"} <= theirs.keys()
    write_safetensors(tmp_path / "w.safetensors", theirs)
    arrays = start("test_convnext", tmp_path / "w.safetensors")
    assert all(np.array_equal(arrays[name], values[name]) for name in values if not name.startswith("head.fc."))


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    values = arrays_of(timms_own("test_vit"))
    write_safetensors(tmp_path / "less.safetensors", {n: v for n, v in values.items() if n != "blocks.1.norm1.weight"})
    with pytest.raises(WeightsError, match=r"1 missing: blocks\.1\.norm1\.weight"):
        start("test_vit", tmp_path / "less.safetensors")
    write_safetensors(tmp_path / "other.safetensors", arrays_of(timms_own("test_resnet")))
    with pytest.raises(WeightsError, match="Weights do not fit timm:test_vit"):
        start("test_vit", tmp_path / "other.safetensors")


def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(WeightsError, match="timm:test_vit4 has no published ImageNet weights; pass weights='none'"):
        start("test_vit4", "imagenet")


def test_each_buffer_that_is_not_saved_is_as_timm_makes_it() -> None:
    model = built("levit_128s")
    made = timm_models.constants(model.module)
    assert made and not made & {spec.name for spec in model.specs}
    theirs = dict(timms_own("levit_128s").named_buffers())
    assert all(torch.equal(dict(model.module.named_buffers())[name], theirs[name]) for name in made)


# Whole runs ---------------------------------------------------------------------------------------------------------

RUN = """
import tlx
result = tlx.run({fields}, quiet=True, out={out!r})
answer = [result.recipe.weights, result.versions["timm"]]
"""


@pytest.mark.thorough
def test_a_run_starts_from_the_hub_and_lives_on_without_it(tmp_path: Path) -> None:
    """Weights by the default strategy; then offline from the cache, evaluated, predicted, resumed and taken along."""
    values = arrays_of(timms_own("test_vit", 160, 1000))
    fields = {**FIELDS, "model": "timm:test_vit", "strategy": "feature_extract"}
    del fields["weights"]
    source = "hf-hub:timm/test_vit.r160_in1k"
    with serving_hub() as hub:
        hub.repositories["timm/test_vit.r160_in1k"] = {"model.safetensors": safetensors_bytes(values)}
        code = RUN.format(fields=fields, out=str(tmp_path / "run"))
        assert ask(code, hub, tmp_path / "home") == [f"{source}@{COMMIT}", timm.__version__]
        assert hub.transfers() == [None]
    offline = {"HF_HUB_OFFLINE": "1"}
    code = RUN.format(fields=repr(str(tmp_path / "run" / "recipe.toml")), out=str(tmp_path / "again"))
    assert ask(code, hub, tmp_path / "home", **offline) == [f"{source}@{COMMIT}", timm.__version__]
    run, again = tmp_path / "run", tmp_path / "again"
    assert (run / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert json.loads((run / "card.json").read_bytes())["weights"] == f"{source}@{COMMIT}"

    model = tlx.load_model(run)
    theirs = timm.create_model("test_vit", num_classes=2, img_size=32).eval()
    theirs.load_state_dict({name: value for name, value in model.state_dict().items()})  # timm's own names
    assert torch.equal(model.state_dict()["blocks.0.norm1.weight"], torch.from_numpy(values["blocks.0.norm1.weight"]))
    x = torch.from_numpy(model.preprocess(np.zeros((2, 3, 8, 8), np.uint8)))
    with torch.no_grad():
        assert torch.allclose(model(x), theirs(x), atol=1e-6)
    evaluation = tlx.evaluate(run, quiet=True)
    assert evaluation["test_accuracy"] == evaluation["recorded_accuracy"]
    assert len(tlx.predict(run, np.zeros((2, 8, 8, 3), np.uint8), quiet=True)) == 2
    longer = tlx.run(resume=run, epochs=3, quiet=True)
    assert longer.epochs_run == 3


def test_a_run_that_is_resumed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    fields = {**FIELDS, "model": "timm:test_efficientnet", "strategy": "full"}
    whole = tlx.run(fields, epochs=3, quiet=True, out=str(tmp_path / "whole"))
    tlx.run(fields, epochs=2, quiet=True, out=str(tmp_path / "parts"))
    assert outcome(tlx.run(resume=tmp_path / "parts", epochs=3, quiet=True)) == outcome(whole)


def test_a_run_serves_as_weights_for_images_of_another_size(tmp_path: Path) -> None:
    first = tlx.run({**FIELDS, "model": "timm:test_vit", "image_size": 48}, quiet=True, out=str(tmp_path / "first"))
    arrays = start("test_vit", first.run_dir, 32)
    assert arrays["pos_embed"].shape[1] < 10


def test_the_features_store_knows_the_version_of_timm() -> None:
    assert versions_of("timm:test_vit") == {"timm": timm.__version__}
    assert versions_of("resnet18") == {}
