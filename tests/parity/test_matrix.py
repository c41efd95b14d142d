"""A sample of the matrix that `make matrix` runs: each family with each strategy, on one backend or the other."""

from __future__ import annotations

import pytest

from support.backends import FRAMEWORKS
from tlx.proof.matrix import STRATEGIES, examine, rows

pytestmark = pytest.mark.needs(*FRAMEWORKS)

# The smallest of each family. VGG is AlexNet's likeness, with 129 million parameters.
FAMILIES = (
    *("resnet18", "squeezenet1_1", "alexnet", "densenet121", "efficientnet_b0", "mobilenet_v2", "mobilenet_v3_small"),
    *("mnasnet0_5", "shufflenet_v2_x0_5", "regnet_x_400mf", "regnet_y_400mf", "googlenet", "inception_v3"),
)
ROWS = {row.name: row for row in rows()}


LARGE = ("alexnet", "densenet121", "inception_v3", "resnet18")  # half of the time for the eight strategies of each


SAMPLED = ("resnet18", "squeezenet1_1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in SAMPLED else pytest.param(name, marks=pytest.mark.thorough) for name in FAMILIES]
)
def test_each_family_trains_by_each_strategy(name: str) -> None:
    """On both backends, each strategy on one of them; with the features of what it freezes cached, and without.

    OneFlow, which is slower, takes two strategies of each family, and over all families each of them. The largest take
    two strategies alone.
    """
    chosen = [(strategy, number % 4 == 0) for number, strategy in enumerate(STRATEGIES, FAMILIES.index(name))]
    if name in LARGE:
        chosen = [("feature_extract", False), ("partial", True)]
    for strategy, second in chosen:
        cell = examine(ROWS[name], FRAMEWORKS[second], strategy)
        assert not cell.why, cell
