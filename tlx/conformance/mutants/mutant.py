"""What all broken backends are: the reference backend with one fault, and the test that must see it."""

from __future__ import annotations

from typing import ClassVar

from tlx.conformance.loopback import Loopback


class Mutant(Loopback):
    """A fault; `caught_by` is the test of the suite that must fail, as pytest's -k selects it."""

    caught_by: ClassVar[str]
