"""The OneFlow adapter: what OneFlow 0.9.0 does differently from the shared `ModuleBackend`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from tlx.backend import LOSSES, Array, Capabilities, OptimizerSpec
from tlx.backend.module.base import Groups, MakeOptimizer, ModuleBackend
from tlx.backend.module.dropout import FUNCTIONS, Drop, function
from tlx.backend.module.net import Net, Optimizer
from tlx.models.zoo import ARCHITECTURES
from tlx_oneflow import activations
from tlx_oneflow.arranged import ARRANGED
from tlx_oneflow.bootstrap import cuda_driver, flow, flowvision
from tlx_oneflow.layers import improve
from tlx_oneflow.optim import Adam, RMSprop, TensorOptimizer


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
        # Its first use of cuda without a driver ends the process, so the driver is asked first, not OneFlow.
        devices = ("cpu", "cuda") if cuda_driver() and flow.cuda.is_available() else ("cpu",)
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
