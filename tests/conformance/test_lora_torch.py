"""Low-rank adapters in PyTorch's own attention, which reads the weights of its layers and does not call them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.needs("torch")

import tlx
from tlx.backend import Array, Lora, ModelSpec, Precision, registry
from tlx.backend.lora import adapted_weights, adapter_names, merged
from tlx.conformance.subject import assert_near, batch
from tlx.errors import RecipeError


def vit() -> Any:
    import torch
    from torchvision.models import VisionTransformer

    module = VisionTransformer(32, 16, num_layers=1, num_heads=2, hidden_dim=12, mlp_dim=16, num_classes=5)
    torch.nn.init.normal_(module.heads.head.weight)  # it is zero
    return module


def swin() -> Any:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=[4, 4], num_classes=5)


VIT = "encoder.layers.encoder_layer_0."
# Every linear layer of attention and MLPs, whoever calls it.
MODELS: dict[str, tuple[Callable[[], Any], str, set[str]]] = {
    "vit": (
        vit,
        "heads.head",
        {f"{VIT}{name}" for name in ("self_attention.in_proj", "self_attention.out_proj", "mlp.0", "mlp.3")},
    ),
    "swin": (
        swin,
        "head",
        {
            *(f"features.{stage}.0.{name}" for stage in (1, 3) for name in ("attn.qkv", "attn.proj", "mlp.0", "mlp.3")),
            "features.2.reduction",
        },
    ),
}


def built(model: str, precision: Precision, lora: Lora | None) -> tuple[Any, Any]:
    backend = registry.load("torch")
    make, head, _ = MODELS[model]
    import torch

    torch.manual_seed(0)
    return backend, backend.build(ModelSpec(model, 5, head, module=make(), lora=lora), "cpu", precision)


def drawn(backend: Any, net: Any) -> dict[str, Array]:
    """Its own values, and adapters that are not zero."""
    noise = np.random.Generator(np.random.Philox(1))
    values = backend.dump_arrays(net)
    adapters = [spec for spec in backend.param_specs(net) if spec.role == "adapter"]
    return {**values, **{s.name: noise.normal(0, 0.3, s.shape).astype(s.dtype) for s in adapters}}


@pytest.mark.parametrize("model", MODELS)
def test_every_linear_layer_of_attention_is_adapted(model: str) -> None:
    """Logits and gradients are those of the merged weights, in float64."""
    lora = Lora(2, 3.0)
    backend, net = built(model, "float64", lora)
    specs, values = backend.param_specs(net), drawn(*built(model, "float64", lora))
    assert {w.removesuffix(".weight").removesuffix("_weight") for w in adapted_weights(specs)} == MODELS[model][2]
    backend.load_arrays(net, values)
    _, plain = built(model, "float64", None)
    backend.load_arrays(plain, merged(values, specs, lora.scale))
    ours, theirs = (backend.fetch([backend.logits(m, backend.put(m, batch()))])[0] for m in (net, plain))
    assert_near({"logits": ours}, {"logits": theirs}, 1e-12)
    gradients = []
    for each in (net, plain):
        params = frozenset(spec.name for spec in backend.param_specs(each) if spec.role != "statistic")
        backend.set_phase(each, params, frozenset())
        backend.backward(each, backend.put(each, batch()))
        gradients.append(backend.probe(each).gradients())
    expected: dict[str, Array] = {}
    for name in adapted_weights(specs):
        (a, b), gradient = adapter_names(name), gradients[1][name]
        expected |= {a: lora.scale * values[b].T @ gradient, b: lora.scale * gradient @ values[a].T}
    assert_near({name: gradients[0][name] for name in expected}, expected)


@pytest.mark.parametrize("model", MODELS)
def test_adapters_that_are_read_are_computed_in_float32_under_autocast(model: str) -> None:
    backend, net = built(model, "bfloat16", Lora(2, 3.0))
    values = drawn(backend, net)
    backend.load_arrays(net, values)
    specs, module, name = backend.param_specs(net), net.module, adapted_weights(backend.param_specs(net))[0]
    path, _, leaf = name.rpartition(".")
    with backend.autocast(net):
        weight = getattr(module.get_submodule(path), leaf).detach().numpy()
    assert_near({name: weight}, {name: merged(values, specs, 1.5)[name]}, 1e-6)  # bfloat16 would be 1e-3 off


def test_a_layer_whose_weight_another_one_shares_is_not_adapted() -> None:
    from torch import nn

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.second.weight = self.first.weight

    for targets in (None, ("second", "first")):
        spec = ModelSpec("tied", 2, "fc", module=Tied(), lora=Lora(2, 3.0, targets))
        with pytest.raises(RecipeError, match=r"first\.weight is also the weight of another layer.* in lora_targets"):
            registry.load("torch").build(spec, "cpu", "float32")


def test_a_module_of_ones_own_is_adapted_and_comes_back_plain(tmp_path: Path) -> None:
    from torch import nn

    own = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 10))
    before = {name: value.clone() for name, value in own.state_dict().items()}
    fields: dict[str, Any] = {"model": own, "head": "3", "image_size": 8, "data": "digits", "limit_train": 200}
    result = tlx.run(**fields, strategy="lora", rank=2, lr=0.01, precision="float32", out=str(tmp_path), quiet=True)
    assert own.state_dict().keys() == before.keys() == result.model.state_dict().keys()
    assert all((own.state_dict()[name] == before[name]).all() for name in before)
    assert type(result.model[1]) is nn.Linear
    assert (result.model[1].bias == before["1.bias"]).all() and (result.model[1].weight != before["1.weight"]).any()
    assert tlx.evaluate(tmp_path, model=own, quiet=True)["test_accuracy"] == result.test_accuracy
