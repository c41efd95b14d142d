"""The tests that every backend must pass.

In a package that brings a backend, a test file of four lines runs them::

    import pytest, tlx_mine
    from tlx.conformance.suite import *
    @pytest.fixture
    def backend(): return tlx_mine.create()

The backend needs one of the models in `subject.PLAIN` and one in `subject.WITH_DROPOUT`, and float64 on its CPU.
"""

# ruff: noqa: F403, E402
from __future__ import annotations

import pytest

_PARTS = ("subject", "values", "phases", "steps", "batches", "boundaries", "adapters", "maps", "processes")
pytest.register_assert_rewrite(*(f"tlx.conformance.{part}" for part in _PARTS))

from tlx.conformance.adapters import *
from tlx.conformance.batches import *
from tlx.conformance.boundaries import *
from tlx.conformance.maps import *
from tlx.conformance.phases import *
from tlx.conformance.processes import *
from tlx.conformance.steps import *
from tlx.conformance.subject import *
from tlx.conformance.values import *
