"""Deliberately broken backends. Each commits one fault that real ones have had, and names the test that must see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from tlx.backend import Array, Arrays, Batch, Hyper, Lazy, OptimizerSpec
from tlx.conformance import reference
from tlx.conformance.loopback import DeviceBatch, Loopback, Net, Optimizer, Pass


class Mutant(Loopback):
    """A fault; `caught_by` is the test of the suite that must fail."""

    caught_by: ClassVar[str]


class ZeroInsteadOfNone(Mutant):
    """Gradients are set to zero after an update and stay when a parameter freezes: momentum and decay go on."""

    caught_by = "test_a_parameter_frozen_mid_run_stops_at_once"

    def set_phase(self, model: Net, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        grads = model.grads
        super().set_phase(model, trainable, batch_norm)
        model.grads = grads

    def update(self, model: Net, optimizer: Optimizer, max_norm: float | None = None) -> None:
        zeros = {name: np.zeros_like(g) for name, g in model.grads.items()}
        super().update(model, optimizer, max_norm)
        model.grads = zeros


class FrozenNormGoesOn(Mutant):
    """BatchNorm in a frozen backbone normalises by the batch and updates its statistics."""

    caught_by = "test_kept_statistics_keep_every_bit_while_the_affine_part_trains"

    def set_phase(self, model: Net, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        super().set_phase(model, trainable, frozenset({"bn1"}))


class NormNeverAdapts(Mutant):
    caught_by = "test_statistics_adapt_while_the_affine_part_is_frozen"

    def set_phase(self, model: Net, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        super().set_phase(model, trainable, batch_norm)
        model.batch_norm = frozenset()


class BiasedRunningVariance(Mutant):
    caught_by = "test_the_running_variance_takes_the_unbiased_one"

    def _forward(self, model: Net, batch: DeviceBatch, train: bool = False) -> Pass:
        arrays = model.module.arrays
        old = arrays["bn1.running_var"]
        run = super()._forward(model, batch, train)
        if arrays["bn1.running_var"] is not old:
            arrays["bn1.running_var"] = (1 - self.bn_momentum) * old + self.bn_momentum * run.var
        return run


class NormEpsInDouble(Mutant):
    """1e-5, where other stacks hold float32 of it."""

    caught_by = "test_normalisation_adds_float32_of_1e_5_to_the_variance"
    bn_eps = 1e-5


class NormMomentumInDouble(Mutant):
    """0.1, where other stacks keep float32 of 0.9."""

    caught_by = "test_running_statistics_keep_exactly_float32_of_nine_tenths"
    bn_momentum = 0.1


class ConstantMoments(Mutant):
    """The gradient passes BatchNorm as if the batch's moments did not depend on it."""

    caught_by = "test_gradients_are_the_slopes_of_the_mean_loss"

    def backward(self, model: Net, batch: DeviceBatch, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        if not model.batch_norm:
            return super().backward(model, batch, scale)
        arrays = dict(model.module.arrays)
        found = super()._forward(model, batch, train=True)
        moved = dict(model.module.arrays)
        phase, model.batch_norm = model.batch_norm, frozenset()
        model.module.arrays = {**arrays, "bn1.running_mean": found.a.mean(axis=0), "bn1.running_var": found.var}
        try:
            return super().backward(model, batch, scale)
        finally:
            model.batch_norm, model.module.arrays = phase, moved


class EvaluationAdapts(Mutant):
    """Evaluation leaves the model in training mode."""

    caught_by = "test_evaluation_changes_nothing"

    def evaluate(self, model: Net, batch: DeviceBatch) -> tuple[Lazy, Lazy]:
        self._forward(model, batch, train=True)
        return super().evaluate(model, batch)


class EvaluationDropsGradients(Mutant):
    caught_by = "test_evaluation_changes_nothing"

    def logits(self, model: Net, batch: DeviceBatch) -> Lazy:
        model.grads = {}
        return super().logits(model, batch)


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
    caught_by = "test_updates_follow_the_rule_in_numpy and nesterov"

    def optimizer(self, model: Net, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Optimizer:
        return super().optimizer(model, replace(spec, nesterov=False), groups)


class AdamWithItsOwnEps(Mutant):
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
        kept = {name: a for name, a in shadow.module.arrays.items() if "running" in name}
        super().average(shadow, model, weight)
        shadow.module.arrays.update(kept)


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


class OneStepCountForAll(Mutant):
    """Adam's bias correction counts the run's steps, so a parameter unfrozen late moves wrongly."""

    caught_by = "test_a_parameter_unfrozen_late_starts_afresh and adam"

    def update(self, model: Net, optimizer: Optimizer, max_norm: float | None = None) -> None:
        if optimizer.spec.name == "adam":
            count = max((slots["step"] for slots in optimizer.state.values()), default=np.array(0.0))
            for name, g in model.grads.items():
                fresh = {"exp_avg": np.zeros_like(g), "exp_avg_sq": np.zeros_like(g)}
                optimizer.state[name] = {**fresh, **optimizer.state.get(name, {}), "step": count}
        super().update(model, optimizer, max_norm)


class DecayOnTheWrongGroup(Mutant):
    caught_by = "test_groups_keep_to_their_own_hyper_values"

    def set_hyper(self, optimizer: Optimizer, values: Sequence[Hyper]) -> None:
        decays = [at.weight_decay for at in reversed(values)]
        super().set_hyper(optimizer, [Hyper(at.lr, decay) for at, decay in zip(values, decays, strict=True)])


class StateLostOnFreezing(Mutant):
    """Groups are made anew for every phase."""

    caught_by = "test_optimizer_state_survives_freezing"

    def __init__(self) -> None:
        self.made: list[Optimizer] = []

    def optimizer(self, model: Net, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Optimizer:
        self.made.append(super().optimizer(model, spec, groups))
        return self.made[-1]

    def set_phase(self, model: Net, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        super().set_phase(model, trainable, batch_norm)
        for optimizer in self.made:
            optimizer.state = {name: slots for name, slots in optimizer.state.items() if name in trainable}


class LateRate(Mutant):
    """A new learning rate takes effect one step late, as where a scheduler steps after the optimizer."""

    caught_by = "test_updates_follow_the_rule_in_numpy and sgd"

    def set_hyper(self, optimizer: Optimizer, values: Sequence[Hyper]) -> None:
        old = [at.lr or new.lr for at, new in zip(optimizer.hyper, values, strict=True)]
        super().set_hyper(optimizer, [Hyper(lr, new.weight_decay) for lr, new in zip(old, values, strict=True)])


class LastSampleDropped(Mutant):
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


class TargetsOnlyInTraining(Mutant):
    caught_by = "test_the_loss_is_cross_entropy_summed_over_the_samples"

    def evaluate(self, model: Net, batch: DeviceBatch) -> tuple[Lazy, Lazy]:
        return super().evaluate(model, replace(batch, targets=None))


class AccumulationOverwrites(Mutant):
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


class LoadingNotStrict(Mutant):
    """What is missing stays, what is extra is dropped."""

    caught_by = "test_loading_is_strict_and_names_both_sides"

    def load_arrays(self, model: Net, arrays: Arrays) -> None:
        known = model.module.arrays
        fit = {name: a for name, a in arrays.items() if name in known and a.shape == known[name].shape}
        super().load_arrays(model, {**known, **fit})


class StatisticsNotLoaded(Mutant):
    caught_by = "test_values_come_back_bit_for_bit"

    def load_arrays(self, model: Net, arrays: Arrays) -> None:
        counter = model.module.arrays["bn1.num_batches_tracked"]
        super().load_arrays(model, arrays)
        model.module.arrays["bn1.num_batches_tracked"] = counter


class DumpIsAnAlias(Mutant):
    caught_by = "test_load_and_dump_copy"

    def dump_arrays(self, model: Net) -> dict[str, Array]:
        return dict(model.module.arrays)


class MomentumNotResumed(Mutant):
    caught_by = "test_a_run_resumes_bit_for_bit and momentum"

    def load_optimizer(self, optimizer: Optimizer, state: Arrays) -> None:
        super().load_optimizer(optimizer, {k: np.zeros_like(a) if k.endswith("m") else a for k, a in state.items()})


class GroupsNotChecked(Mutant):
    """A parameter in no group never trains, and nobody says so."""

    caught_by = "test_every_parameter_is_in_exactly_one_group"

    def optimizer(self, model: Net, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Optimizer:
        return Optimizer(model, spec, tuple(groups), tuple(Hyper(0.0, 0.0) for _ in groups))


class NearestEnlarging(Mutant):
    caught_by = "test_images_are_enlarged_bilinearly_between_pixel_centres"

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        times = max(batch.preprocess.size // max(batch.images.shape[-1], 1), 1)
        images = batch.images.repeat(times, axis=-1).repeat(times, axis=-2) if times > 1 else batch.images
        return super().put(model, replace(batch, images=images))


class BlueGreenRed(Mutant):
    caught_by = "test_pixels_are_scaled_and_normalised_per_channel"

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        fit = batch.images.ndim == 4 and batch.images.shape[1] == 3
        return super().put(model, replace(batch, images=batch.images[:, ::-1]) if fit else batch)


class LabelsNotChecked(Mutant):
    """A label out of range is taken for another, as where a kernel wraps or ignores it."""

    caught_by = "test_an_unfit_batch_is_refused"

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        return super().put(model, replace(batch, labels=batch.labels % model.classes))


class DropoutIgnoresItsKey(Mutant):
    caught_by = "test_dropout_repeats_for_a_key_and_differs_between_keys"

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        return super().put(model, replace(batch, key=(0, 0, 0)))


class DropoutIgnoresTheRow(Mutant):
    """Every part of an accumulated batch drops the units of its first samples."""

    caught_by = "test_accumulated_parts_equal_the_whole_batch"

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        return super().put(model, replace(batch, key=(*batch.key[:2], 0)))


class DropoutInEvaluation(Mutant):
    caught_by = "test_dropout_rests_in_evaluation_and_away_from_what_trains"

    def evaluate(self, model: Net, batch: DeviceBatch) -> tuple[Lazy, Lazy]:
        if not model.module.dropout:
            return super().evaluate(model, batch)
        before = dict(model.module.arrays), dict(model.grads)
        found = self.backward(model, batch)
        model.module.arrays, model.grads = before
        return found


class FeaturesBehindTheHead(Mutant):
    caught_by = "test_features_are_what_enters_the_head"

    def features(self, model: Net, batch: DeviceBatch, boundary: str = "") -> Lazy:
        return self.logits(model, batch)


class BoundaryBehindTheDropout(Mutant):
    """Kept features go to the head as they are, though units would be dropped."""

    caught_by = "test_a_batch_can_begin_where_the_model_begins_to_train"

    def _head(self, model: Net, batch: DeviceBatch, h: Array, train: bool) -> Pass:
        return super()._head(model, batch, h, train and not batch.boundary)


class BoundaryInFrontOfWhatAdapts(Mutant):
    """Statistics that go on adapting are kept in front of the boundary, where nothing moves."""

    caught_by = "test_no_boundary_lies_behind_what_trains_or_adapts"

    def boundaries(self, model: Net) -> tuple[str, ...]:
        adapting, model.batch_norm = model.batch_norm, frozenset()
        try:
            return super().boundaries(model)
        finally:
            model.batch_norm = adapting


class FetchSorts(Mutant):
    caught_by = "test_fetch_copies_to_the_host_in_order"

    def fetch(self, lazies: Sequence[Lazy]) -> list[Array]:
        unique: dict[Any, Array] = {id(lazy): np.array(lazy) for lazy in lazies}
        return sorted(unique.values(), key=lambda a: a.ndim) + [np.array(0)] * (len(lazies) - len(unique))


class NoiseBetweenRuns(Mutant):
    """Claims to be deterministic, and is not."""

    caught_by = "test_a_run_repeats_bit_for_bit"
    calls = 0

    def backward(self, model: Net, batch: DeviceBatch, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        self.calls += 1
        return super().backward(model, batch, scale * (1 + self.calls * 1e-15))


MUTANTS: tuple[type[Mutant], ...] = tuple(Mutant.__subclasses__())
