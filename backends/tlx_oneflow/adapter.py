"""The OneFlow adapter: what OneFlow 0.9.0 does differently from the shared `ModuleBackend`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from tlx.backend import LOSSES, Array, Capabilities, OptimizerSpec, float32_exact
from tlx.backend.module.base import ModuleBackend
from tlx.backend.module.dropout import FUNCTIONS, Drop, function
from tlx.backend.module.framework import Groups, MakeOptimizer
from tlx.backend.module.net import Net, Optimizer
from tlx.backend.module.shared_norm import Normalise
from tlx.errors import BackendError
from tlx.models.zoo import ARCHITECTURES
from tlx.processes import Channel
from tlx_oneflow import activations, layers
from tlx_oneflow.arranged import ARRANGED
from tlx_oneflow.bootstrap import flow, flowvision
from tlx_oneflow.gpus import gpus
from tlx_oneflow.layers import improve
from tlx_oneflow.optim import Adam, RMSprop, TensorOptimizer

TOGETHER = 1 << 18  # elements of a tensor that is copied to the host with others


def _sgd(groups: Groups, spec: OptimizerSpec) -> Any:
    return flow.optim.SGD(groups, lr=0.0, momentum=spec.momentum, nesterov=spec.nesterov)


def _adam(groups: Groups, spec: OptimizerSpec) -> Any:
    return Adam(groups, spec.betas, spec.eps)


def _adamw(groups: Groups, spec: OptimizerSpec) -> Any:
    return Adam(groups, spec.betas, spec.eps, decoupled=True)


def _rmsprop(groups: Groups, spec: OptimizerSpec) -> Any:
    return RMSprop(groups, spec.alpha, spec.eps, spec.momentum)


class OneFlowBackend(ModuleBackend):
    """OneFlow 0.9.0, with flowvision's models."""

    name = "oneflow"
    restores_generators = False  # a state that is set back goes on with other numbers
    optimizers: ClassVar[Mapping[str, MakeOptimizer]] = {
        "sgd": _sgd,
        "adam": _adam,
        "adamw": _adamw,
        "rmsprop": _rmsprop,
    }
    exact_functions = activations.FUNCTIONS

    def __init__(self) -> None:
        zoo = SimpleNamespace(**vars(flowvision.models), **ARRANGED)
        super().__init__(flow, zoo, flowvision.layers.StochasticDepth)

    def capabilities(self) -> Capabilities:
        # Its first use of cuda without a driver, or code for the GPU, ends the process: the driver is asked first.
        able = bool(here := gpus()) and all(gpu.usable for gpu in here) and flow.cuda.is_available()
        devices = ("cpu", "cuda") if able else ("cpu",)
        return Capabilities(
            versions={"oneflow": flow.__version__, "flowvision": flowvision.__version__},
            devices=devices,
            precisions={device: ("float32", "float64") for device in devices},
            optimizers=tuple(self.optimizers),
            models=tuple(name for name in ARCHITECTURES if hasattr(self.zoo, name)),
            deterministic=True,
            losses=LOSSES,
        )

    def construct(self, name: str, **options: int) -> Any:
        module = super().construct(name, **options)
        if name.startswith("regnet"):
            module.stem[0].padding = (1, 1)  # as torchvision has it; flowvision forgot it
        if name == "inception_v3":  # flowvision takes transform_input and does not act on it
            forward, transform = module.forward, module._transform_input
            module.forward = lambda x: forward(transform(x))
        return module

    def copied(self, module: Any) -> Any:
        # Its own copy leaves the hooks behind, with a warning.
        memo: dict[int, Any] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copied = copy.deepcopy(module, memo)
        for old, new in zip(module.modules(), copied.modules(), strict=True):
            new._forward_hooks = copy.deepcopy(old._forward_hooks, memo)
            new._forward_pre_hooks = copy.deepcopy(old._forward_pre_hooks, memo)
        return copied

    def dropping_functions(self, drop: Drop) -> list[tuple[Any, str, Callable[..., Any]]]:
        # Its modules call these.
        own = [(flow._C, name, function(drop, axes)) for name, axes in FUNCTIONS.items()]
        return [*super().dropping_functions(drop), *own]

    def generators(self, device: str) -> list[Any]:
        return [flow.default_generator]

    def prepare(self, net: Net) -> None:
        for module in net.module.modules():
            improve(module)

    def stand_ins(self, features: Any, pixels: tuple[int, ...]) -> list[Any]:
        # Its pooling of anything but maps ends the process.
        return [tensor for tensor in super().stand_ins(features, pixels) if tensor.ndim == 4]

    def exact(self, logits: Any) -> Any:
        # Its float32 cross-entropy is inaccurate; on float64 logits the gradient is right to 4.5e-10.
        return logits.double()

    def arrays(self, tensors: Mapping[str, Any]) -> dict[str, Array]:
        # Each copy waits for its threads, and spins: 0.05 ms, or 2 ms where other processes have the cores too.
        small: dict[Any, list[str]] = {}
        for name, tensor in tensors.items():
            if 0 < tensor.numel() <= TOGETHER:
                small.setdefault((tensor.dtype, tensor.device), []).append(name)
        copied: dict[str, Array] = {}
        for names in small.values():
            flat = self.array(flow.cat([tensors[name].detach().reshape(-1) for name in names]))
            ends = np.cumsum([tensors[name].numel() for name in names])
            parts = zip(names, np.split(flat, ends[:-1]), strict=True)
            copied |= {name: part.reshape(tuple(tensors[name].shape)).copy() for name, part in parts}
        return {name: copied[name] if name in copied else self.array(t) for name, t in tensors.items()}

    def sum_over(self, tensor: Any, channel: Channel) -> Any:
        world, connected = channel.world, (flow.env.get_rank(), flow.env.get_world_size())
        if connected == (world.rank, world.size):
            return flow._C.local_all_reduce(tensor, inplace=False)
        if tensor.is_cuda:
            raise BackendError(
                f"oneflow was imported as process {connected[0]} of {connected[1]}, and this is {world.rank} of "
                f"{world.size}: it connects its processes while it is imported, so let tlx import it"
            )
        return super().sum_over(tensor, channel)

    def batch_norm_functions(self, normalise: Normalise) -> list[tuple[Any, str, Callable[..., Any]]]:
        native = flow._C.normalization

        def by_whole(x: Any, *values: Any, axis: int, epsilon: float, momentum: float) -> Any:
            # As its kernels do, which hold float32 and weigh the old mean.
            return normalise(x, *values, 1.0 - float32_exact(1.0 - momentum), float32_exact(epsilon))

        def normalization(x: Any, *values: Any, is_training: bool, **scalars: Any) -> Any:
            return by_whole(x, *values, **scalars) if is_training else native(x, *values, is_training=False, **scalars)

        return [(layers, "normalised", by_whole), (flow._C, "normalization", normalization)]

    def optimizer_slots(self, optimizer: Optimizer, param: Any) -> Mapping[str, Any] | None:
        if isinstance(optimizer.native, TensorOptimizer):
            return optimizer.native.state.get(param)
        momentum = optimizer.native._state[param].get("momentum_buf")
        return None if momentum is None else {"momentum": momentum}

    def set_optimizer_slots(self, optimizer: Optimizer, param: Any, slots: Mapping[str, Array] | None) -> None:
        def tensor(value: Array) -> Any:
            return flow.tensor(np.array(value, order="C", copy=True), dtype=param.dtype, device=param.device)

        native = optimizer.native
        if isinstance(native, TensorOptimizer):
            native.state.pop(param, None)
            if slots is not None:
                native.state[param] = {k: float(v) if k == "step" else tensor(v) for k, v in slots.items()}
        elif slots is None:
            native._state[param].pop("momentum_buf", None)
        else:
            native._state[param]["momentum_buf"] = tensor(slots["momentum"])
