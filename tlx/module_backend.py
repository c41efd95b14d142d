"""The part of an adapter that is the same for every framework with modules, autograd and in-place tensors.

An adapter subclasses `ModuleBackend`, hands it the framework's package and its model zoo, and writes only what differs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tlx import rng
from tlx.backend import (
    Array,
    Arrays,
    Batch,
    Hyper,
    Lazy,
    ModelSpec,
    OptimizerSpec,
    ParamSpec,
    Precision,
    Role,
    check_alike,
    check_arrays,
    check_targets,
)
from tlx.errors import BackendError, closest


@dataclass(slots=True, eq=False)
class Net:
    """A built model. `module` is the framework's own; the rest is bookkeeping of the adapter."""

    module: Any
    head: str
    classes: int
    device: str
    dtype: Any  # of parameters and pixels
    autocast: bool
    training: dict[Any, bool]  # module -> mode while training, set by the phase
    specs: tuple[ParamSpec, ...]
    mode: str = "eval"
    dropouts: list[Any] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class DeviceBatch:
    """A batch on the device, ready for the network."""

    images: Any
    labels: Any
    targets: Any | None
    size: int
    key: tuple[int, int, int]


class ModuleBackend:
    """Everything that two near-twin frameworks do alike."""

    name: str

    def __init__(self, framework: Any, zoo: Any, depth: Any) -> None:
        self.fw = framework
        self.zoo = zoo
        self.depth = depth  # the zoo's stochastic depth
        nn = framework.nn
        self.batch_norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        self.norms = (*self.batch_norms, nn.LayerNorm, nn.GroupNorm)
        self.dropout = _dropout_class(framework)

    # What an adapter may replace, each with its reason.

    def construct(self, name: str, **options: bool) -> Any:
        """Build a zoo model with whatever initial values the zoo gives it."""
        return getattr(self.zoo, name)(**options)

    def copied(self, module: Any) -> Any:
        """Copy a user's own module, which stays as it is."""
        return copy.deepcopy(module)

    def prepare(self, net: Net) -> None:
        """Adjust a freshly built model, for example its layout in memory."""

    def autocast(self, net: Net) -> AbstractContextManager[Any]:
        return nullcontext()

    def exact(self, logits: Any) -> Any:
        """Cast logits to the dtype in which the loss is taken."""
        raise NotImplementedError

    def make_optimizer(self, spec: OptimizerSpec, groups: list[dict[str, Any]]) -> Any:
        raise NotImplementedError

    def optimizer_slots(self, optimizer: Optimizer, param: Any) -> Mapping[str, Any] | None:
        """Return a parameter's portable slots, or None before its first update."""
        raise NotImplementedError

    def set_optimizer_slots(self, optimizer: Optimizer, param: Any, slots: Mapping[str, Any] | None) -> None:
        raise NotImplementedError

    def tensor(self, array: Array, device: str) -> Any:
        """Copy an array to a device; later changes to the array do not reach the tensor."""
        return self.fw.tensor(array, device=device)

    def array(self, tensor: Any) -> Array:
        """Copy a tensor to the host, in C order."""
        return np.array(tensor.detach().cpu().numpy(), order="C", copy=True)

    # Models and their values.

    def build(self, spec: ModelSpec, device: str, precision: Precision) -> Net:
        fw = self.fw
        if spec.module is not None:
            if not isinstance(spec.module, fw.nn.Module):
                kind = f"{type(spec.module).__module__}.{type(spec.module).__name__}"
                raise BackendError(
                    f"model is a {kind}, not a module of {self.name}; choose the backend it is made with"
                )
            module = self.copied(spec.module)
        elif hasattr(self.zoo, spec.name):
            module = self.construct(spec.name, **dict(spec.options))
        else:
            raise BackendError(f"backend {self.name!r} has no model {spec.name!r}; `tlx models` lists what it has")
        self._replace_head(module, spec)
        dropouts = self._replace_dropouts(module)
        dtype = fw.float64 if precision == "float64" else fw.float32
        module = module.to(dtype).to(device)
        specs = tuple(self._specs(module))
        modes = dict.fromkeys(module.modules(), True)
        net = Net(module, spec.head, spec.classes, device, dtype, precision == "bfloat16", modes, specs)
        net.dropouts = dropouts
        self.prepare(net)
        module.eval()
        return net

    def _replace_head(self, module: Any, spec: ModelSpec) -> None:
        nn = self.fw.nn
        layers = [path for path, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        if spec.head not in layers:
            found = dict(module.named_modules()).get(spec.head)
            what = "there is no such module" if found is None else f"it is a {type(found).__name__}"
            near = closest(spec.head, layers)
            raise BackendError(f"{spec.name}: head {spec.head!r} must be a Linear or Conv2d layer, but {what}.{near}")
        parent, attribute, old = self._locate(module, spec.head, spec.name)
        outputs = old.out_features if isinstance(old, nn.Linear) else old.out_channels
        if spec.module is not None and outputs == spec.classes:
            return
        if isinstance(old, nn.Linear):
            new = nn.Linear(old.in_features, spec.classes, bias=old.bias is not None)
        else:
            new = nn.Conv2d(old.in_channels, spec.classes, old.kernel_size, bias=old.bias is not None)
        setattr(parent, attribute, new)
        if hasattr(module, "num_classes"):
            module.num_classes = spec.classes

    def _locate(self, module: Any, path: str, model: str) -> tuple[Any, str, Any]:
        """Return the parent, attribute and module at a path."""
        modules = dict(module.named_modules())
        if path not in modules:
            raise BackendError(f"{model}: no module {path!r}.{closest(path, modules)}")
        parent, _, attribute = path.rpartition(".")
        return modules[parent], attribute, modules[path]

    def _replace_dropouts(self, module: Any) -> list[Any]:
        found: list[Any] = []
        for path, old in list(module.named_modules()):
            if isinstance(old, (self.fw.nn.Dropout, self.depth)):
                if isinstance(old, self.depth) and old.mode != "row":
                    raise BackendError(f"{path}: stochastic depth of mode {old.mode!r} is not supported; use 'row'")
                parent, attribute, _ = self._locate(module, path, "model")
                setattr(parent, attribute, self.dropout(old.p, len(found), isinstance(old, self.depth)))
                found.append(getattr(parent, attribute))
        return found

    def _specs(self, module: Any) -> Iterator[ParamSpec]:
        norms = {path for path, m in module.named_modules() if isinstance(m, self.norms)}
        for kind, named in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
            for name, tensor in named:
                owner, _, leaf = name.rpartition(".")
                role: Role = "statistic" if kind == "buffer" else "norm" if owner in norms else "weight"
                if role == "weight" and leaf.endswith("bias"):
                    role = "bias"
                yield ParamSpec(name, tuple(tensor.shape), str(tensor.dtype).rpartition(".")[2], role, owner)

    def param_specs(self, model: Net) -> tuple[ParamSpec, ...]:
        return model.specs

    def _tensors(self, model: Net) -> dict[str, Any]:
        return {**dict(model.module.named_parameters()), **dict(model.module.named_buffers())}

    def load_arrays(self, model: Net, arrays: Arrays) -> None:
        check_arrays(model.specs, arrays)
        with self.fw.no_grad():
            for name, tensor in self._tensors(model).items():
                tensor.copy_(self.tensor(np.array(arrays[name], order="C", copy=True), model.device))

    def dump_arrays(self, model: Net) -> dict[str, Array]:
        return {name: self.array(tensor) for name, tensor in self._tensors(model).items()}

    # Training.

    def set_phase(self, model: Net, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        params = dict(model.module.named_parameters())
        statistics = {s.module for s in model.specs if s.role == "statistic"}
        for chosen, known, what in ((trainable, params, "parameter"), (batch_norm, statistics, "running statistics")):
            for name in sorted(chosen - known.keys() if isinstance(known, dict) else chosen - known):
                raise BackendError(f"set_phase: the model has no {what} {name!r}.{closest(name, known)}")
        for name, param in params.items():
            param.requires_grad_(name in trainable)
            param.grad = None
        parts = [name.split(".")[:-1] for name in trainable]
        holders = {".".join(path[:depth]) for path in parts for depth in range(len(path) + 1)}
        for path, module in model.module.named_modules():
            # A module without parameters, such as dropout, acts where the module around it holds one that trains.
            home = path if any(True for _ in module.parameters()) else path.rpartition(".")[0]
            model.training[module] = path in batch_norm if path in statistics else home in holders
        model.mode = "eval"
        model.module.eval()

    def _set_mode(self, model: Net, mode: str) -> None:
        if model.mode != mode:
            for module, training in model.training.items():
                module.training = training and mode == "train"
            model.mode = mode

    def optimizer(self, model: Net, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Any:
        if spec.name not in OPTIMIZERS:
            raise BackendError(f"Unknown optimizer {spec.name!r}.{closest(spec.name, OPTIMIZERS)}")
        params = dict(model.module.named_parameters())
        listed = [name for group in groups for name in group]
        for name in listed:
            if name not in params:
                raise BackendError(f"optimizer: the model has no parameter {name!r}.{closest(name, params)}")
        twice = sorted({name for name in listed if listed.count(name) > 1})
        missing = sorted(params.keys() - set(listed))
        if twice or missing:
            raise BackendError(f"optimizer: every parameter belongs in one group; in two: {twice}, in none: {missing}")
        native = self.make_optimizer(spec, [{"params": [params[n] for n in g], "lr": 0.0} for g in groups])
        return Optimizer(native, spec, {name: params[name] for name in listed})

    def set_hyper(self, optimizer: Optimizer, values: Sequence[Hyper]) -> None:
        groups = optimizer.native.param_groups
        if len(values) != len(groups):
            raise BackendError(f"set_hyper: {len(values)} values for {len(groups)} groups")
        for group, hyper in zip(groups, values, strict=True):
            group["lr"] = hyper.lr
            group["weight_decay"] = hyper.weight_decay

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        images, labels = batch.images, batch.labels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
            raise BackendError(f"put: images are {images.dtype} {images.shape}; expected uint8 [N, 3, h, w]")
        if labels.dtype != np.int64 or labels.shape != (len(images),):
            raise BackendError(f"put: labels are {labels.dtype} {labels.shape}; expected int64 [{len(images)}]")
        if labels.min() < 0 or labels.max() >= model.classes:
            raise BackendError(f"put: a label is outside 0..{model.classes - 1}")
        check_targets(batch, model.classes)
        pre, fw = batch.preprocess, self.fw
        if max(images.shape[2:]) > pre.size:
            raise BackendError(
                f"put: images of {images.shape[2:]} pixels are larger than {pre.size}; shrink them first"
            )
        pixels = self.tensor(images, model.device).to(model.dtype)
        if images.shape[2:] != (pre.size, pre.size):
            pixels = fw.nn.functional.interpolate(
                pixels, size=(pre.size, pre.size), mode="bilinear", align_corners=False
            )
        mean, std = (
            self.tensor(np.array(values).reshape(1, 3, 1, 1), model.device).to(model.dtype)
            for values in (pre.mean, pre.std)
        )
        targets = None if batch.targets is None else self.tensor(batch.targets, model.device)
        ready = (pixels / 255 - mean) / std
        return DeviceBatch(ready, self.tensor(labels, model.device), targets, len(labels), batch.key)

    def backward(self, model: Net, batch: DeviceBatch, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        self._set_mode(model, "train")
        for layer in model.dropouts:
            layer.key = batch.key
        logits = self._train_forward(model, batch)
        mean = self._loss(logits, batch)
        (mean if scale == 1.0 else mean * scale).backward()
        return mean.detach() * batch.size, self._correct(logits, batch.labels)

    def _loss(self, logits: Any, batch: DeviceBatch) -> Any:
        """Mean over the samples."""
        functional, logits = self.fw.nn.functional, self.exact(logits)
        if batch.targets is None:
            return functional.cross_entropy(logits, batch.labels)
        return -(batch.targets.to(logits.dtype) * functional.log_softmax(logits, dim=1)).sum() / batch.size

    def _train_forward(self, model: Net, batch: DeviceBatch) -> Any:
        try:
            with self.autocast(model):
                return _only(model.module(batch.images))
        except ValueError as error:
            if ONE_VALUE not in str(error):
                raise
            raise BackendError(
                "BatchNorm cannot take statistics over a batch of one image at this image_size; "
                "change batch_size or limit_train so that the last batch is larger"
            ) from error

    def update(self, model: Net, optimizer: Optimizer, max_norm: float | None = None) -> None:
        if max_norm is not None:
            self.fw.nn.utils.clip_grad_norm_([p for p in optimizer.params.values() if p.grad is not None], max_norm)
        optimizer.native.step()
        for param in optimizer.params.values():
            param.grad = None

    def average(self, shadow: Net, model: Net, weight: float) -> None:
        check_alike(shadow.specs, model.specs)
        now = self._tensors(model)
        with self.fw.no_grad():
            for name, old in self._tensors(shadow).items():
                if old.is_floating_point():
                    old.add_((now[name] - old) * weight)
                else:
                    old.copy_(now[name])

    # Evaluation.

    def _forward(self, model: Net, batch: DeviceBatch) -> Any:
        self._set_mode(model, "eval")
        with self.autocast(model):
            return _only(model.module(batch.images))

    def _correct(self, logits: Any, labels: Any) -> Any:
        with self.fw.no_grad():
            return (logits.argmax(1) == labels).sum()

    def evaluate(self, model: Net, batch: DeviceBatch) -> tuple[Lazy, Lazy]:
        with self.fw.no_grad():
            logits = self._forward(model, batch)
            return self._loss(logits, batch) * batch.size, self._correct(logits, batch.labels)

    def logits(self, model: Net, batch: DeviceBatch) -> Lazy:
        with self.fw.no_grad():
            return self._forward(model, batch).to(model.dtype)

    def features(self, model: Net, batch: DeviceBatch) -> Lazy:
        with self._tapped(model) as tap, self.fw.no_grad():
            self._forward(model, batch)
        return tap.value.to(model.dtype)

    @contextmanager
    def _tapped(self, model: Net) -> Iterator[Any]:
        """Replace the head by a module that keeps what enters it."""
        parent, attribute, head = self._locate(model.module, model.head, "model")
        tap = _tap_class(self.fw)()
        setattr(parent, attribute, tap)
        try:
            yield tap
        finally:
            setattr(parent, attribute, head)

    # State.

    def dump_optimizer(self, optimizer: Optimizer) -> dict[str, Array]:
        state = {}
        for name, param in optimizer.params.items():
            for slot, value in (self.optimizer_slots(optimizer, param) or {}).items():
                state[f"{name}/{slot}"] = self.array(value) if hasattr(value, "detach") else np.asarray(value)
        return state

    def load_optimizer(self, optimizer: Optimizer, state: Arrays) -> None:
        slots: dict[str, dict[str, Array]] = {}
        allowed = optimizer.spec.slots
        for key, value in state.items():
            name, _, slot = key.rpartition("/")
            if name not in optimizer.params or slot not in allowed:
                raise BackendError(
                    f"load_optimizer: unexpected {key!r}; expected PARAMETER/SLOT with slots {', '.join(allowed)}."
                    f"{closest(name, optimizer.params)}"
                )
            shape = tuple(optimizer.params[name].shape)
            if slot != "step" and value.shape != shape:
                raise BackendError(f"load_optimizer: {key!r} has shape {value.shape}; the parameter has {shape}")
            slots.setdefault(name, {})[slot] = value
        for name, param in optimizer.params.items():
            given = slots.get(name)
            if given is not None and set(given) != set(allowed):
                raise BackendError(f"load_optimizer: {name!r} has slots {sorted(given)}; expected {sorted(allowed)}")
            self.set_optimizer_slots(optimizer, param, given)

    def fetch(self, lazies: Sequence[Lazy]) -> list[Array]:
        if lazies and all(lazy.ndim == 0 for lazy in lazies):
            stacked = self.fw.stack([lazy.to(self.fw.float64) for lazy in lazies])
            return list(self.array(stacked))
        return [self.array(lazy) for lazy in lazies]


ONE_VALUE = "more than 1 value per channel"  # of a normalisation layer's ValueError
OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")


@dataclass(slots=True, eq=False)
class Optimizer:
    """A native optimizer with the names of its parameters."""

    native: Any
    spec: OptimizerSpec
    params: dict[str, Any]


def _only(output: Any) -> Any:
    """Return the logits where a model returns them first among others, as GoogLeNet does."""
    return output[0] if isinstance(output, tuple) else output


def _dropout_class(fw: Any) -> Callable[[float, int, bool], Any]:
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


def _tap_class(fw: Any) -> Callable[[], Any]:
    class Tap(fw.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            self.value = x
            return x

    return Tap
