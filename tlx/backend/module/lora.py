"""Low-rank adapters on the layers of a module framework, in plain tensor operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tlx.backend import Lora, ModelSpec
from tlx.backend.lora import adapter_names, choose_weights
from tlx.backend.module.build import describe
from tlx.errors import RecipeError

if TYPE_CHECKING:
    from tlx.backend.module.base import ModuleBackend
    from tlx.backend.module.net import Net

# Projections that attention holds as parameters of its own, by the names of torch.nn.MultiheadAttention.
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def attach(backend: ModuleBackend, net: Net, spec: ModelSpec) -> None:
    """Give layers of a built model the adapters that its spec asks for; both factors are zero.

    Raises RecipeError where the targets fit nothing, or where layers share a weight that would be merged.
    """
    if spec.lora is None:
        return
    fw, nn = backend.fw, backend.fw.nn
    owners = {path: module for path, module in net.module.named_modules() if not _within(spec.head, path)}
    linear: list[str] = []
    convolutions: list[str] = []
    for path, module in owners.items():
        for leaf, weight in module._parameters.items():
            if weight is None or (leaf != "weight" and leaf not in PROJECTIONS):
                continue
            if leaf in PROJECTIONS or isinstance(module, nn.Linear):
                linear.append(_joined(path, leaf))
            elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                convolutions.append(_joined(path, leaf))
    users = Counter(id(p) for module in net.module.modules() for p in module._parameters.values() if p is not None)
    chosen: dict[str, list[str]] = {}  # module path -> its weights
    for name in choose_weights(spec.lora, linear, convolutions, spec.name):
        path, _, leaf = name.rpartition(".")
        if users[id(owners[path]._parameters[leaf])] > 1:
            problem = f"{name} is also the weight of another layer, for which its adapter would count once it is merged"
            raise RecipeError(problem, fix="name the layers to adapt without it, in lora_targets")
        chosen.setdefault(path, []).append(leaf)
    exactly = partial(backend.autocast, replace(net, autocast=False)) if net.autocast else nullcontext
    adapters = set()
    for path, leaves in chosen.items():
        module = owners[path]
        for leaf in leaves:
            weight = module._parameters[leaf]
            out, columns = weight.shape[0], weight.numel() // weight.shape[0]
            shapes = (spec.lora.rank, columns), (out, spec.lora.rank)
            for name, shape in zip(adapter_names(leaf), shapes, strict=True):
                values = fw.zeros(*shape, dtype=weight.dtype, device=weight.device)
                module.register_parameter(name, nn.Parameter(values))
                adapters.add(_joined(path, name))
        module.__class__ = _adapted(fw, type(module), leaves, spec.lora, exactly)
    described = describe(net.module, backend.norms)
    net.specs = tuple(replace(s, role="adapter") if s.name in adapters else s for s in described)


def _joined(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf


def _within(head: str, path: str) -> bool:
    return path == head or path.startswith(f"{head}.")


def _adapted(
    fw: Any, base: type, leaves: list[str], lora: Lora, exactly: Callable[[], AbstractContextManager[Any]]
) -> type:
    """Derive a layer whose weights are read with what the adapters add, wherever they are read.

    Attention reads the weights of its layers and does not call them, so this holds for any code. A plain linear layer
    that is called adds the adapters' own product to its output instead, which takes less time and memory.
    """

    def adapted(leaf: str) -> property:
        first, second = adapter_names(leaf)

        def read(module: Any) -> Any:
            own = module._parameters
            weight = own[leaf]
            with exactly():
                return weight + (fw.matmul(own[second], own[first]) * lora.scale).reshape(weight.shape)

        return property(read)

    body: dict[str, Any] = {leaf: adapted(leaf) for leaf in leaves}
    if base.forward is fw.nn.Linear.forward:  # type: ignore[attr-defined]
        body["forward"] = _linear(fw.nn.functional.linear, lora.scale)
    return type(base.__name__, (base,), {"__module__": base.__module__, **body})


def _linear(linear: Callable[..., Any], scale: float) -> Callable[[Any, Any], Any]:
    def forward(module: Any, x: Any) -> Any:
        own: Mapping[str, Any] = module._parameters
        return linear(x, own["weight"], own.get("bias")) + linear(linear(x, own["lora_A"]), own["lora_B"]) * scale

    return forward
