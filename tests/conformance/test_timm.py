"""timm's models on PyTorch: built as timm builds them, with head, stages, pixels and weights as timm has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.backends import skip_module_without

skip_module_without("torch")
timm = pytest.importorskip("timm")

import torch
from tlx_torch import timm_build, timm_models
from torch import nn

import tlx
from support.features import outcome
from support.timm_nets import FIELDS, arrays_of, built, pixels, timms_own
from tlx.backend import Batch, Hyper, Lora, ModelSpec, OptimizerSpec, Preprocess, registry
from tlx.errors import BackendError, RecipeError
from tlx.models.zoo import architecture, listed
from tlx.strategy.filters import partition
from tlx.training.metrics import FeaturesKept

pytestmark = pytest.mark.needs("torch")

# Small models of each kind: tokens, registers, maps, windows; and NFNet, whose branches begin with a gain of zero.
SAMPLE = ("test_vit", "test_vit3", "test_convnext", "test_efficientnet", "test_maxvit", "test_nfnet")
MORE = ("resnet10t", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto", "mixer_s32_224", "levit_128s")
LARGER = ("vit_small_patch14_reg4_dinov2", "swin_tiny_patch4_window7_224", "coat_lite_tiny", "caformer_s18")
SIZES = {"vit_small_patch14_reg4_dinov2": 28, "swin_tiny_patch4_window7_224": 64, "mixer_s32_224": 64}


# What tlx knows of a model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "head", "stages"),
    [
        ("resnet10t", "fc", "stem layer1 layer2 layer3 layer4"),
        ("vit_small_patch14_dinov2", "head", "stem " + " ".join(f"blocks.{i}" for i in range(12))),
        ("swin_tiny_patch4_window7_224", "head.fc", "stem layers.0 layers.1 layers.2 layers.3"),
        ("convnext_atto", "head.fc", "stem stages.0 stages.1 stages.2 stages.3"),
        ("mobilenetv3_small_050", "classifier", "stem " + " ".join(f"blocks.{i}" for i in range(6))),
        ("caformer_s18", "head.fc.fc2", "stem stages.0 stages.1 stages.2 stages.3"),  # timm does not group it
        ("levit_128s", "head.linear", "stem stages.0 stages.1 stages.2"),
        ("repvit_m0_9", "head.head.l", "stem stages.0 stages.1 stages.2 stages.3"),
    ],
)
def test_head_and_stages_are_those_of_timm(model: str, head: str, stages: str) -> None:
    arch = architecture(f"timm:{model}")
    assert (arch.head, " ".join(name for name, _ in arch.stages)) == (head, stages)


@pytest.mark.parametrize("model", [*SAMPLE, "levit_128s", "coat_lite_tiny"])
def test_each_value_belongs_to_one_stage_or_to_the_head(model: str) -> None:
    model_, arch = built(model), architecture(f"timm:{model}")
    groups = [(stage, f"stage:{stage}") for stage, _ in arch.stages]
    partition([*groups, ("head", "head")], model_.specs, arch)  # which raises where one is in none, or in two
    assert [s.name for s in model_.specs if s.role != "statistic" and arch.stage_of(s.module) == "head"] == [
        f"{arch.head}.weight",
        f"{arch.head}.bias",
    ]


@pytest.mark.parametrize("model", ["vit_small_patch14_dinov2", "mobilenetv3_small_050", "vit_base_patch16_clip_224"])
def test_pixels_are_those_that_timm_resolves(model: str) -> None:
    with torch.device("meta"):
        expected = timm.data.resolve_model_data_config(timm.create_model(model))
    found = architecture(f"timm:{model}").pixels
    assert (found.size, found.mean, found.std) == (expected["input_size"][1], expected["mean"], expected["std"])
    assert (found.interpolation, found.crop_fraction) == (expected["interpolation"], expected["crop_pct"])
    assert found.aspect == {"center": "crop", "squash": "squash", "border": "letterbox"}[expected["crop_mode"]]


def test_a_tag_names_other_weights_and_what_they_expect() -> None:
    plain, tagged = architecture("timm:mobilenetv3_large_100"), architecture("timm:mobilenetv3_large_100.miil_in21k")
    assert plain.imagenet == "hf-hub:timm/mobilenetv3_large_100.ra_in1k"
    assert tagged.imagenet == "hf-hub:timm/mobilenetv3_large_100.miil_in21k"
    assert (plain.pixels.mean, tagged.pixels.mean) == ((0.485, 0.456, 0.406), (0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("timm:vit_tinny_patch16_224", "Unknown model 'timm:vit_tinny_patch16_224'. Did you mean 'timm:vit_tiny_patch"),
        ("timm:resnet18.a1_in2k", "Unknown weights 'a1_in2k' of timm:resnet18. Did you mean 'a1_in1k'"),
        ("tim:resnet18", "no library 'tim'. Did you mean 'timm'?"),
        ("timm:crossvit_9_240", "has several heads (head.0, head.1), whose outputs it adds up; tlx replaces one"),
        ("timm:gemma4_vit_167m_enc", "is no classifier, but an encoder without a head"),
    ],
)
def test_what_cannot_be_adapted_is_refused_in_one_line(name: str, line: str) -> None:
    with pytest.raises(RecipeError) as error:
        tlx.Recipe(model=name)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_size_that_a_model_does_not_take_is_refused_with_sizes_that_it_takes() -> None:
    with pytest.raises(BackendError, match=r"cannot take images of 50 pixels: .*Fix: use image_size 48 or 64 or 160"):
        built("test_vit", 50)
    assert built("test_vit", 48).module.patch_embed.img_size == (48, 48)


@pytest.mark.needs("oneflow")
def test_oneflow_has_no_model_of_timm() -> None:
    with pytest.raises(BackendError) as error:
        tlx.run(model="timm:resnet18", backend="oneflow", **FIELDS)
    assert str(error.value) == (
        "backend 'oneflow' has no model 'timm:resnet18': timm exists on 'torch' only. Did you mean 'resnet18' or "
        "'resnet152' or 'resnet101'?"
    )


def test_models_are_listed_by_a_pattern_without_building_them() -> None:
    rows = listed("timm:vit_tiny_patch16_224*")
    name = "vit_tiny_patch16_224.augreg_in21k"
    assert {"name": f"timm:{name}", "image_size": 224, "imagenet": f"hf-hub:timm/{name}"} in rows
    assert all(row["name"].startswith("timm:vit_tiny_patch16_224") for row in rows)


def tlx_command(*arguments: str, code: str = "") -> Any:
    script = f"import sys\n{code}\nsys.argv = ['tlx', *{list(arguments)!r}]\nfrom tlx.cli import main\nmain()"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)


def test_without_timm_one_line_says_how_to_install_it() -> None:
    done = tlx_command("run", "--model", "timm:resnet18", code="sys.modules['timm'] = None")
    expected = 'models timm:... need timm, which is not installed. Fix: pip install "tlx[timm]"'
    assert (done.returncode, done.stderr.strip().removeprefix("tlx: ").removeprefix("error: ")) == (2, expected)


def test_the_plain_list_of_models_imports_no_framework() -> None:
    code = "import atexit\natexit.register(lambda: print([m for m in ('timm', 'torch') if m in sys.modules]))"
    done = tlx_command("models", code=code)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "timm:" not in done.stdout


# What is built ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [*SAMPLE, "levit_128s", "deit_tiny_distilled_patch16_224"])
def test_a_built_model_computes_what_timms_own_does(model: str) -> None:
    """With the same values; of two classifiers, which timm averages, both get the first one's values."""
    known, theirs, ours = timm_models.layout(f"timm:{model}"), timms_own(model), built(model)
    values = arrays_of(theirs)
    for name in [name for name in values if known.twin and name.startswith(f"{known.twin}.")]:
        values[name] = values[name.replace(known.twin, known.arch.head)]
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()})
    names = {spec.name for spec in ours.specs}
    registry.load("torch").load_arrays(ours, {name: values[name] for name in names})
    assert names >= {name for name in values if not (known.twin and name.startswith(f"{known.twin}."))}
    with torch.no_grad():
        expected, actual = theirs(pixels()), ours.module.eval()(pixels())
    assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 1e-3


