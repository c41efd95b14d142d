"""Faults in the last map of features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tlx.backend import Array, FeatureMap
from tlx.conformance import reference
from tlx.conformance.loopback import DeviceBatch, Net
from tlx.conformance.mutants.mutant import Mutant


class MapOfTheLoss(Mutant):
    """The gradient is that of the loss, which all classes have a part in."""

    caught_by = "test_gradients_of_a_map_tell_how_the_logit_of_each_image_moves"

    def feature_map(self, model: Net, batch: DeviceBatch, classes: Array | None = None) -> FeatureMap:
        seen = [super(MapOfTheLoss, self).feature_map(model, batch, np.full(len(batch.labels), c)) for c in range(5)]
        chosen = seen[0].logits.argmax(axis=1) if classes is None else classes
        _, weights = reference.cross_entropy(seen[0].logits, chosen, None)
        parts = [weights[:, c, None, None, None] * one.gradients for c, one in enumerate(seen)]
        return replace(seen[0], gradients=-len(chosen) * np.sum(parts, axis=0))


class MapOfTheMean(Mutant):
    """The gradient is divided by the number of images, as if the mean of their logits were meant."""

    caught_by = "test_an_image_has_the_same_map_in_any_batch"

    def feature_map(self, model: Net, batch: DeviceBatch, classes: Array | None = None) -> FeatureMap:
        seen = super().feature_map(model, batch, classes)
        return replace(seen, gradients=seen.gradients / len(seen.logits))


class MapUsesUpGradients(Mutant):
    """Gradients that were there are gone."""

    caught_by = "test_looking_at_a_map_changes_nothing"

    def feature_map(self, model: Net, batch: DeviceBatch, classes: Array | None = None) -> FeatureMap:
        model.grads = {}
        return super().feature_map(model, batch, classes)


class MapOfOneClass(Mutant):
    """The class that is asked for is not looked at."""

    caught_by = "test_gradients_of_a_map_tell_how_the_logit_of_each_image_moves"

    def feature_map(self, model: Net, batch: DeviceBatch, classes: Array | None = None) -> FeatureMap:
        return super().feature_map(model, batch)
