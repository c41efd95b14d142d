"""Faults in what trains, what stays frozen, and how BatchNorm behaves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tlx.backend import OptimizerSpec
from tlx.conformance.loopback import DeviceBatch, Net, Optimizer, Pass
from tlx.conformance.mutants.mutant import Mutant


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
    """Running statistics are never updated, even where they should adapt."""

    caught_by = "test_statistics_adapt_while_the_affine_part_is_frozen"

    def set_phase(self, model: Net, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        super().set_phase(model, trainable, batch_norm)
        model.batch_norm = frozenset()


class BiasedRunningVariance(Mutant):
    """The running variance takes the batch's biased variance."""

    caught_by = "test_the_running_variance_takes_the_unbiased_one"

    def _forward(self, model: Net, batch: DeviceBatch, train: bool = False) -> Pass:
        arrays = model.module.arrays
        old = arrays["bn1.running_var"]
        run = super()._forward(model, batch, train)
        if arrays["bn1.running_var"] is not old:
            arrays["bn1.running_var"] = (1 - self.bn_momentum) * old + self.bn_momentum * run.var
        return run


class NormEpsInDouble(Mutant):
    """1e-5, where other backends hold float32 of it."""

    caught_by = "test_normalisation_adds_float32_of_1e_5_to_the_variance"
    bn_eps = 1e-5


class NormMomentumInDouble(Mutant):
    """0.1, where other backends keep float32 of 0.9."""

    caught_by = "test_running_statistics_keep_exactly_float32_of_nine_tenths"
    bn_momentum = 0.1


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


class StateLostOnFreezing(Mutant):
    """Groups are made anew for every phase."""

    caught_by = "test_optimizer_state_survives_freezing"

    def __init__(self) -> None:
        self.optimizers: list[Optimizer] = []

    def optimizer(self, model: Net, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Optimizer:
        self.optimizers.append(super().optimizer(model, spec, groups))
        return self.optimizers[-1]

    def set_phase(self, model: Net, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        super().set_phase(model, trainable, batch_norm)
        for optimizer in self.optimizers:
            optimizer.state = {name: slots for name, slots in optimizer.state.items() if name in trainable}