def test_the_head_may_have_hidden_layers_and_a_model_without_one_gets_one() -> None:
    plain = timm.create_model("vit_small_patch14_dinov2", img_size=28)
    assert isinstance(plain.get_classifier(), nn.Identity)
    model = built("vit_small_patch14_dinov2", 28, hidden=(16,), dropout=0.5)
    kinds = [type(layer).__name__ for layer in model.module.get_submodule("head")]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear"]
    with torch.no_grad():
        assert model.module.eval()(pixels(28)).shape == (2, 3)


def test_low_rank_adapters_in_a_model_of_timm_are_known_as_such() -> None:
    backend = registry.load("torch")
    spec = ModelSpec("timm:test_vit", 3, architecture("timm:test_vit").head, lora=Lora(2, 4.0))
    roles = {described.name: described.role for described in backend.param_specs(backend.build(spec, "cpu", "float32"))}
    adapters = {name for name, role in roles.items() if role == "adapter"}
    assert adapters and adapters == {name for name in roles if name.endswith(("lora_A", "lora_B"))}


def test_norms_of_timm_are_norms() -> None:
    roles = {spec.name: spec.role for spec in built("test_vit3").specs}
    assert {roles[name] for name in roles if ".norm1." in name} == {"norm"}
    evos = {spec.name: spec.role for spec in built("test_efficientnet_evos").specs}
    assert {evos[name] for name in evos if ".bn1." in name} == {"norm"}


