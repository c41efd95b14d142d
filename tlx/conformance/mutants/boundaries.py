"""Faults in batches that begin in the middle of a model."""

from __future__ import annotations

from tlx.backend import Array
from tlx.conformance.loopback import DeviceBatch, Net, Pass
from tlx.conformance.mutants.mutant import Mutant


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
