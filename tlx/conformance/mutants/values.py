"""Faults in loading and dumping values."""

from __future__ import annotations

from tlx.backend import Array, Arrays
from tlx.conformance.loopback import Net
from tlx.conformance.mutants.mutant import Mutant


class LoadingNotStrict(Mutant):
    """What is missing stays, what is extra is dropped."""

    caught_by = "test_loading_is_strict_and_names_both_sides"

    def load_arrays(self, model: Net, arrays: Arrays) -> None:
        known = model.module.arrays
        fit = {name: a for name, a in arrays.items() if name in known and a.shape == known[name].shape}
        super().load_arrays(model, {**known, **fit})


class StatisticsNotLoaded(Mutant):
    """The batch counter stays as it was when values are loaded."""

    caught_by = "test_values_come_back_bit_for_bit"

    def load_arrays(self, model: Net, arrays: Arrays) -> None:
        counter = model.module.arrays["bn1.num_batches_tracked"]
        super().load_arrays(model, arrays)
        model.module.arrays["bn1.num_batches_tracked"] = counter


class DumpIsAnAlias(Mutant):
    """What is dumped changes as the model trains."""

    caught_by = "test_load_and_dump_copy"

    def dump_arrays(self, model: Net) -> dict[str, Array]:
        return dict(model.module.arrays)
