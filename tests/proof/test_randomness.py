"""Which dropouts of two modules correspond, and what a capture may say of them."""

from __future__ import annotations

from typing import Any

import pytest

from tlx.backend import Draw
from tlx.errors import TlxError
from tlx.proof.checked import check_record
from tlx.proof.randomness import match


def draw(path: str, after: str = "", call: int = 0, p: float = 0.5, shape: tuple[int, ...] = (8, 4)) -> Draw:
    return Draw(path, call, False, p, shape, after, ())


@pytest.mark.parametrize(
    ("reference", "candidate", "expected"),
    [
        # Both run after the same layer, in another order.
        (
            [draw("one", "fc"), draw("two", "fc")],
            [draw("two", "fc"), draw("one", "fc")],
            {0: (1, "name"), 1: (0, "name")},
        ),
        # Numbers are places in a Sequential, and say nothing where one more lies before them.
        ([draw("0", "a"), draw("3", "b")], [draw("3", "a"), draw("6", "b")], {0: (0, "place"), 1: (1, "place")}),
        # Called twice on one side, once on the other, which uses the name for the second.
        (
            [draw("drop", "a"), draw("drop", "b", call=1)],
            [draw("first", "a"), draw("drop", "b")],
            {0: (0, "place"), 1: (1, "place")},
        ),
        ([draw("one", "a"), draw("two", "b")], [draw("x", "c"), draw("y", "d")], {0: (0, "order"), 1: (1, "order")}),
        # The same in all but what it drops.
        ([draw("one", "a", p=0.3)], [draw("one", "a", p=0.2)], {}),
        ([draw("one", "a", shape=(8,))], [draw("one", "a", shape=())], {}),
        # Channels of a map, or units of what was pooled.
        ([draw("one", "a", shape=(8, 4))], [draw("one", "a", shape=(8, 4, 1, 1))], {0: (0, "name")}),
        ([draw("one", "a")], [draw("other", "a"), draw("one", "b")], {1: (0, "name")}),
    ],
)
def test_dropouts_are_matched_by_name_then_by_place_then_by_order(
    reference: list[Draw], candidate: list[Draw], expected: dict[int, tuple[int, str]]
) -> None:
    assert match(reference, candidate) == expected


WELL = {"path": "d", "call": 0, "function": False, "p": 0.5, "shape": [8], "after": "", "around": []}


@pytest.mark.parametrize("fact", [{"p": 2}, {"p": "0.5"}, {"shape": [-1]}, {"call": -1}, {"around": [1]}, {"more": 1}])
def test_a_draw_that_a_stranger_made_up_is_refused(fact: dict[str, Any]) -> None:
    check_record("trace", "P4/draws", {"draws": [WELL]})
    with pytest.raises(TlxError, match="P4/draws, draws is damaged"):
        check_record("trace", "P4/draws", {"draws": [WELL, {**WELL, **fact}]})
    with pytest.raises(TlxError, match="P3/random, before is missing"):
        check_record("trace", "P3/random", {"path": "", "kind": "Net"})
