"""The part of an adapter that is the same for every framework with modules, autograd and in-place tensors.

An adapter subclasses `ModuleBackend`, hands it the framework's package and its model zoo, and writes only what differs:
see `Framework`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from traceback import walk_tb
from typing import Any

import numpy as np

from tlx.backend import (
    Array,
    Arrays,
    Batch,
    FeatureMap,
    Hyper,
    Lazy,
    ModelSpec,
    OptimizerSpec,
    ParamSpec,
    Precision,
    Probe,
    check_alike,
    check_arrays,
    check_batch,
    check_groups,
    check_known,
    slots_by_parameter,
)
from tlx.backend.module import own, sharing
from tlx.backend.module.boundary import (
    Entered,
    Reached,
    candidates,
    outputs_from,
    replaced,
    watched,
)
from tlx.backend.module.build import describe, holder, locate, replace_head
from tlx.backend.module.dropout import Masks, dropout_class, replace_dropouts
from tlx.backend.module.framework import Framework
from tlx.backend.module.lora import attach
from tlx.backend.module.net import DeviceBatch, Net, Optimizer
from tlx.backend.module.shared_norm import ONE_VALUE, together
from tlx.backend.module.sums import apart, reduce
from tlx.errors import BackendError, closest, one_line
from tlx.processes import Channel


class ModuleBackend(Framework):
    """Everything that two near-twin frameworks do alike."""

    # Models and their values.

    def build(self, spec: ModelSpec, device: str, precision: Precision) -> Net:
        with own.undisturbed(self, device):  # a zoo draws initial values, which are replaced
            return self._build(spec, device, precision)

    def _build(self, spec: ModelSpec, device: str, precision: Precision) -> Net:
        fw = self.fw
        notes: list[str] = []
        if spec.head_module is not None:
            spec = replace(spec, head_module=own.taken_over(self, spec.head_module, "head", notes))
        module = self.made(spec) if spec.module is None else own.taken_over(self, spec.module, "model", notes)
        if spec.head:
            replace_head(fw.nn, module, spec)
        masks = Masks()
        dropouts = replace_dropouts(fw.nn, self.depth, dropout_class(fw, masks), module, spec.own)
        dtype = fw.float64 if precision == "float64" else fw.float32
        module = module.to(dtype).to(device)
        specs = tuple(describe(module, self.norms))
        modes = dict.fromkeys(module.modules(), True)
        net = Net(module, spec.head, spec.classes, device, dtype, precision == "bfloat16", modes, specs)
        net.masks, net.dropouts, net.own, net.notes = masks, dropouts, spec.own, notes
        self.prepare(net)
        attach(self, net, spec)
        module.eval()
        if spec.own:
            shared = [" = ".join((s.name, *s.aliases)) for s in specs if s.aliases]
            net.notes += [f"one value under several names, saved under the first: {names}" for names in shared]
            if spec.image_size:
                own.try_out(self, net, spec.image_size)
        masks.tried = True
        return net

    def param_specs(self, model: Net) -> tuple[ParamSpec, ...]:
        return model.specs

    def _tensors(self, model: Net) -> dict[str, Any]:
        return {**dict(model.module.named_parameters()), **dict(model.module.named_buffers())}

    def load_arrays(self, model: Net, arrays: Arrays) -> None:
        check_arrays(model.specs, arrays)
        with self.fw.no_grad():
            for name, tensor in self._tensors(model).items():
                tensor.copy_(self.tensor(np.asarray(arrays[name], order="C"), model.device))

    def dump_arrays(self, model: Net) -> dict[str, Array]:
        return self.arrays(self._tensors(model))

    # Training.

    def set_phase(self, model: Net, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        params = dict(model.module.named_parameters())
        statistics = {s.module for s in model.specs if s.role == "statistic"}
        check_known(trainable, params, "parameter")
        check_known(batch_norm, statistics, "module with running statistics")
        for name, param in params.items():
            param.requires_grad_(name in trainable)
            param.grad = None
        model.shards, model.reduced, model.shared = {}, None, False
        holding = model.holding(params)
        around_what_trains = model.holding(trainable)
        for path, module in model.module.named_modules():
            if path in statistics:
                model.training[module] = path in batch_norm
            else:
                # A module without parameters, such as dropout, acts where the nearest around it that holds some trains.
                model.training[module] = holder(path, holding) in around_what_trains
        model.mode = "eval"
        model.module.eval()

    def _set_mode(self, model: Net, mode: str) -> None:
        if model.mode != mode:
            for module, training in model.training.items():
                module.training = training and mode == "train"
            model.mode = mode

    def optimizer(self, model: Net, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Any:
        if spec.name not in self.optimizers:
            raise BackendError(
                f"backend {self.name!r} has no optimizer {spec.name!r}.{closest(spec.name, self.optimizers)}"
            )
        params = dict(model.module.named_parameters())
        check_groups(groups, params)
        native = self.optimizers[spec.name]([{"params": [params[n] for n in g], "lr": 0.0} for g in groups], spec)
        return Optimizer(native, spec, {name: params[name] for group in groups for name in group})

    def set_hyper(self, optimizer: Optimizer, values: Sequence[Hyper]) -> None:
        groups = optimizer.native.param_groups
        if len(values) != len(groups):
            raise BackendError(f"set_hyper: {len(values)} values for {len(groups)} groups")
        for group, hyper in zip(groups, values, strict=True):
            group["lr"] = hyper.lr
            group["weight_decay"] = hyper.weight_decay

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        check_batch(batch, model.classes)
        entering = self._features(model, batch) if batch.boundary else self._pixels(model, batch)
        targets = None if batch.targets is None else self.tensor(batch.targets, model.device)
        labels = self.tensor(batch.labels, model.device)
        share = batch.among, batch.whole, batch.absent, batch.shard
        return DeviceBatch(entering, labels, targets, len(batch), batch.key, batch.boundary, *share)

    def _features(self, model: Net, batch: Batch) -> Any:
        if batch.boundary not in model.entering:
            raise BackendError(
                f"put: no features were taken at the boundary {batch.boundary!r} yet, only at {sorted(model.entering)}"
            )
        entered = model.entering[batch.boundary]
        features = self.tensor(batch.images, model.device).to(entered.dtype)
        return self.laid_out(features, entered.strides_of(features.shape))

    def _pixels(self, model: Net, batch: Batch) -> Any:
        """Normalise and enlarge on the device."""
        images, pre, fw = batch.images, batch.preprocess, self.fw
        mean, std = (
            self.tensor(np.array(values).reshape(1, 3, 1, 1), model.device).to(model.dtype)
            for values in (pre.mean, pre.std)
        )
        # Enlarging is linear and its weights add up to 1, so the few pixels are normalised, not the many.
        pixels = (self.tensor(images, model.device).to(model.dtype) / 255 - mean) / std
        if images.shape[2:] == (pre.size, pre.size):
            return pixels
        size = (pre.size, pre.size)
        return fw.nn.functional.interpolate(pixels, size=size, mode=pre.interpolation, align_corners=False)

    def backward(self, model: Net, batch: DeviceBatch, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        self._set_mode(model, "train")
        self.reuse_memory(model, model.autocast or not next(model.module.parameters()).requires_grad)
        sharing.check(self, model, batch)
        with self.fw.enable_grad(), self._seeded(model, batch.key), apart(model, batch), together(self, batch):
            logits = sharing.watched(self, model, batch, lambda: self._run(model, batch))
            model.masks.end()
            mean = self._loss(logits, batch)
            (mean if scale == 1.0 else mean * scale).backward()
        loss, correct = mean.detach() * batch.size, self._correct(logits, batch.labels)
        return (self.fw.zeros_like(loss), self.fw.zeros_like(correct)) if batch.absent else (loss, correct)

    def reduce(self, model: Net, channel: Channel) -> None:
        reduce(self, model, channel)

    def _seeded(self, model: Net, key: own.Key) -> AbstractContextManager[None]:
        model.masks.begin(key)
        return own.seeded(self, model, key) if model.foreign else nullcontext()

    def _loss(self, logits: Any, batch: DeviceBatch) -> Any:
        """Mean over the samples, and of several labels over the classes too."""
        functional, logits = self.fw.nn.functional, self.exact(logits)
        if batch.labels.ndim == 2:
            target = batch.labels if batch.targets is None else batch.targets
            return functional.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
        if batch.targets is None:
            return functional.cross_entropy(logits, batch.labels)
        return -(batch.targets.to(logits.dtype) * functional.log_softmax(logits, dim=1)).sum() / batch.size

    def update(self, model: Net, optimizer: Optimizer, max_norm: float | None = None) -> None:
        if max_norm is not None:
            self.fw.nn.utils.clip_grad_norm_([p for p in optimizer.params.values() if p.grad is not None], max_norm)
        optimizer.native.step()
        for param in optimizer.params.values():
            param.grad = None

    def average(self, shadow: Net, model: Net, weight: float) -> None:
        check_alike(shadow.specs, model.specs)
        new = self._tensors(model)
        buffers = {spec.name for spec in model.specs if spec.role == "statistic"}
        with self.fw.no_grad():
            for name, old in self._tensors(shadow).items():
                now = new[name]
                if not old.is_floating_point():
                    old.copy_(now)
                elif name in buffers:  # a mask's infinities less themselves would be no number
                    old.copy_(self.fw.where(now == old, old, old + (now - old) * weight))
                else:
                    old.add_((now - old) * weight)

    # Evaluation.

    def _forward(self, model: Net, batch: DeviceBatch) -> Any:
        self._set_mode(model, "eval")
        self.reuse_memory(model, True)
        with self._seeded(model, own.EVALUATION):
            return self._run(model, batch)

    def _run(self, model: Net, batch: DeviceBatch) -> Any:
        try:
            output = outputs_from(self, model, batch) if batch.boundary else self.outputs(model, batch)
        except RuntimeError as error:
            raise BackendError(self.failure(model, batch, error)) from error
        except ValueError as error:
            if ONE_VALUE not in str(error):
                raise
            raise BackendError(
                "BatchNorm cannot take statistics over a batch of one image at this image_size; "
                "change batch_size or limit_train so that the last batch is larger"
            ) from error
        return own.checked(model, batch, output)

    def failure(self, model: Net, batch: DeviceBatch, error: Exception) -> str:
        """Name the innermost module that failed, without the framework's frames."""
        paths = {id(module): path for path, module in model.module.named_modules()}
        frames = (frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__))
        failed = [paths[id(owner)] for owner in frames if id(owner) in paths]
        where = f" at {failed[-1]!r}" if failed and failed[-1] else ""
        fix = " Lower batch_size, micro_batch or image_size." if "memory" in str(error) else ""
        shape = self.described(batch)
        kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
        return f"{self.name} cannot run the model on {shape}{where}: {one_line(f'{kind}{error}')}.{fix}"

    def described(self, batch: DeviceBatch) -> str:
        return str(list(batch.images.shape))

    def outputs(self, model: Net, batch: DeviceBatch) -> Any:
        """Return whatever the module returns on pixels."""
        with self.autocast(model):
            return model.module(batch.images)

    def boundaries(self, model: Net) -> tuple[str, ...]:
        if model.foreign and not own.same_in_training(self, model, model.changing):
            return ()
        return candidates(model.module, model.active())

    def _correct(self, logits: Any, labels: Any) -> Any:
        with self.fw.no_grad():
            if labels.ndim == 1:
                return (logits.argmax(1) == labels).sum()
            wrong = ((logits > 0).to(labels.dtype) - labels).abs().sum(1)
            return (wrong == 0).sum()

    def evaluate(self, model: Net, batch: DeviceBatch) -> tuple[Lazy, Lazy, Lazy]:
        with self.fw.no_grad():
            logits = self._forward(model, batch)
            correct = self._correct(logits, batch.labels)
            return self._loss(logits, batch) * batch.size, correct, logits.to(model.dtype)

    def logits(self, model: Net, batch: DeviceBatch) -> Lazy:
        with self.fw.no_grad():
            return self._forward(model, batch).to(model.dtype)

    def features(self, model: Net, batch: DeviceBatch, boundary: str = "") -> Lazy:
        boundary = boundary or model.head
        parent, attribute, _ = locate(model.module, boundary, "features")
        try:
            watching = watched(model.module, boundary)
            with watching as passed, replaced([(parent, attribute, self.stop())]), self.fw.no_grad():
                self._forward(model, batch)
        except Reached as reached:
            value = reached.value
            model.entering[boundary] = Entered(value.dtype, tuple(value.stride()), tuple(batch.images.shape), passed)
            return value.to(model.dtype)
        raise BackendError(f"features: a forward pass never comes to {boundary!r}")

    # State.

    def dump_optimizer(self, optimizer: Optimizer) -> dict[str, Array]:
        slots = {
            f"{name}/{slot}": value
            for name, param in optimizer.params.items()
            for slot, value in (self.optimizer_slots(optimizer, param) or {}).items()
        }
        copied = self.arrays({key: value for key, value in slots.items() if hasattr(value, "detach")})
        return {key: copied[key] if key in copied else np.asarray(value) for key, value in slots.items()}

    def load_optimizer(self, optimizer: Optimizer, state: Arrays) -> None:
        shapes = {name: tuple(param.shape) for name, param in optimizer.params.items()}
        slots = slots_by_parameter(state, optimizer.spec, shapes)
        for name, param in optimizer.params.items():
            self.set_optimizer_slots(optimizer, param, slots.get(name))

    def fetch(self, lazies: Sequence[Lazy]) -> list[Array]:
        if lazies and all(lazy.ndim == 0 for lazy in lazies):
            return list(self.array(self.fw.stack([lazy.to(self.fw.float64) for lazy in lazies])))
        return [self.array(lazy) for lazy in lazies]

    def feature_map(self, model: Net, batch: DeviceBatch, classes: Array | None = None) -> FeatureMap:
        """Look at the last map of features; what `tlx explain` shows."""
        from tlx.backend.module.feature_map import feature_map

        return feature_map(self, model, batch, classes)

    def probe(self, model: Net) -> Probe:
        """Look into a model; what `tlx parity` records."""
        from tlx.backend.module.probe import ModuleProbe

        return ModuleProbe(self, model)
