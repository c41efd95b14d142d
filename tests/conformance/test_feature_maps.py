"""The last map of features: of every family, the same on both frameworks, and by hand; and of modules of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from support.backends import skip_module_without
from support.tiny_zoo import tiny_models

skip_module_without("torch", "oneflow")

import oneflow
import torch
from torch import nn

from tlx.backend import Batch, FeatureMap, ModelSpec, Preprocess, registry
from tlx.errors import BackendError
from tlx.models.initial_values import initial_values
from tlx.models.zoo import architecture
from tlx.runs.grad_cam import grad_cam, heated

CLASSES = 5
CHOSEN = np.array([1, 3])
# Where the map of each is, and how many rows it has: the same on both frameworks.
PLACES = {
    "tiny_vit": ("encoder.layers.encoder_layer_2.ln_1", 4),
    "tiny_swin": ("permute", 4),
    "tiny_convnext": ("features", 2),
    "resnet18": ("layer4", 2),
    "squeezenet1_0": ("features", 3),
    "alexnet": ("features.11", 3),
    "mobilenet_v2": ("features", 2),
    "densenet121": ("features", 2),
    "googlenet": ("inception5b", 2),
    "vgg11_bn": ("features.27", 4),
}
FEW = ("tiny_vit", "tiny_swin", "tiny_convnext", "resnet18", "squeezenet1_0")
FAMILIES = [name if name in FEW else pytest.param(name, marks=pytest.mark.thorough) for name in PLACES]


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    with tiny_models():
        yield


def batch(size: int, images: int = 2) -> Batch:
    pixels = np.random.default_rng(3).integers(0, 256, (images, 3, size, size), np.uint8)
    return Batch(pixels, np.zeros(images, np.int64), np.arange(images), Preprocess(size))


def built(framework: str, name: str, size: int = 64) -> tuple[Any, Any]:
    """A backend, and one of its models in float64 with the random weights that a run would start from."""
    backend, arch = registry.load(framework), architecture(name)
    spec = ModelSpec(name, CLASSES, arch.head, arch.options_at(size), image_size=size)
    model = backend.build(spec, "cpu", "float64")
    backend.load_arrays(model, initial_values(backend.param_specs(model), arch, "none", seed=1)[0])
    return backend, model


def seen(framework: str, name: str, size: int = 64) -> FeatureMap:
    backend, model = built(framework, name, size)
    return cast(FeatureMap, backend.feature_map(model, backend.put(model, batch(size)), CHOSEN))


def own(fw: ModuleType, module: Any, head: str, size: int = 32) -> FeatureMap:
    """The map of a module of one's own."""
    backend: Any = registry.load(fw.__name__)
    model = backend.build(ModelSpec("own", CLASSES, head, module=module, image_size=size), "cpu", "float64")
    return cast(FeatureMap, backend.feature_map(model, backend.put(model, batch(size)), CHOSEN))


