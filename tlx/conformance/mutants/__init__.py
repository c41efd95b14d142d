"""Deliberately broken backends. Each commits one fault that real ones have had, and names the test that must see it.

They are in files of the same names as the parts of the suite that catch them.
"""

from tlx.conformance.mutants import adapters, batches, boundaries, maps, phases, processes, steps, values
from tlx.conformance.mutants.mutant import Mutant
from tlx.conformance.mutants.phases import BiasedRunningVariance

MUTANTS: tuple[type[Mutant], ...] = tuple(Mutant.__subclasses__())

__all__ = [
    "MUTANTS",
    "BiasedRunningVariance",
    "Mutant",
    "adapters",
    "batches",
    "boundaries",
    "maps",
    "phases",
    "processes",
    "steps",
    "values",
]
