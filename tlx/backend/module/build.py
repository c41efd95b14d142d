"""Building a model from a framework's module: its head, its dropouts, its description."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tlx import rng
from tlx.backend import ModelSpec, ParamSpec, Role
from tlx.errors import BackendError, closest


def replace_head(nn: Any, module: Any, spec: ModelSpec) -> None:
    """Put a fresh layer of the same kind in the head's place, where it has not the wanted number of outputs already."""
    layers = [path for path, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if spec.head not in layers:
        other = dict(module.named_modules()).get(spec.head)
        what = "there is no such module" if other is None else f"it is a {type(other).__name__}"
        near = closest(spec.head, layers)
        raise BackendError(f"{spec.name}: head {spec.head!r} must be a Linear or Conv2d layer, but {what}.{near}")
    parent, attribute, old = locate(module, spec.head, spec.name)
    outputs = old.out_features if isinstance(old, nn.Linear) else old.out_channels
    if spec.module is not None and outputs == spec.classes:
        return
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, spec.classes, bias=old.bias is not None)
    else:
        shape = old.kernel_size, old.stride, old.padding, old.dilation
        new = nn.Conv2d(old.in_channels, spec.classes, *shape, bias=old.bias is not None)
    setattr(parent, attribute, new)
    if hasattr(module, "num_classes"):
        module.num_classes = spec.classes


def ancestors(name: str) -> list[str]:
    """Return the paths of the modules around a parameter, from the whole model, "", to the module that owns it."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]


def locate(module: Any, path: str, model: str) -> tuple[Any, str, Any]:
    """Return the parent, attribute and module at a path."""
    modules = dict(module.named_modules())
    if path not in modules:
        raise BackendError(f"{model}: no module {path!r}.{closest(path, modules)}")
    parent, _, attribute = path.rpartition(".")
    return modules[parent], attribute, modules[path]


def replace_dropouts(nn: Any, depth: Any, make: Callable[[float, int, bool], Any], module: Any) -> list[Any]:
    """Replace every dropout, and every stochastic depth, by what `make` makes; returns these in the module's order."""
    # Through the parents, because a module that two of them share has one path only.
    new: dict[Any, Any] = {}
    for path, parent in list(module.named_modules()):
        for attribute, old in list(parent.named_children()):
            whole = isinstance(old, depth)
            if type(old) is nn.Dropout or (whole and old.mode == "row"):
                if old not in new:
                    new[old] = make(old.p, len(new), whole)
                setattr(parent, attribute, new[old])
            elif whole or "Dropout" in type(old).__name__:
                name = f"{path}.{attribute}".lstrip(".")
                raise BackendError(f"{name} is a {type(old).__name__}, whose masks tlx does not draw; use nn.Dropout")
    return list(new.values())


def describe(module: Any, norms: tuple[Any, ...]) -> Iterator[ParamSpec]:
    """Describe parameters, then buffers; `norms` are the classes of normalisation layers."""
    owners = {path for path, m in module.named_modules() if isinstance(m, norms)}
    for kind, named in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, tensor in named:
            owner, _, leaf = name.rpartition(".")
            role: Role = "statistic" if kind == "buffer" else "norm" if owner in owners else "weight"
            if role == "weight" and leaf.endswith("bias"):
                role = "bias"
            yield ParamSpec(name, tuple(tensor.shape), str(tensor.dtype).rpartition(".")[2], role, owner)


def dropout_class(fw: Any) -> Callable[[float, int, bool], Any]:
    """Make the layer whose mask the core draws, so that every framework drops the same units, or the same samples.

    The latter is stochastic depth (Huang et al. 2016): a residual branch is dropped as a whole.
    """

    class Dropout(fw.nn.Module):  # type: ignore[misc]
        def __init__(self, p: float, layer: int, whole: bool) -> None:
            super().__init__()
            self.p, self.layer, self.whole, self.key = p, layer, whole, (0, 0, 0)

        def forward(self, x: Any) -> Any:
            if not self.training or self.p == 0.0:
                return x
            shape = (x.shape[0], *([1] * (x.ndim - 1))) if self.whole else tuple(x.shape)
            keep = rng.keep_mask(*self.key, self.layer, shape, self.p)
            mask = fw.tensor(keep.astype(np.uint8), device=x.device).to(x.dtype)
            return x * mask * (1.0 / (1.0 - self.p))

    return Dropout