def relative(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_heat_map_is_the_same_on_both_frameworks(name: str) -> None:
    ours, theirs = (seen(framework, name) for framework in ("torch", "oneflow"))
    assert (ours.path, ours.values.shape[2]) == (theirs.path, theirs.values.shape[2]) == PLACES[name]
    assert relative(theirs.logits, ours.logits) < 1e-9
    maps = [grad_cam(one.values, one.gradients) for one in (ours, theirs)]
    assert maps[0].max() > 0 and relative(maps[1], maps[0]) < 1e-6
    assert np.abs(heated(maps[0], 64) - heated(maps[1], 64)).max() <= 1e-6


def by_hand(model: Any, name: str, forward: Callable[[Any, Any], tuple[Any, Any]]) -> NDArray[Any]:
    """Equations 1 and 2 with PyTorch's own autograd; `forward` returns the map's tensor and the logits."""
    backend: Any = registry.load("torch")
    maps, logits = forward(model.module, backend.put(model, batch(64)).images)
    cams = []
    for i, chosen in enumerate(CHOSEN):
        gradient = torch.autograd.grad(logits[i, chosen], maps, retain_graph=True)[0]
        values, gradient = ((t[i, 1:].T.reshape(-1, 4, 4) if t.ndim == 3 else t[i]) for t in (maps, gradient))
        alpha = gradient.mean(dim=(1, 2), keepdim=True)
        cams.append(torch.relu((alpha * values).sum(0)).detach().numpy())
    return np.stack(cams)


def of_resnet(module: Any, x: Any) -> tuple[Any, Any]:
    x = module.maxpool(module.relu(module.bn1(module.conv1(x))))
    maps = module.layer4(module.layer3(module.layer2(module.layer1(x))))
    return maps, module.fc(maps.mean(dim=(2, 3)))


def of_vit(module: Any, x: Any) -> tuple[Any, Any]:
    x = module.conv_proj(x).flatten(2).transpose(1, 2)
    x = torch.cat([module.class_token.expand(len(x), -1, -1), x], dim=1) + module.encoder.pos_embedding
    *before, last = module.encoder.layers
    for block in before:
        x = block(x)
    normed = last.ln_1(x)
    x = x + last.self_attention(normed, normed, normed)[0]
    return normed, module.heads.head(module.encoder.ln(x + last.mlp(last.ln_2(x)))[:, 0])


@pytest.mark.parametrize(("name", "forward"), [("resnet18", of_resnet), ("tiny_vit", of_vit)])
def test_a_heat_map_is_that_of_the_formula_written_by_hand(name: str, forward: Any) -> None:
    backend, model = built("torch", name)
    one = backend.feature_map(model, backend.put(model, batch(64)), CHOSEN)
    assert relative(grad_cam(one.values, one.gradients), by_hand(model, name, forward)) < 1e-12


def state(fw: ModuleType, model: Any, mine: Any) -> list[Any]:
    """All that could be left behind; a gradient by its bits."""
    module = model.module
    grads = {name: None if p.grad is None else p.grad.numpy().tobytes() for name, p in module.named_parameters()}
    values = {name: t.detach().numpy().tobytes() for name, t in module.state_dict().items()}
    trains = [p.requires_grad for p in module.parameters()]
    modes = [m.training for m in module.modules()]
    hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks), dict(m._backward_hooks)) for m in module.modules()]
    forwards = [vars(m).get("forward") for m in module.modules()]
    return [grads, values, trains, modes, hooks, forwards, model.mode, mine.numpy().tobytes()]


@pytest.mark.parametrize("fw", [torch, oneflow])
def test_nothing_is_left_behind(fw: ModuleType) -> None:
    """In the midst of training: some parameters are frozen, gradients are there, and BatchNorm adapts."""
    layers = (fw.nn.Conv2d(3, 6, 4, 4), fw.nn.BatchNorm2d(6), fw.nn.ReLU(), fw.nn.Conv2d(6, 6, 1), fw.nn.BatchNorm2d(6))
    module = fw.nn.Sequential(*layers, fw.nn.Flatten(), fw.nn.Dropout(0.5), fw.nn.Linear(6 * 64, CLASSES))
    backend: Any = registry.load(fw.__name__)
    model = backend.build(ModelSpec("own", CLASSES, "7", module=module, image_size=32), "cpu", "float64")
    backend.set_phase(model, frozenset(("7.weight", "7.bias", "3.weight")), frozenset(("4",)))
    handle = backend.put(model, batch(32))
    backend.backward(model, handle)
    model.module[2]._forward_hooks["mine"] = _nothing
    before = state(fw, model, handle.images)
    assert any(before[3]) and not all(before[2]) and before[0]["7.weight"] is not None
    backend.feature_map(model, handle, CHOSEN)
    assert state(fw, model, handle.images) == before
    with pytest.raises(BackendError, match="one class of 0 to 4 for each of 2 images"):
        backend.feature_map(model, handle, np.array([0, 5]))
    assert state(fw, model, handle.images) == before


def _nothing(module: Any, args: Any, output: Any) -> None:
    pass


def test_a_head_of_zeros_has_a_map_of_zeros_and_is_looked_at_anew_later() -> None:
    backend, model = built("torch", "tiny_vit")
    handle, values = backend.put(model, batch(64)), backend.dump_arrays(model)
    backend.load_arrays(model, {**values, "heads.head.weight": np.zeros_like(values["heads.head.weight"])})
    one = backend.feature_map(model, handle, CHOSEN)
    assert not one.gradients.any() and not heated(grad_cam(one.values, one.gradients), 64).any()
    backend.load_arrays(model, values)
    one = backend.feature_map(model, handle, CHOSEN)
    assert one.path == PLACES["tiny_vit"][0] and one.gradients.any()


