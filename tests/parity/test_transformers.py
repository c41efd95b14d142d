"""The transformers and ConvNeXt: torchvision's names, shapes and numbers on both backends, though flowvision's differ.

Computed on networks of few narrow blocks, as the smallest of the real ones has 28 million parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.backends import FRAMEWORKS
from support.distance import relative_distance
from support.one_step import one_step
from support.tiny_zoo import NAMES, TINY, tiny_models
from tlx.backend import Array, ModelSpec, registry
from tlx.models.initial_values import initial_values
from tlx.models.transformers import TRANSFORMERS
from tlx.models.zoo import Architecture, architecture
from tlx.proof.matrix import FREEZING, STRATEGIES, Row, examine
from tlx.proof.result import Verdict

pytestmark = pytest.mark.needs(*FRAMEWORKS)

DIGITS: dict[str, Any] = {"data": "digits", "classes": ("0", "1"), "limit_test": 4, "augment": "none", "image_size": 32}
REAL = ("resnext101_64x4d", *(arch.name for arch in TRANSFORMERS))
SMALLEST = ("swin_t", "convnext_tiny")
# Of Swin also sizes whose maps are padded: to whole windows, to be merged, and from a single patch.
SIZES = [("tiny_vit", 32), ("tiny_vit", 48), ("tiny_swin", 32), ("tiny_swin", 60), ("tiny_swin", 84), ("tiny_swin", 4)]
SIZES += [("tiny_convnext", 32), ("tiny_convnext", 45)]


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    with tiny_models():
        yield


@pytest.mark.parametrize(
    "name", [name if name in SMALLEST else pytest.param(name, marks=pytest.mark.thorough) for name in REAL]
)
def test_all_sizes_have_torchvisions_names_shapes_and_depths(name: str) -> None:
    """Torchvision's model takes no memory here, on the device meta; OneFlow's takes all that it needs."""
    import torch

    arch, reference = architecture(name), registry.load("torch")
    with torch.device("meta"):
        module = reference.zoo.__dict__[name](**dict(arch.options_at(arch.pixels.size)))  # type: ignore[attr-defined]
    backend = registry.load("oneflow")
    model = backend.build(ModelSpec(name, 1000, arch.head, arch.options_at(arch.pixels.size)), "cpu", "float32")
    specs = backend.param_specs(model)
    theirs = [*module.named_parameters(), *module.named_buffers()]
    assert [(spec.name, spec.shape) for spec in specs] == [(path, tuple(tensor.shape)) for path, tensor in theirs]
    assert sum(np.prod(spec.shape, dtype=int) for spec in specs if spec.role != "statistic") == arch.parameters
    depths = [(path, part.p) for path, part in module.named_modules() if hasattr(part, "p")]
    assert [(layer.path, layer.p) for layer in model.dropouts] == depths
    assert {arch.stage_of(spec.module) for spec in specs} == {"head", *(stage for stage, _ in arch.stages)}
    kinds = (torch.nn.LayerNorm, torch.nn.BatchNorm2d)
    norms = {path for path, part in module.named_modules() if isinstance(part, kinds)}
    assert {spec.module for spec in specs if spec.role == "norm"} == norms


def built(name: str, arch: Architecture, size: int, precision: Any = "float64") -> tuple[Any, Any, Any]:
    backend = registry.load(name)
    model = backend.build(ModelSpec(arch.name, 7, arch.head, arch.options_at(size)), "cpu", precision)
    return backend, model, backend.param_specs(model)


def noisy(specs: Any, arch: Architecture) -> dict[str, Array]:
    """Initial values, moved a little, so that no scale is small and no bias zero."""
    rng = np.random.default_rng(0)
    start = initial_values(specs, arch, "none", 0)[0]
    return {k: v + 0.2 * rng.standard_normal(v.shape) if v.dtype.kind == "f" else v for k, v in start.items()}


def computed(name: str, arch: Architecture, size: int) -> tuple[Any, ...]:
    """Descriptions, paths of all modules, eval logits, features, loss and gradients, with paths dropped."""
    backend, model, specs = built(name, arch, size)
    start = noisy(specs, arch)
    computed = one_step(backend, model, specs, start, size, rows=3, adapts=False)
    return (specs, [path for path, _ in model.module.named_modules()]), *computed


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_logits_and_gradients_are_equal(name: str, size: int) -> None:
    reference, candidate = (computed(backend, architecture(name), size) for backend in FRAMEWORKS)
    assert reference[0] == candidate[0]
    for a, b in zip(reference[1:4], candidate[1:4], strict=True):
        assert np.isfinite(a).all() and relative_distance(a, b) <= 1e-12
    largest = max(float(np.linalg.norm(moved)) for moved in reference[4].values())
    for key, moved in reference[4].items():
        apart = float(np.linalg.norm(moved - candidate[4][key]))
        assert apart <= 1e-12 * max(float(np.linalg.norm(moved)), 1e-3 * largest), key


@pytest.mark.parametrize(("name", "size"), [("vit", 32), ("swin", 224), ("convnext", 32)])
def test_flowvisions_own_forward_pass_gives_the_same(name: str, size: int) -> None:
    """Its layers are moved, not replaced: what its own code made of them before, the new tree makes of them after."""
    from tlx_oneflow import arranged
    from tlx_oneflow.bootstrap import flow, flowvision

    models = flowvision.models
    builders: dict[str, Callable[[], tuple[Any, Callable[[Any], Any]]]] = {
        "vit": lambda: (
            models.vision_transformer.VisionTransformer(size, 16, embed_dim=32, depth=2, num_heads=4, num_classes=7),
            arranged.VisionTransformer,
        ),
        "swin": lambda: (
            models.swin_transformer.SwinTransformer(embed_dim=16, depths=(2, 2), num_heads=(2, 4), num_classes=7),
            lambda module: arranged.SwinTransformer(module, 0.0),
        ),
        "convnext": lambda: (
            models.convnext.ConvNeXt(3, 7, (1, 2, 1, 1), (8, 16, 24, 32), layer_scale_init_value=0.5),
            lambda module: arranged.ConvNeXt(module, 0.0),
        ),
    }
    old, arrange = builders[name]()
    old = old.double().eval()
    images = flow.tensor(np.random.default_rng(0).standard_normal((2, 3, size, size)))
    with flow.no_grad():
        before = old(images).numpy().copy()
        after = arrange(old).eval()(images).numpy()
    assert relative_distance(before, after) <= 1e-14


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_vit", *(pytest.param(name, marks=pytest.mark.thorough) for name in NAMES[1:])])
def test_each_family_trains_by_each_strategy(name: str) -> None:
    """Each strategy on one of the backends; what it freezes is cached, and changes no bit.

    On some processors OneFlow rounds an image otherwise in another place of a batch; then nothing is cached, and said.
    """
    fields = {**DIGITS, "batch_size": 8, "val_fraction": 0.2, "weights": "none", "lr": 1e-3, "save_seconds": 1e9}
    for number, strategy in enumerate(STRATEGIES, NAMES.index(name)):
        cell = examine(Row(name, name, {**fields, "precision": "float32"}), FRAMEWORKS[number % 3 == 0], strategy)
        elsewhere = cell.backend == "oneflow" and any("otherwise in another place" in note for note in cell.notes)
        assert not cell.why and cell.cached == (strategy in FREEZING and not elsewhere), cell


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_parity_finds_no_difference(name: str) -> None:
    report = tlx.parity(model=name, data="digits", quick=True, weights="none", image_size=32)
    assert report.verdict is Verdict.EQUAL, report.first


def test_torchvisions_checkpoint_starts_oneflow_at_another_image_size(tmp_path: Path) -> None:
    """As torch.save writes it; the embedding of 4 x 4 positions becomes one of 2 x 2, as torchvision resamples it."""
    import torch
    from torchvision.models.vision_transformer import interpolate_embeddings

    for arch in TINY:
        size = 64 if arch.patch else 32
        torch.manual_seed(0)
        module = registry.load("torch").zoo.__dict__[arch.name](**dict(arch.options_at(size)))  # type: ignore[attr-defined]
        torch.save(module.state_dict(), tmp_path / f"{arch.name}.pth")
        backend, model, specs = built("oneflow", arch, 32, "float32")
        arrays, notes = initial_values(specs, arch, str(tmp_path / f"{arch.name}.pth"), 0)
        backend.load_arrays(model, arrays)
        state = dict(module.state_dict())
        if arch.patch:
            state = interpolate_embeddings(32, arch.patch, module.state_dict())
            assert any("4 x 4 patches, is resampled for the 2 x 2" in note for note in notes), notes
        for key, value in backend.dump_arrays(model).items():
            if not key.startswith(f"{arch.head}."):
                np.testing.assert_allclose(value, state[key].numpy(), rtol=0, atol=1e-6 if "pos" in key else 0)


def test_a_run_goes_on_from_the_other_backend_at_another_image_size(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"model": "tiny_vit", "strategy": "full", "epochs": 1, "batch_size": 8, "limit_train": 16}
    first = tlx.run(**{**DIGITS, "image_size": 48}, **fields, weights="none", backend="torch", out=str(tmp_path / "a"))
    second = tlx.run(**DIGITS, **fields, weights=str(first.run_dir), backend="oneflow", out=str(tmp_path / "b"))
    assert tlx.evaluate(second.run_dir, backend="torch")["test_accuracy"] == second.test_accuracy