def test_stochastic_depth_of_timm_takes_its_masks_from_the_core() -> None:
    module = timm_build.build("timm:fasternet_t1", 3, 32)
    from timm.layers import DropPath

    assert not any(isinstance(part, DropPath) for part in module.modules())
    model = built("fasternet_t1")
    assert sum(layer.axes == 1 and layer.p > 0 for layer in model.dropouts) > 5


def test_attention_that_keeps_its_biases_in_evaluation_sees_new_ones() -> None:
    backend, model = registry.load("torch"), built("levit_128s")
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8)
    batch = Batch(images, np.array([0, 1, 2, 0]), np.arange(4), Preprocess(32))
    names = tuple(spec.name for spec in model.specs if spec.role != "statistic")
    optimizer = backend.optimizer(model, OptimizerSpec("sgd", momentum=0.0), [names])
    backend.set_hyper(optimizer, [Hyper(1e-3, 0.0)])
    handle = backend.put(model, batch)
    draw = np.random.default_rng(1).random  # at timm's own start no gradient reaches the biases
    values = {name: v + 0.02 * draw(v.shape) for name, v in backend.dump_arrays(model).items() if v.dtype.kind == "f"}
    moved = {name: values.get(name, v).astype(v.dtype) for name, v in backend.dump_arrays(model).items()}
    backend.load_arrays(model, moved)
    backend.set_phase(model, frozenset(names), frozenset())
    backend.evaluate(model, handle)  # which fills timm's cache
    backend.backward(model, handle)
    backend.update(model, optimizer)
    fresh = built("levit_128s")
    backend.load_arrays(fresh, backend.dump_arrays(model))
    found, expected = (backend.fetch([backend.logits(m, handle)])[0] for m in (model, fresh))
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-6)
    name = next(name for name in moved if name.endswith("attention_biases"))
    assert not np.array_equal(backend.dump_arrays(model)[name], moved[name])


def test_dropout_in_a_models_own_code_is_seeded_and_said() -> None:
    backend, model = registry.load("torch"), built("ghostnet_050")
    assert model.notes == ["its code drops 20% of what enters the head while it trains, so features are not cached"]
    head = tuple(spec.name for spec in model.specs if spec.module == "classifier")
    backend.set_phase(model, frozenset(head), frozenset())
    assert backend.boundaries(model) == ()
    gradients = []
    for step in (0, 0, 1):
        images = np.full((2, 3, 32, 32), 100, np.uint8)
        batch = Batch(images, np.array([0, 1]), np.arange(2), Preprocess(32), key=(0, step, 0))
        backend.backward(model, backend.put(model, batch))
        gradients.append(model.module.classifier.weight.grad.clone())
        model.module.classifier.weight.grad = None
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])


def test_first_values_are_drawn_from_the_seed() -> None:
    fitting = timm_build.Fitting("timm:test_vit", 3, 32)
    before = torch.random.get_rng_state()
    first, again, other = (fitting.first_values(seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["pos_embed"], other["pos_embed"])
    assert "head.weight" not in first


# Features -----------------------------------------------------------------------------------------------------------


def examined(model: str, strategy: str, precision: str, folder: Path) -> None:
    fields = {**FIELDS, "model": f"timm:{model}", "strategy": strategy, "image_size": SIZES.get(model, 32)}
    fields["precision"] = precision
    events: list[Any] = []
    expected = outcome(tlx.run(fields, feature_cache="off", quiet=True, out=str(folder / "off")))
    cached = outcome(tlx.run(fields, feature_cache="run", quiet=True, out=str(folder / "run"), on_event=events.append))
    kept = [event for event in events if isinstance(event, FeaturesKept)]
    assert "train" in {event.part for event in kept}, [str(event) for event in events][:3]
    assert cached == expected


@pytest.mark.parametrize("model", ["test_vit", "test_convnext", "test_efficientnet", "test_nfnet"])
def test_cached_features_change_no_bit(model: str, tmp_path: Path) -> None:
    """What enters the last stage: tokens [N, T, C] of a transformer, maps of a network of convolutions."""
    examined(model, "partial", "float32", tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("strategy", ["feature_extract", "partial"])
@pytest.mark.parametrize("model", [*SAMPLE, *MORE, *LARGER])
def test_cached_features_of_more_models_change_no_bit(
    model: str, strategy: str, precision: str, tmp_path: Path
) -> None:
    examined(model, strategy, precision, tmp_path)
