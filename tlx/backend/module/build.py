"""Building a model from a framework's module: its head, its description."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import Any

from tlx.backend import ModelSpec, ParamSpec, Role
from tlx.errors import BackendError, closest


def replace_head(nn: Any, module: Any, spec: ModelSpec) -> None:
    """Put the new head in the old one's place, wherever the model holds that.

    A layer of one's own that has the wanted number of outputs already stays.
    """
    old = _head(nn, module, spec)
    if spec.head_module is not None:
        new = spec.head_module
    else:
        outputs = _outputs(nn, old, module, spec)
        if not (spec.hidden or spec.dropout):
            if spec.module is not None and outputs == spec.classes:
                return _check_untied(module, old, spec)
            new = _like(nn, old, spec.classes)
        else:
            new = _chain(nn, old, spec)
    _check_untied(module, old, spec)
    for parent, attribute in [
        (m, name) for m in module.modules() for name, child in m._modules.items() if child is old
    ]:
        setattr(parent, attribute, new)
    if hasattr(module, "num_classes"):
        module.num_classes = spec.classes


def _head(nn: Any, module: Any, spec: ModelSpec) -> Any:
    modules = dict(module.named_modules())
    if spec.head in modules and spec.head:
        return modules[spec.head]
    other: Any = module  # by its second name, a shared module is not among them
    for name in spec.head.split("."):
        other = getattr(other, "_modules", {}).get(name)
    first = next((path for path, m in modules.items() if m is other), "")
    if first:
        raise BackendError(f"{spec.name}: {spec.head!r} and {first!r} are one module; name the head {first!r}")
    near = closest(spec.head, [path for path, m in modules.items() if isinstance(m, (nn.Linear, nn.Conv2d))])
    raise BackendError(
        f"{spec.name}: head {spec.head!r} must be a Linear or Conv2d layer, but there is no such module.{near}"
    )


def _outputs(nn: Any, old: Any, module: Any, spec: ModelSpec) -> int:
    """Return the head's number of outputs; it must be a plain layer, of which another one can be made."""
    if not isinstance(old, (nn.Linear, nn.Conv2d)):
        layers = [path for path, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        within = [path for path in layers if path.startswith(spec.head + ".")]
        near = closest(spec.head, within or layers)
        raise BackendError(
            f"{spec.name}: head {spec.head!r} must be a Linear or Conv2d layer, but it is a {type(old).__name__}."
            f"{near} Or replace it whole: head={{{spec.head!r}: module}}"
        )
    outputs = int(old.out_features if isinstance(old, nn.Linear) else old.out_channels)
    plain = type(old) in (nn.Linear, nn.Conv2d) and {name for name, _ in old.named_parameters()} <= {"weight", "bias"}
    if not plain and (spec.hidden or spec.dropout or spec.module is None or outputs != spec.classes):
        raise BackendError(
            f"{spec.name}: head {spec.head!r} has {outputs} outputs, and is no plain layer of which tlx could make "
            f"another ({type(old).__name__}); give one for {spec.classes} classes: head={{{spec.head!r}: module}}"
        )
    return outputs


def _check_untied(module: Any, old: Any, spec: ModelSpec) -> None:
    inside = {id(param): name for name, param in old.named_parameters()}
    for path, part in module.named_modules():
        if path == spec.head or path.startswith(spec.head + "."):
            continue
        for name, param in part._parameters.items():
            if id(param) in inside:
                raise BackendError(
                    f"{spec.name}: the head shares a parameter with the backbone: {spec.head}.{inside[id(param)]} is "
                    f"{f'{path}.{name}'.lstrip('.')}. Untie them, because the head is trained from new values"
                )


def _like(nn: Any, old: Any, outputs: int) -> Any:
    """Return a layer as the old one, with other outputs."""
    if isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, outputs, bias=old.bias is not None)
    shape = old.kernel_size, old.stride, old.padding, old.dilation
    return nn.Conv2d(old.in_channels, outputs, *shape, bias=old.bias is not None)


def _chain(nn: Any, old: Any, spec: ModelSpec) -> Any:
    """Return the head with hidden layers: the first has the old one's geometry, and maps then go on pixel by pixel."""
    widths = [*spec.hidden, spec.classes]
    dropout = [nn.Dropout(spec.dropout)] if spec.dropout else []
    layers = [_like(nn, old, widths[0])]
    for width, following in pairwise(widths):
        linear = isinstance(old, nn.Linear)
        layers += [nn.ReLU(), *dropout, nn.Linear(width, following) if linear else nn.Conv2d(width, following, 1)]
    return nn.Sequential(*([] if spec.hidden else dropout), *layers)


def ancestors(name: str) -> list[str]:
    """Return the paths of the modules around a parameter, from the whole model, "", to the module that owns it."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]


def holder(path: str, holding: Collection[str]) -> str:
    """Return a path, or that of the nearest module around it, which is in `holding`; "" where none is."""
    while path and path not in holding:
        path = path.rpartition(".")[0]
    return path


def locate(module: Any, path: str, model: str) -> tuple[Any, str, Any]:
    """Return the parent, attribute and module at a path."""
    modules = dict(module.named_modules())
    if path not in modules:
        raise BackendError(f"{model}: no module {path!r}.{closest(path, modules)}")
    parent, _, attribute = path.rpartition(".")
    return modules[parent], attribute, modules[path]


def describe(module: Any, norms: tuple[Any, ...]) -> Iterator[ParamSpec]:
    """Describe parameters, then buffers; `norms` are the classes of normalisation layers."""
    owners = {path for path, m in module.named_modules() if isinstance(m, norms)}
    names: dict[int, list[str]] = {}
    for name, tensor in _every_name(module):
        names.setdefault(id(tensor), []).append(name)
    for kind, named in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, tensor in named:
            owner, _, leaf = name.rpartition(".")
            role: Role = "statistic" if kind == "buffer" else "norm" if owner in owners else "weight"
            if role == "weight" and leaf.endswith("bias"):
                role = "bias"
            aliases = tuple(other for other in names.get(id(tensor), ()) if other != name)
            yield ParamSpec(name, tuple(tensor.shape), str(tensor.dtype).rpartition(".")[2], role, owner, aliases)


def _every_name(module: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each parameter and buffer under all its names."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield prefix + name, tensor
    for name, child in module._modules.items():
        if child is not None:
            yield from _every_name(child, f"{prefix}{name}.")