class Odd(nn.Module):
    """A class token, attention by a class of another name, and a module that gives out a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.ones(1, 1, 8))
        self.norm, self.softmax, self.temperature = nn.LayerNorm(8), nn.Softmax(-1), Single()
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Any) -> Any:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.patch(x).flatten(2).transpose(1, 2)], dim=1)
        x = self.norm(x)
        weights = self.softmax((x @ x.transpose(1, 2) * self.temperature(x))[:, None])
        return self.fc((weights[:, 0] @ x)[:, 0])


class Single(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Any) -> Any:
        return self.scale * 1


def test_weights_of_attention_and_single_numbers_are_no_maps() -> None:
    one = own(torch, Odd(), "fc")
    assert (one.path, one.values.shape) == ("norm", (2, 8, 4, 4)) and one.gradients.any()


class Fused(nn.Module):
    """Patches without a class token, through PyTorch's own layer, which in evaluation runs around its children."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(3 * 8 * 8, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Any) -> Any:
        x = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return self.fc(self.layer(self.patch(x)).mean(dim=1))


@pytest.mark.parametrize("fw", [torch, oneflow])
def test_modules_of_ones_own_have_a_map(fw: Any) -> None:
    pool, drop = fw.nn.AdaptiveAvgPool2d(2), fw.nn.Dropout(0.5)
    layers = [fw.nn.Conv2d(3, 6, 4, 4), fw.nn.ReLU(), pool, drop, fw.nn.Flatten(), fw.nn.Linear(24, CLASSES)]
    one = own(fw, fw.nn.Sequential(*layers), "5")
    assert (one.path, one.values.shape) == ("1", (2, 6, 8, 8))  # neither what is pooled, nor what only passes it on
    assert (one.values >= 0).all() and one.gradients.any()


def test_a_transformer_layer_that_runs_around_its_children_has_a_map() -> None:
    one = own(torch, Fused(), "fc")
    assert (one.path, one.values.shape) == ("layer", (2, 16, 4, 4)) and one.gradients.any()


def test_a_module_that_cuts_gradients_off_before_its_head_is_explained_behind_the_cut() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.more = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 6, 2, 2)
            self.fc = nn.Linear(6, CLASSES)

        def forward(self, x: Any) -> Any:
            with torch.no_grad():
                x = self.backbone(x)
            return self.fc(self.more(x).mean(dim=(2, 3)))

    assert own(torch, Cut(), "fc").path == "more"


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, CLASSES)),
            "before its head no module",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 8, 32), nn.ReLU(), nn.Flatten(), nn.Linear(8, CLASSES)),
            "at '1', is a single cell",
        ),
    ],
)
def test_a_model_without_a_map_is_refused_in_one_line(module: Any, said: str) -> None:
    with pytest.raises(BackendError, match=f"Sequential has no map of features to explain by: .*{said}"):
        own(torch, module, "3")


def test_under_inference_mode_it_is_said_where_to_call_it() -> None:
    backend, model = built("torch", "tiny_convnext")
    with torch.inference_mode(), pytest.raises(BackendError, match="call tlx outside of it"):
        backend.feature_map(model, backend.put(model, batch(64)), CHOSEN)


# Of timm: a class token, registers, pooled tokens, maps with the channels last, and convolutions.
@pytest.mark.parametrize(
    ("name", "place", "rows"),
    [
        ("test_vit", "blocks.5.norm1", 4),
        ("test_vit2", "blocks", 4),
        ("test_convnext", "stages", 2),
        ("test_efficientnet", "bn2", 2),
    ],
)
def test_models_of_timm_have_a_map(name: str, place: str, rows: int) -> None:
    backend: Any = registry.load("torch")
    arch = architecture(f"timm:{name}")
    model = backend.build(ModelSpec(arch.name, CLASSES, arch.head, image_size=64), "cpu", "float64")
    one = backend.feature_map(model, backend.put(model, batch(64)), CHOSEN)
    assert (one.path, one.values.shape[2]) == (place, rows) and one.gradients.any()
