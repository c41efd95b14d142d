"""The reference backend: a small perceptron with BatchNorm in NumPy, its gradients by hand.

It follows the whole contract of `tlx.backend` without a framework, so it tests the core and shows what an adapter does.
The layers are fc1, bn1, ReLU, dropout (in "tiny-mlp-dropout") and the head fc, on pixels averaged to 3 x 8 x 8; fc1
may have low-rank adapters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tlx.backend import (
    LOSSES,
    Array,
    Arrays,
    Batch,
    Capabilities,
    FeatureMap,
    Hyper,
    Lazy,
    ModelSpec,
    OptimizerSpec,
    ParamSpec,
    Precision,
    check_alike,
    check_arrays,
    check_batch,
    check_groups,
    check_known,
    slots_by_parameter,
)
from tlx.backend.lora import choose_weights, merged
from tlx.backend.optimizers import RULES
from tlx.backend.preprocess import enlarging
from tlx.backend.registry import Check
from tlx.conformance import reference
from tlx.conformance.loopback_shares import mean_over, summed
from tlx.errors import BackendError, closest
from tlx.processes import Channel
from tlx.rng import keep_mask

if TYPE_CHECKING:
    from tlx.conformance.loopback_probe import LoopbackProbe

DISTRIBUTIONS = ("numpy",)
HIDDEN = True  # only tests use it, and who writes a backend: listings leave it out
DROPOUT = {"tiny-mlp": 0.0, "tiny-mlp-dropout": 0.5}
GRID, UNITS = 8, 32
BOUNDARIES = ("bn1", "dropout", "fc")  # modules, in order of execution, at which a batch may begin
# The core looks for numbers that are not finite, and says more of them than NumPy would.
DIVERGES: np.errstate[Any] = np.errstate(over="ignore", invalid="ignore")


def check() -> list[Check]:
    """NumPy is all it needs."""
    return [Check("numpy", np.__version__)]


def create() -> Loopback:
    """Return the backend."""
    return Loopback()


@dataclass(eq=False)  # without slots: `load_model` adds attributes, as to a framework's module
class Module:
    """The "framework's own" module: parameters, then buffers, by name."""

    arrays: dict[str, Array]
    dropout: float


@dataclass(slots=True, eq=False)
class Net:
    """The model's handle."""

    module: Module
    specs: tuple[ParamSpec, ...]
    classes: int
    dtype: np.dtype[Any]
    scale: float = 0.0  # of fc1's adapters
    trainable: frozenset[str] = frozenset()
    batch_norm: frozenset[str] = frozenset()
    grads: dict[str, Array] = field(default_factory=dict)  # an absent name is a gradient of None
    shards: dict[int, dict[str, Array]] = field(default_factory=dict)  # those of each shard, until `reduce`


@dataclass(slots=True, eq=False)
class Optimizer:
    """The optimizer's handle."""

    net: Net
    spec: OptimizerSpec
    groups: tuple[tuple[str, ...], ...]
    hyper: tuple[Hyper, ...]
    state: dict[str, dict[str, Array]] = field(default_factory=dict)  # parameter -> slot -> array


@dataclass(slots=True, eq=False)
class DeviceBatch:
    """The batch's handle."""

    pixels: Array  # [N, 3 * GRID * GRID], in the model's dtype; or what enters the module at `boundary`
    labels: Array
    key: tuple[int, int, int]
    targets: Array | None
    boundary: str
    among: Channel | None = None  # this and the next three as those of `Batch`
    whole: int = 0
    absent: bool = False
    shard: int | None = None

    @property
    def mean(self) -> reference.Mean | None:
        """What averages over the rows of all processes that share the batch; None where it is this one's alone."""
        if self.among is None or self.shard is not None:
            return None
        return mean_over(self.among, self.whole, self.absent)


@dataclass(slots=True, eq=False)
class Pass:
    """What a forward pass keeps for the backward pass."""

    x: Array  # input
    a: Array  # fc1's output
    var: Array  # what bn1 normalised by
    z: Array  # normalised
    y: Array  # bn1's output
    mask: Array | float  # dropout: 0, or 1 / (1 - p)
    h: Array  # the head's input
    logits: Array


