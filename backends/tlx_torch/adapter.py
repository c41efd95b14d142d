"""The PyTorch adapter: what PyTorch does differently from the shared `ModuleBackend`."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
import torch
import torchvision

from tlx.backend import LOSSES, Array, Capabilities, ModelSpec, OptimizerSpec, Precision, float32_exact
from tlx.backend.module.base import ModuleBackend
from tlx.backend.module.dropout import UNITS, Drop, function
from tlx.backend.module.framework import Groups, MakeOptimizer
from tlx.backend.module.net import Net, Optimizer
from tlx.backend.module.shared_norm import Normalise
from tlx.errors import BackendError
from tlx.models.zoo import ARCHITECTURES
from tlx.processes import Channel, here
from tlx_torch import activations, float64, memory, own, processes, timm_build, timm_models

NATIVE = {"momentum": "momentum_buffer"}  # PyTorch's names of slots, where they are not the portable ones


def _sgd(groups: Groups, spec: OptimizerSpec) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.0, momentum=spec.momentum, nesterov=spec.nesterov)


def _adam(groups: Groups, spec: OptimizerSpec) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=0.0, betas=spec.betas, eps=spec.eps)


def _adamw(groups: Groups, spec: OptimizerSpec) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.0, betas=spec.betas, eps=spec.eps)


def _rmsprop(groups: Groups, spec: OptimizerSpec) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups, lr=0.0, alpha=spec.alpha, eps=spec.eps, momentum=spec.momentum)


class TorchBackend(ModuleBackend):
    """PyTorch, with torchvision's models."""

    name = "torch"
    optimizers: ClassVar[Mapping[str, MakeOptimizer]] = {
        "sgd": _sgd,
        "adam": _adam,
        "adamw": _adamw,
        "rmsprop": _rmsprop,
    }
    exact_functions = float64.FUNCTIONS

    def __init__(self) -> None:
        super().__init__(torch, torchvision.models, torchvision.ops.StochasticDepth)

    def capabilities(self) -> Capabilities:
        cpu = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        native = cpu.get("amx_bf16", False) or cpu.get("avx512_bf16", False)
        precisions = {"cpu": (*(("bfloat16",) if native else ()), "float32", "float64")}
        if torch.cuda.is_available():
            ampere = torch.cuda.get_device_capability() >= (8, 0)
            precisions["cuda"] = (*(("bfloat16",) if ampere else ()), "float32", "float64")
        return Capabilities(
            versions={"torch": torch.__version__, "torchvision": torchvision.__version__},
            devices=tuple(precisions),
            precisions=precisions,
            optimizers=tuple(self.optimizers),
            models=tuple(name for name in ARCHITECTURES if hasattr(torchvision.models, name)),
            deterministic=True,
            losses=LOSSES,
        )

    def made(self, spec: ModelSpec) -> torch.nn.Module:
        if not spec.name.startswith(timm_models.PREFIX):
            module: torch.nn.Module = super().made(spec)
            return module
        return timm_build.build(spec.name, spec.classes, spec.image_size)

    def _build(self, spec: ModelSpec, device: str, precision: Precision) -> Net:
        if device == "cuda" and here().size > 1:
            torch.cuda.set_device(processes.gpu_of(here(), torch.cuda.device_count()))
        net = super()._build(spec, device, precision)
        if spec.module is None and spec.name.startswith(timm_models.PREFIX):
            timm_build.describe_built(self, net, spec)
        return net

    def _tensors(self, model: Net) -> dict[str, torch.Tensor]:
        # A library's model keeps the constants that it was made with.
        tensors = super()._tensors(model)
        return tensors if model.library is None else {spec.name: tensors[spec.name] for spec in model.specs}

    def unwrapped(self, module: torch.nn.Module) -> torch.nn.Module:
        return own.unwrapped(module)

    def copied(self, module: torch.nn.Module) -> torch.nn.Module:
        return own.copied(module)

    def generators(self, device: str) -> list[torch.Generator]:
        current = [torch.cuda.default_generators[torch.cuda.current_device()]] if device == "cuda" else []
        return [torch.default_generator, *current]

    def dropping_functions(self, drop: Drop) -> list[tuple[Any, str, Callable[..., Any]]]:
        functional = torch.nn.functional
        attention = own.attention(functional.scaled_dot_product_attention, drop)
        others = [(torch, "dropout", function(drop, UNITS)), (functional, "scaled_dot_product_attention", attention)]
        return [*super().dropping_functions(drop), *others]

    def lay_out_plainly(self, net: Net) -> bool:
        net.module.to(memory_format=torch.contiguous_format)
        return True

    def prepare(self, net: Net) -> None:
        # Convolutions on the CPU and on tensor cores are fastest with channels last.
        net.module.to(memory_format=torch.channels_last)
        for path, module in net.module.named_modules():
            activations.improve(module)
            own.forget_biases(module)
            if isinstance(module, self.batch_norms) and path not in self.norms_as_given:
                # Other backends hold these constants as float32 and weigh the old mean with fl32(0.9).
                module.eps = float32_exact(module.eps)
                if module.momentum is not None:  # else it averages over all batches
                    module.momentum = 1.0 - float32_exact(1.0 - module.momentum)
            elif isinstance(module, torch.nn.Hardsigmoid) and net.dtype is torch.float64:
                module.__class__ = float64.Hardsigmoid
        weakref.finalize(net, memory.keep, False).atexit = False

    def reuse_memory(self, net: Net, wanted: bool) -> None:
        if net.device == "cpu":
            memory.keep(wanted)

    def autocast(self, net: Net) -> AbstractContextManager[Any]:
        return torch.autocast(net.device, dtype=torch.bfloat16, enabled=net.autocast)

    def tensor(self, array: Array, device: str) -> torch.Tensor:
        return torch.from_numpy(np.array(array, order="C", copy=True)).to(device)

    def sum_over(self, tensor: torch.Tensor, channel: Channel) -> torch.Tensor:
        return processes.sum_over(tensor, channel.world)

    def batch_norm_functions(self, normalise: Normalise) -> list[tuple[Any, str, Callable[..., Any]]]:
        native = torch.nn.functional.batch_norm

        def batch_norm(
            input: torch.Tensor,
            running_mean: torch.Tensor | None,
            running_var: torch.Tensor | None,
            weight: torch.Tensor | None = None,
            bias: torch.Tensor | None = None,
            training: bool = False,
            momentum: float = 0.1,
            eps: float = 1e-5,
        ) -> Any:
            if training:
                return normalise(input, running_mean, running_var, weight, bias, momentum, eps)
            return native(input, running_mean, running_var, weight, bias, False, momentum, eps)

        return [(torch.nn.functional, "batch_norm", batch_norm)]

    def laid_out(self, tensor: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
        # BatchNorm sums in another order over channels last.
        if tensor.stride() == strides:
            return tensor
        return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)

    def exact(self, logits: torch.Tensor) -> torch.Tensor:
        # In at least float32: autocast leaves bfloat16 logits behind.
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def optimizer(self, model: Net, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Any:
        if torch.is_inference_mode_enabled():
            raise BackendError("nothing can train under torch.inference_mode(); call tlx outside of it")
        return super().optimizer(model, spec, groups)

    def optimizer_slots(self, optimizer: Optimizer, param: Any) -> Mapping[str, Any] | None:
        state = optimizer.native.state.get(param)
        if not state or any(value is None for value in state.values()):
            return None
        return {slot: state[NATIVE.get(slot, slot)] for slot in optimizer.spec.slots}

    def set_optimizer_slots(self, optimizer: Optimizer, param: Any, slots: Mapping[str, Array] | None) -> None:
        optimizer.native.state.pop(param, None)
        if slots is None:
            return
        state = {}
        for slot, value in slots.items():
            tensor = torch.from_numpy(np.array(value, order="C", copy=True))
            if slot == "step":
                state[slot] = tensor.to(torch.float32)
            else:
                like = torch.empty_like(param, memory_format=torch.preserve_format)
                state[NATIVE.get(slot, slot)] = like.copy_(tensor)
        if optimizer.spec.name == "rmsprop":
            state["step"] = torch.zeros(())  # it is counted, and used for nothing
        optimizer.native.state[param] = state
