"""The conformance suite over the backends of this repository.

`TLX_BACKENDS=torch,loopback` chooses among them, and may name others that are installed.
"""

from __future__ import annotations

import pytest

from support.backends import ASKED, OWN, each_backend
from tlx.backend import Backend
from tlx.backend.optimizers import RULES
from tlx.backend.registry import load
from tlx.conformance.suite import *  # noqa: F403


@pytest.fixture(params=each_backend(*dict.fromkeys((*OWN, *ASKED))), scope="session")
def backend(request: pytest.FixtureRequest) -> Backend:
    return load(request.param)


def test_it_offers_every_optimizer_that_a_recipe_can_name(backend: Backend) -> None:
    assert set(backend.capabilities().optimizers) == set(RULES)


# Of ResNet-18, which takes long.
test_convolutions_have_adapters_of_their_flattened_weights = pytest.mark.thorough(
    test_convolutions_have_adapters_of_their_flattened_weights  # noqa: F405
)
