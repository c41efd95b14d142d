"""The conformance suite over the backends of this repository.

`TLX_BACKENDS=torch,loopback` chooses among them. A backend that was asked for and does not load is an error.
"""

from __future__ import annotations

import os

import pytest

from tlx.backend import Backend
from tlx.backend.registry import load
from tlx.conformance.suite import *  # noqa: F403

BACKENDS = os.environ.get("TLX_BACKENDS", "loopback,torch,oneflow").split(",")


@pytest.fixture(params=BACKENDS, scope="session")
def backend(request: pytest.FixtureRequest) -> Backend:
    return load(request.param)