class Loopback:
    """The backend: every method of `tlx.backend.Backend`, in NumPy."""

    name = "loopback"
    bn_eps = float(np.float32(1e-5))
    bn_momentum = 1 - float(np.float32(0.9))  # float32-exact in the factor that is kept, as everywhere in tlx

    def capabilities(self) -> Capabilities:
        return Capabilities(
            versions={"numpy": np.__version__},
            devices=("cpu",),
            precisions={"cpu": ("float32", "float64")},
            optimizers=tuple(RULES),
            models=tuple(DROPOUT),
            deterministic=True,
            losses=LOSSES,
        )

    # Models and their values.

    def build(self, spec: ModelSpec, device: str, precision: Precision) -> Net:
        able = self.capabilities()
        if spec.hidden or spec.dropout or spec.own:
            raise BackendError("Backend 'loopback' builds its own models only, with a head of one layer")
        _known("model", spec.name, able.models)
        _known("head", spec.head, ("fc",))
        _known("device", device, able.devices)
        _known("precision", precision, able.precisions[device])
        dtype = np.dtype(precision)
        inputs = 3 * GRID * GRID
        adapters = {}
        if spec.lora is not None:
            choose_weights(spec.lora, ("fc1.weight",), (), spec.name)
            rank = spec.lora.rank
            adapters = {"fc1.lora_A": np.zeros((rank, inputs), dtype), "fc1.lora_B": np.zeros((UNITS, rank), dtype)}
        arrays: dict[str, Array] = {
            "fc1.weight": np.zeros((UNITS, inputs), dtype),
            "fc1.bias": np.zeros(UNITS, dtype),
            **adapters,
            "bn1.weight": np.ones(UNITS, dtype),
            "bn1.bias": np.zeros(UNITS, dtype),
            "fc.weight": np.zeros((spec.classes, UNITS), dtype),
            "fc.bias": np.zeros(spec.classes, dtype),
            "bn1.running_mean": np.zeros(UNITS, dtype),
            "bn1.running_var": np.ones(UNITS, dtype),
            "bn1.num_batches_tracked": np.array(0, np.int64),
        }
        specs = tuple(_spec(name, array) for name, array in arrays.items())
        scale = 0.0 if spec.lora is None else spec.lora.scale
        return Net(Module(arrays, DROPOUT[spec.name]), specs, spec.classes, dtype, scale)

    def param_specs(self, model: Net) -> tuple[ParamSpec, ...]:
        return model.specs

    def load_arrays(self, model: Net, arrays: Arrays) -> None:
        check_arrays(model.specs, arrays)
        model.module.arrays = {s.name: np.array(arrays[s.name], order="C", copy=True) for s in model.specs}

    def dump_arrays(self, model: Net) -> dict[str, Array]:
        return {name: array.copy() for name, array in model.module.arrays.items()}

    # Training. As in the frameworks, a number that is too large becomes infinite without a warning; the core checks.

    def set_phase(self, model: Net, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        check_known(trainable, _shapes(model), "parameter")
        check_known(batch_norm, ("bn1",), "module with running statistics")
        model.trainable, model.batch_norm, model.grads, model.shards = trainable, batch_norm, {}, {}

    def optimizer(self, model: Net, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Optimizer:
        _known("optimizer", spec.name, RULES)
        check_groups(groups, _shapes(model))
        return Optimizer(model, spec, tuple(groups), tuple(Hyper(0.0, 0.0) for _ in groups))

    def set_hyper(self, optimizer: Optimizer, values: Sequence[Hyper]) -> None:
        if len(values) != len(optimizer.groups):
            raise BackendError(f"{len(values)} values for {len(optimizer.groups)} groups of the optimizer")
        optimizer.hyper = tuple(values)

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        check_batch(batch, model.classes)
        images, labels, pre = batch.images, batch.labels.copy(), batch.preprocess
        share = batch.among, batch.whole, batch.absent, batch.shard
        if batch.boundary:
            _known("boundary", batch.boundary, BOUNDARIES)
            return DeviceBatch(images.astype(model.dtype), labels, batch.key, batch.targets, batch.boundary, *share)
        height, width = images.shape[2:]
        rows, columns = (enlarging(side, pre.size, pre.interpolation) for side in (height, width))
        enlarged = rows @ images.astype(np.float64) @ columns.T
        mean, std = (np.array(v).reshape(3, 1, 1) for v in (pre.mean, pre.std))
        pool = reference.averaging(pre.size, GRID)
        pooled = pool @ ((enlarged / 255 - mean) / std) @ pool.T
        pixels = pooled.reshape(len(images), -1).astype(model.dtype)
        return DeviceBatch(pixels, labels, batch.key, batch.targets, "", *share)

    @DIVERGES
    def backward(self, model: Net, batch: DeviceBatch, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        p = model.module.arrays
        if batch.absent and batch.shard is not None:  # which no other process waits for
            return np.array(0.0), np.array(0)
        run = self._forward(model, batch, train=True)
        mean, dlogits = reference.loss_of(run.logits, batch.labels, batch.targets)
        if batch.absent:
            dlogits = np.zeros_like(dlogits)
        dh, dw, db = reference.linear_backward(dlogits * scale, run.h, p["fc.weight"])
        dy = reference.relu_backward(dh * run.mask, run.y)
        dz = dy * p["bn1.weight"]
        by_batch = "bn1" in model.batch_norm
        da = reference.normalise_backward(dz, run.z, run.var, self.bn_eps, batch=by_batch, mean=batch.mean)
        _, dw1, db1 = reference.linear_backward(da, run.x, p["fc1.weight"])
        grads = {
            **{"fc.weight": dw, "fc.bias": db, "fc1.weight": dw1, "fc1.bias": db1},
            **{"bn1.weight": (dy * run.z).sum(axis=0), "bn1.bias": dy.sum(axis=0)},
        }
        if "fc1.lora_A" in p:
            grads["fc1.lora_A"] = model.scale * (p["fc1.lora_B"].T @ dw1)
            grads["fc1.lora_B"] = model.scale * (dw1 @ p["fc1.lora_A"].T)
        if batch.absent:
            return np.array(0.0), np.array(0)
        sums = model.grads if batch.shard is None else model.shards.setdefault(batch.shard, {})
        for name in sorted(model.trainable):  # an order that the hash of strings does not change
            sums[name] = sums[name] + grads[name] if name in sums else grads[name]
        return np.array(mean * len(batch.labels)), _correct(run.logits, batch.labels)

    @DIVERGES
    def reduce(self, model: Net, channel: Channel) -> None:
        model.grads, model.shards = summed(model.shards or {0: model.grads}, channel), {}

    @DIVERGES
    def update(self, model: Net, optimizer: Optimizer, max_norm: float | None = None) -> None:
        spec, arrays = optimizer.spec, model.module.arrays
        grads = model.grads if max_norm is None else reference.clip_by_norm(model.grads, max_norm)
        rule = RULES[spec.name]
        for group, hyper in zip(optimizer.groups, optimizer.hyper, strict=True):
            for name in grads.keys() & set(group):
                slots = optimizer.state.get(name, {})
                arrays[name], slots = rule(spec, arrays[name], grads[name], slots, hyper)
                if slots:
                    optimizer.state[name] = slots
        model.grads = {}

    @DIVERGES
    def average(self, shadow: Net, model: Net, weight: float) -> None:
        check_alike(shadow.specs, model.specs)
        for name, value in model.module.arrays.items():
            old = shadow.module.arrays[name]
            new = old + weight * (value - old) if value.dtype.kind == "f" else value.copy()
            shadow.module.arrays[name] = np.asarray(new, value.dtype)

    # Evaluation.

    @DIVERGES
    def evaluate(self, model: Net, batch: DeviceBatch) -> tuple[Lazy, Lazy, Lazy]:
        logits = self._forward(model, batch).logits
        mean, _ = reference.loss_of(logits, batch.labels, batch.targets)
        return np.array(mean * len(batch.labels)), _correct(logits, batch.labels), logits

    @DIVERGES
    def logits(self, model: Net, batch: DeviceBatch) -> Lazy:
        return self._forward(model, batch).logits

    def boundaries(self, model: Net) -> tuple[str, ...]:
        active = {name.partition(".")[0] for name in model.trainable} | model.batch_norm
        if model.module.dropout and model.trainable:
            active = active | {"dropout"}
        first = next((module for module in ("fc1", *BOUNDARIES) if module in active), "fc1")
        return () if first == "fc1" else (first,)

    @DIVERGES
    def features(self, model: Net, batch: DeviceBatch, boundary: str = "") -> Lazy:
        _known("boundary", boundary or "fc", BOUNDARIES)
        run = self._forward(model, batch)
        return {"bn1": run.a, "dropout": run.h, "fc": run.h}[boundary or "fc"]

    @DIVERGES
    def feature_map(self, model: Net, batch: DeviceBatch, classes: Array | None = None) -> FeatureMap:
        """Look at the averaged pixels, which are the only map."""
        p, run = model.module.arrays, self._forward(model, batch)
        chosen = run.logits.argmax(axis=1) if classes is None else classes
        dh = np.eye(model.classes, dtype=model.dtype)[chosen] @ p["fc.weight"]
        dz = reference.relu_backward(dh, run.y) * p["bn1.weight"]
        da = reference.normalise_backward(dz, run.z, run.var, self.bn_eps, batch=False)
        shape = (-1, 3, GRID, GRID)
        gradients = (da @ self.adapted(model)).reshape(shape)
        return FeatureMap("", run.x.reshape(shape).copy(), gradients, run.logits)

    def _forward(self, model: Net, batch: DeviceBatch, train: bool = False) -> Pass:
        p = model.module.arrays
        if batch.boundary in ("dropout", "fc"):
            return self._head(model, batch, batch.pixels, train)
        a = batch.pixels if batch.boundary else reference.linear(batch.pixels, self.adapted(model), p["fc1.bias"])
        mean, var = p["bn1.running_mean"], p["bn1.running_var"]
        if train and "bn1" in model.batch_norm:
            count = len(a) if batch.mean is None else batch.whole
            if count < 2:
                raise BackendError(
                    "BatchNorm 'bn1' cannot normalise a batch of one sample by itself; use larger batches"
                )
            moments = reference.moments(a, batch.mean)
            updated = reference.running(mean, var, moments, count, self.bn_momentum)
            p["bn1.running_mean"], p["bn1.running_var"] = updated
            p["bn1.num_batches_tracked"] = p["bn1.num_batches_tracked"] + np.array(1)
            mean, var = moments
        z = reference.normalise(a, mean, var, self.bn_eps)
        y = z * p["bn1.weight"] + p["bn1.bias"]
        head = self._head(model, batch, reference.relu(y), train)
        return Pass(batch.pixels, a, var, z, y, head.mask, head.h, head.logits)

    def adapted(self, model: Net) -> Array:
        """Return fc1's weight with what its adapters add."""
        return merged(model.module.arrays, model.specs, model.scale)["fc1.weight"]

    def _head(self, model: Net, batch: DeviceBatch, h: Array, train: bool) -> Pass:
        """Dropout and the head; what a forward pass keeps of the layers before is empty."""
        p = model.module.arrays
        drop = model.module.dropout if train and model.trainable else 0.0
        mask: Array | float = 1.0
        if drop:
            mask = keep_mask(*batch.key, 0, h.shape, drop).astype(model.dtype) / (1 - drop)
        none, h = np.zeros_like(h), h * mask
        return Pass(none, none, none[0], none, none, mask, h, reference.linear(h, p["fc.weight"], p["fc.bias"]))

    # State.

    def dump_optimizer(self, optimizer: Optimizer) -> dict[str, Array]:
        return {f"{name}/{slot}": a.copy() for name, slots in optimizer.state.items() for slot, a in slots.items()}

    def load_optimizer(self, optimizer: Optimizer, state: Arrays) -> None:
        slots = slots_by_parameter(state, optimizer.spec, _shapes(optimizer.net))
        optimizer.state = {
            name: {
                slot: array.astype(np.float64 if slot == "step" else optimizer.net.dtype)
                for slot, array in arrays.items()
            }
            for name, arrays in slots.items()
        }

    def fetch(self, lazies: Sequence[Lazy]) -> list[Array]:
        return [np.array(lazy) for lazy in lazies]

    def probe(self, model: Net) -> LoopbackProbe:
        """Look into a model; what `tlx parity` records."""
        from tlx.conformance.loopback_probe import LoopbackProbe

        return LoopbackProbe(self, model)


def _known(what: str, name: str, known: Iterable[str]) -> None:
    if name not in (known := list(known)):
        raise BackendError(f"Backend 'loopback' has no {what} {name!r}.{closest(name, known)}")


def _shapes(model: Net) -> dict[str, tuple[int, ...]]:
    """The parameters' shapes, by name."""
    return {spec.name: spec.shape for spec in model.specs if spec.role != "statistic"}


def _spec(name: str, array: Array) -> ParamSpec:
    module, _, leaf = name.partition(".")
    if leaf.startswith("lora_"):
        return ParamSpec(name, array.shape, str(array.dtype), "adapter", module)
    if leaf not in ("weight", "bias"):
        return ParamSpec(name, array.shape, str(array.dtype), "statistic", module)
    role = "norm" if module == "bn1" else leaf
    return ParamSpec(name, array.shape, str(array.dtype), role, module)  # type: ignore[arg-type]


def _correct(logits: Array, labels: Array) -> Array:
    if labels.ndim == 1:
        return np.array((logits.argmax(axis=1) == labels).sum())
    return np.array(((logits > 0) == labels).all(axis=1).sum())
