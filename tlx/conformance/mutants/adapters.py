"""Faults in low-rank adapters."""

from __future__ import annotations

from dataclasses import replace

from tlx.backend import Lora, ModelSpec, Precision
from tlx.backend.protocol import Array
from tlx.conformance.loopback import Net
from tlx.conformance.mutants.mutant import Mutant


class ScaleLeftOut(Mutant):
    """The product of the adapters is added as it is."""

    caught_by = "test_adapters_add_their_scaled_product_to_the_weight"

    def adapted(self, model: Net) -> Array:
        return super().adapted(replace(model, scale=1.0))


class ScaleLeftOutOfGradients(Mutant):
    """Adapters train as if they were not scaled."""

    caught_by = "test_gradients_of_adapters_are_those_of_the_chain_rule"

    def adapted(self, model: Net) -> Array:
        weight, model.scale = super().adapted(model), 1.0
        return weight


class AdaptedLayerTrains(Mutant):
    """Where adapters train, so does the weight that they adapt."""

    caught_by = "test_what_adapters_adapt_stays_as_it_is_to_the_bit"

    def set_phase(self, model: Net, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        adapting = "fc1.lora_A" in trainable
        super().set_phase(model, trainable | {"fc1.weight"} if adapting else trainable, batch_norm)


class AdaptersDoNotTrain(Mutant):
    """A boundary lies behind the adapters, as their layer is frozen."""

    caught_by = "test_adapters_train_where_nothing_before_them_does"

    def boundaries(self, model: Net) -> tuple[str, ...]:
        trainable, model.trainable = model.trainable, model.trainable - {"fc1.lora_A", "fc1.lora_B"}
        try:
            return super().boundaries(model)
        finally:
            model.trainable = trainable


class PatternsNotChecked(Mutant):
    """A pattern that matches nothing is passed over."""

    caught_by = "test_a_pattern_that_matches_no_layer_is_refused"

    def build(self, spec: ModelSpec, device: str, precision: Precision) -> Net:
        lora = spec.lora and Lora(spec.lora.rank, spec.lora.alpha)
        return super().build(replace(spec, lora=lora), device, precision)
