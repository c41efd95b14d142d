"""Faults in what several processes do together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tlx.backend import Batch
from tlx.conformance.loopback import DeviceBatch, Net
from tlx.conformance.loopback_shares import summed
from tlx.conformance.mutants.mutant import Mutant
from tlx.processes import Channel


class MeanOfTheProcesses(Mutant):
    """Gradients are averaged over the processes, as DistributedDataParallel does, whatever rows each of them has."""

    caught_by = "test_gradients_of_the_shares_add_up_to_those_of_the_whole_batch and 2"

    def reduce(self, model: Net, channel: Channel) -> None:
        super().reduce(model, channel)
        model.grads = {name: gradient / channel.world.size for name, gradient in model.grads.items()}


class StatisticsOfTheShare(Mutant):
    """Each process normalises by its own rows."""

    caught_by = "test_batch_norm_takes_the_statistics_of_the_rows_of_all_processes and 2"

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        return super().put(model, replace(batch, among=None))


class PaddedRows(Mutant):
    """A process without rows repeats one, as samplers do that make the shares equal."""

    caught_by = "test_a_process_without_rows_counts_nowhere"

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        return super().put(model, replace(batch, absent=False))


class SeedOfTheProcess(Mutant):
    """Each process draws from a stream of its own."""

    caught_by = "test_dropout_masks_do_not_depend_on_the_processes and 2"

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        rank = 0 if batch.among is None else batch.among.world.rank
        return super().put(model, replace(batch, key=(batch.key[0] + rank, *batch.key[1:])))


class RowsCountedFromTheShare(Mutant):
    """Each process drops the units of the batch's first rows."""

    caught_by = "test_dropout_masks_do_not_depend_on_the_processes and 2"

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        return super().put(model, batch if batch.among is None else replace(batch, key=(*batch.key[:2], 0)))


class ZeroForNone(Mutant):
    """What nobody has a gradient of gets one of zero, as where a bucket holds all parameters."""

    caught_by = "test_a_gradient_that_no_process_has_stays_none and 2"

    def reduce(self, model: Net, channel: Channel) -> None:
        super().reduce(model, channel)
        for spec in model.specs:
            if spec.role != "statistic":
                model.grads.setdefault(spec.name, np.zeros(spec.shape, spec.dtype))


class ShardsByProcess(Mutant):
    """Each process adds up its own shards before these sums are added."""

    caught_by = "test_shards_give_the_same_bits_on_any_number_of_processes"

    def reduce(self, model: Net, channel: Channel) -> None:
        own: dict[str, np.ndarray] = {}  # type: ignore[type-arg]
        for number in sorted(model.shards, reverse=True):
            for name, gradient in model.shards[number].items():
                own[name] = own[name] + gradient if name in own else gradient
        shards, model.shards = {0: own or model.grads}, {}
        model.grads = summed(shards, channel)


class EachItsOwnGradients(Mutant):
    """Nothing is sent."""

    caught_by = "test_all_processes_hold_the_same_bits and 2 and kept"

    def reduce(self, model: Net, channel: Channel) -> None:
        model.grads, model.shards = model.grads or summed(model.shards, channel), {}
