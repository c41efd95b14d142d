"""Faults in losses, gradients, updates and averages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tlx.backend import Arrays, Batch, Hyper, Lazy, OptimizerSpec
from tlx.conformance import reference
from tlx.conformance.loopback import DeviceBatch, Net, Optimizer
from tlx.conformance.mutants.mutant import Mutant


class ConstantMoments(Mutant):
    """The gradient passes BatchNorm as if the batch's moments did not depend on it."""

    caught_by = "test_gradients_are_the_slopes_of_the_mean_loss"

    def backward(self, model: Net, batch: DeviceBatch, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        if not model.batch_norm:
            return super().backward(model, batch, scale)
        arrays = dict(model.module.arrays)
        run = super()._forward(model, batch, train=True)
        moved = dict(model.module.arrays)
        phase, model.batch_norm = model.batch_norm, frozenset()
        model.module.arrays = {**arrays, "bn1.running_mean": run.a.mean(axis=0), "bn1.running_var": run.var}
        try:
            return super().backward(model, batch, scale)
        finally:
            model.batch_norm, model.module.arrays = phase, moved


class RateInsideMomentum(Mutant):
    """Sutskever's momentum, in which a drop of the rate shows late."""

    caught_by = "test_updates_follow_the_rule_in_numpy and momentum"

    def update(self, model: Net, optimizer: Optimizer, max_norm: float | None = None) -> None:
        hyper = optimizer.hyper
        for group, at in zip(optimizer.groups, hyper, strict=True):
            for name in model.grads.keys() & set(group):
                g = model.grads[name] + at.weight_decay * model.module.arrays[name]
                model.grads[name] = at.lr * g
        optimizer.hyper = tuple(Hyper(1.0, 0.0) for _ in hyper)
        super().update(model, optimizer, max_norm)
        optimizer.hyper = hyper


class NesterovIgnored(Mutant):
    """Nesterov momentum is plain momentum."""

    caught_by = "test_updates_follow_the_rule_in_numpy and nesterov"

    def optimizer(self, model: Net, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Optimizer:
        return super().optimizer(model, replace(spec, nesterov=False), groups)


class AdamWithItsOwnEps(Mutant):
    """Adam takes its own eps instead of the spec's."""

    caught_by = "test_updates_follow_the_rule_in_numpy and adam"

    def optimizer(self, model: Net, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Optimizer:
        return super().optimizer(model, replace(spec, eps=1e-8), groups)


class CoupledDecay(Mutant):
    """Adam's decay under AdamW's name."""

    caught_by = "test_updates_follow_the_rule_in_numpy and adamw"

    def optimizer(self, model: Net, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Optimizer:
        return super().optimizer(model, replace(spec, name="adam") if spec.name == "adamw" else spec, groups)


class EpsInsideTheRoot(Mutant):
    """RMSprop as OneFlow 0.9 has it."""

    caught_by = "test_updates_follow_the_rule_in_numpy and rmsprop"

    def update(self, model: Net, optimizer: Optimizer, max_norm: float | None = None) -> None:
        if optimizer.spec.name != "rmsprop":
            return super().update(model, optimizer, max_norm)
        spec, hyper = optimizer.spec, optimizer.hyper
        before, grads = dict(model.module.arrays), dict(model.grads)
        super().update(model, optimizer, max_norm)
        for group, at in zip(optimizer.groups, hyper, strict=True):
            for name in grads.keys() & set(group):
                g = grads[name] + at.weight_decay * before[name]
                root = np.sqrt(optimizer.state[name]["square_avg"] + spec.eps)
                model.module.arrays[name] = before[name] - at.lr * g / root
        return None


class AverageOfParametersOnly(Mutant):
    """The running statistics stay where they were."""

    caught_by = "test_the_average_moves_by_its_weight_towards_the_model"

    def average(self, shadow: Net, model: Net, weight: float) -> None:
        statistics = {name: a for name, a in shadow.module.arrays.items() if "running" in name}
        super().average(shadow, model, weight)
        shadow.module.arrays.update(statistics)


class AverageOfTwoProducts(Mutant):
    """(1 - w) s + w m, which moves what is equal by rounding."""

    caught_by = "test_the_average_of_equal_values_keeps_every_bit"

    def average(self, shadow: Net, model: Net, weight: float) -> None:
        super().average(shadow, model, 0.0)
        for name, a in model.module.arrays.items():
            if a.dtype.kind == "f":
                shadow.module.arrays[name] = (1 - weight) * shadow.module.arrays[name] + weight * a


class DecoupledDecay(Mutant):
    """AdamW's decay under Adam's name."""

    caught_by = "test_updates_follow_the_rule_in_numpy and adam"

    def update(self, model: Net, optimizer: Optimizer, max_norm: float | None = None) -> None:
        hyper, arrays = optimizer.hyper, model.module.arrays
        for group, at in zip(optimizer.groups, hyper, strict=True):
            for name in model.grads.keys() & set(group):
                arrays[name] = arrays[name] * (1 - at.lr * at.weight_decay)
        optimizer.hyper = tuple(Hyper(at.lr, 0.0) for at in hyper)
        super().update(model, optimizer, max_norm)
        optimizer.hyper = hyper


class DecayOnTheWrongGroup(Mutant):
    """The groups' weight decays are in the wrong order."""

    caught_by = "test_groups_keep_to_their_own_hyper_values"

    def set_hyper(self, optimizer: Optimizer, values: Sequence[Hyper]) -> None:
        decays = [at.weight_decay for at in reversed(values)]
        super().set_hyper(optimizer, [Hyper(at.lr, decay) for at, decay in zip(values, decays, strict=True)])


class LateRate(Mutant):
    """A new learning rate takes effect one step late, as where a scheduler steps after the optimizer."""

    caught_by = "test_updates_follow_the_rule_in_numpy and sgd"

    def set_hyper(self, optimizer: Optimizer, values: Sequence[Hyper]) -> None:
        old = [at.lr or new.lr for at, new in zip(optimizer.hyper, values, strict=True)]
        super().set_hyper(optimizer, [Hyper(lr, new.weight_decay) for lr, new in zip(old, values, strict=True)])


class LastSampleDropped(Mutant):
    """The last sample of every batch is left out."""

    caught_by = "test_the_loss_is_cross_entropy_summed_over_the_samples"

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        handle = super().put(model, batch)
        n = max(len(batch) - 1, 1)
        return DeviceBatch(handle.pixels[:n], handle.labels[:n], handle.key, None, "")


class LossSummed(Mutant):
    """Gradients of the summed loss, not of the mean."""

    caught_by = "test_gradients_are_the_slopes_of_the_mean_loss"

    def backward(self, model: Net, batch: DeviceBatch, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        return super().backward(model, batch, scale * len(batch.labels))


class SoftmaxForSeveral(Mutant):
    """Several labels are taken as shares of one class: softmax in place of sigmoid."""

    caught_by = "test_the_loss_of_several_labels_is_the_mean_of_binary_cross_entropies"

    def evaluate(self, model: Net, batch: DeviceBatch) -> tuple[Lazy, Lazy, Lazy]:
        total, correct, logits = super().evaluate(model, batch)
        if batch.labels.ndim == 2:
            targets = batch.labels if batch.targets is None else batch.targets
            total = np.array(reference.cross_entropy(logits, batch.labels, targets)[0] * len(batch.labels))
        return total, correct, logits


class ClassesSummed(Mutant):
    """The loss of several labels is the sum over the classes, not the mean."""

    caught_by = "test_the_loss_of_several_labels_is_the_mean_of_binary_cross_entropies"

    def evaluate(self, model: Net, batch: DeviceBatch) -> tuple[Lazy, Lazy, Lazy]:
        total, correct, logits = super().evaluate(model, batch)
        return total * (model.classes if batch.labels.ndim == 2 else 1), correct, logits


class GradientsOfSeveralSummed(Mutant):
    """The gradients of several labels are those of the sum over the classes, while the loss is the mean."""

    caught_by = "test_gradients_of_several_labels_are_sigmoid_less_target"

    def backward(self, model: Net, batch: DeviceBatch, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        return super().backward(model, batch, scale * (model.classes if batch.labels.ndim == 2 else 1))


class EachLabelCounts(Mutant):
    """Of several labels each counts by itself, so more are correct than there are samples."""

    caught_by = "test_a_sample_of_several_labels_is_correct_where_all_of_them_are"

    def evaluate(self, model: Net, batch: DeviceBatch) -> tuple[Lazy, Lazy, Lazy]:
        total, correct, logits = super().evaluate(model, batch)
        return total, np.array(((logits > 0) == batch.labels).sum()) if batch.labels.ndim == 2 else correct, logits


class TargetsOnlyInTraining(Mutant):
    """Evaluation takes the labels even if the batch has targets."""

    caught_by = "test_the_loss_is_cross_entropy_summed_over_the_samples"

    def evaluate(self, model: Net, batch: DeviceBatch) -> tuple[Lazy, Lazy, Lazy]:
        return super().evaluate(model, replace(batch, targets=None))


class AccumulationOverwrites(Mutant):
    """A second backward pass overwrites the gradients of the first."""

    caught_by = "test_accumulated_parts_equal_the_whole_batch"

    def backward(self, model: Net, batch: DeviceBatch, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        model.grads = {}
        return super().backward(model, batch, scale)


class ScaleReported(Mutant):
    """The scale of accumulation leaks into the loss that is shown."""

    caught_by = "test_scale_weighs_gradients_but_not_the_loss"

    def backward(self, model: Net, batch: DeviceBatch, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        total, correct = super().backward(model, batch, scale)
        return total * scale, correct


class ClipsEachParameter(Mutant):
    """Clips by each gradient's own norm instead of their joint one."""

    caught_by = "test_clipping_takes_the_joint_norm_of_what_trains"

    def update(self, model: Net, optimizer: Optimizer, max_norm: float | None = None) -> None:
        if max_norm is not None:
            model.grads = {name: reference.clip_by_norm({name: g}, max_norm)[name] for name, g in model.grads.items()}
        super().update(model, optimizer)


class MomentumNotResumed(Mutant):
    """A resumed run starts with momentum 0."""

    caught_by = "test_a_run_resumes_bit_for_bit and momentum"

    def load_optimizer(self, optimizer: Optimizer, state: Arrays) -> None:
        super().load_optimizer(optimizer, {k: np.zeros_like(a) if k.endswith("m") else a for k, a in state.items()})


class GroupsNotChecked(Mutant):
    """A parameter in no group never trains, and nobody says so."""

    caught_by = "test_every_parameter_is_in_exactly_one_group"

    def optimizer(self, model: Net, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Optimizer:
        return Optimizer(model, spec, tuple(groups), tuple(Hyper(0.0, 0.0) for _ in groups))


class DropoutIgnoresTheRow(Mutant):
    """Every part of an accumulated batch drops the units of its first samples."""

    caught_by = "test_accumulated_parts_equal_the_whole_batch"

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        return super().put(model, replace(batch, key=(*batch.key[:2], 0)))
