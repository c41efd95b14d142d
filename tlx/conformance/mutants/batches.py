"""Faults in batches, evaluation, dropout, fetching and repeatability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tlx.backend import Array, Batch, Lazy, Preprocess
from tlx.conformance.loopback import DeviceBatch, Net
from tlx.conformance.mutants.mutant import Mutant


class EvaluationAdapts(Mutant):
    """Evaluation leaves the model in training mode."""

    caught_by = "test_evaluation_changes_nothing"

    def evaluate(self, model: Net, batch: DeviceBatch) -> tuple[Lazy, Lazy, Lazy]:
        self._forward(model, batch, train=True)
        return super().evaluate(model, batch)


class EvaluationReturnsProbabilities(Mutant):
    """What evaluation returns beside its loss has been through a softmax."""

    caught_by = "test_evaluation_returns_the_logits_that_it_judged"

    def evaluate(self, model: Net, batch: DeviceBatch) -> tuple[Lazy, Lazy, Lazy]:
        loss, correct, logits = super().evaluate(model, batch)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return loss, correct, odds / odds.sum(axis=1, keepdims=True)


class EvaluationDropsGradients(Mutant):
    """Computing logits between backward and update loses the gradients."""

    caught_by = "test_evaluation_changes_nothing"

    def logits(self, model: Net, batch: DeviceBatch) -> Lazy:
        model.grads = {}
        return super().logits(model, batch)


class NearestEnlarging(Mutant):
    """Images are enlarged by repeating pixels."""

    caught_by = "test_images_are_enlarged_bilinearly_between_pixel_centres"

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        times = max(batch.preprocess.size // max(batch.images.shape[-1], 1), 1)
        images = batch.images.repeat(times, axis=-1).repeat(times, axis=-2) if times > 1 else batch.images
        return super().put(model, replace(batch, images=images))


class BilinearAlways(Mutant):
    """Images are enlarged bilinearly, whatever the preprocessing says."""

    caught_by = "test_images_are_enlarged_bicubically_as_the_preprocessing_says"

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        pre = replace(batch.preprocess, interpolation="bilinear")
        return super().put(model, replace(batch, preprocess=pre))


class NormalisedAsImageNet(Mutant):
    """Pixels are normalised by ImageNet's mean and deviation, whatever the preprocessing says."""

    caught_by = "test_pixels_are_scaled_and_normalised_per_channel"

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        pre = Preprocess(batch.preprocess.size, interpolation=batch.preprocess.interpolation)
        return super().put(model, replace(batch, preprocess=pre))


class BlueGreenRed(Mutant):
    """The colour channels are reversed."""

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
    """Every batch drops the same units."""

    caught_by = "test_dropout_repeats_for_a_key_and_differs_between_keys"

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        return super().put(model, replace(batch, key=(0, 0, 0)))


class DropoutInEvaluation(Mutant):
    """Dropout acts in evaluation too."""

    caught_by = "test_dropout_rests_in_evaluation_and_away_from_what_trains"

    def evaluate(self, model: Net, batch: DeviceBatch) -> tuple[Lazy, Lazy, Lazy]:
        if not model.module.dropout:
            return super().evaluate(model, batch)
        before = dict(model.module.arrays), dict(model.grads)
        loss, correct = self.backward(model, batch)
        model.module.arrays, model.grads = before
        return loss, correct, self.logits(model, batch)


class FeaturesBehindTheHead(Mutant):
    """What is returned as features are the logits."""

    caught_by = "test_features_are_what_enters_the_head"

    def features(self, model: Net, batch: DeviceBatch, boundary: str = "") -> Lazy:
        return self.logits(model, batch)


class FetchSorts(Mutant):
    """Values come back in another order, and repeated ones only once."""

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
