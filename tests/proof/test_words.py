"""The sentences that people read, made from facts alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from tlx.proof.result import Alone, Between, Blame, Difference, Outside, Row, Stage
from tlx.proof.sentence import first_difference
from tlx.proof.words import name, note, strength, summary


def row(kind: Any, error: float = math.inf, passed: bool = False, **facts: Any) -> Row:
    return Row(kind=kind, error=error, passed=passed, **facts)


def sentence(stage: str, *rows: Row, replay: Blame | None = None) -> str:
    failed = next(row for row in rows if not row.passed)
    return first_difference(Difference(Stage(stage, math.inf, None, False, rows), failed, replay))


@pytest.mark.parametrize(
    ("of", "named", "noted"),
    [
        (row("weight", path="fc.weight", missing="reference"), "fc.weight", "missing in the reference"),
        (row("weight", path="fc.weight", cause="transposed"), "fc.weight", "transposed"),
        (row("weight", path="w", values=("float32 [3]", "float64 [3]")), "w", "float32 [3] against float64 [3]"),
        (row("listing"), "order and roles", "the backends list their parameters differently"),
        (
            row("batch", path="train/0000/0001", cause="reordered"),
            "train/0000/0001",
            "the same samples in another order",
        ),
        (row("batch", path="b", cause="dropped", samples=(3, 5)), "b", "without sample 3, 5"),
        (row("batch", path="b", cause="content", differing=("pixels", "targets")), "b", "pixels, targets"),
        (row("output", path="act", flips=2), "act", "2 signs flipped"),
        (row("output", path="act", missing="candidate"), "act", "run as a module on one side only"),
        (
            row("output", path="act", passed=True, cause="made up for"),
            "act",
            "shared out otherwise within a module whose output is equal",
        ),
        (row("output", path="act", cause="not finite", size=45), "act at 45 px", "not finite"),
        (
            row("size", size=45, missing="candidate", stopped="it broke"),
            "images of 45 px",
            "the candidate cannot run: it broke",
        ),
        (row("correct", values=(3, 4)), "correct count", "3 against 4"),
        (
            row("update", path="fc.weight", slot="step", side="candidate", number=2),
            "candidate, update 2: fc.weight/step",
            "",
        ),
        (
            row("step", number=7, quantity="values", path="fc.bias", events=("2 arrays unfreeze",)),
            "step 7",
            "boundary: 2 arrays unfreeze; fc.bias",
        ),
        (row("step", passed=True, number=7, path="fc.bias"), "step 7", ""),
        (
            row("step", number=9, missing="candidate", stopped="it broke"),
            "step 9",
            "the candidate stopped before step 9: it broke",
        ),
        (row("end", side="reference", stopped="it broke"), "end", "the reference stopped: it broke"),
        (row("count", number=1, side="candidate"), "batch 1: count of the candidate", ""),
        (
            row("predictions", number=0, samples=(4,), margins=(1e-3,)),
            "batch 0: predictions",
            "sample 4: margin 1.0e-03",
        ),
    ],
)
def test_a_row_is_named_and_explained(of: Row, named: str, noted: str) -> None:
    assert (name(of), note(of)) == (named, noted)


def test_a_step_that_differs_blames_no_boundary_that_merely_lies_near() -> None:
    equal = row("step", 1e-15, True, number=0, events=("the learning rate changes",))
    wrong = row("step", 2e-3, number=1, quantity="slots", path="fc.weight", slot="momentum")
    assert sentence("P6", equal, wrong) == ("Equal until step 1. First wrong: fc.weight/momentum (2.0e-03).")
    assert sentence("P6", row("step", number=0, quantity="correct")) == (
        "The first step already differs (correct count), though all of P1 to P5 is equal."
    )
    lacking = row("step", number=1, quantity="slots", path="fc.weight", slot="momentum")
    assert "fc.weight/momentum (missing or not finite on one side)" in sentence("P6", equal, lacking)


def locked(number: int, passed: bool = True, **facts: Any) -> Row:
    error = 0.5 if passed else 1e6
    return row("locked", error, passed, number=number, **{"apart": 1e-9, "scatter": 1e-15, **facts})


UNFREEZE = ("6 arrays unfreeze",)


def test_a_boundary_is_named_where_its_step_alone_is_wrong() -> None:
    wrong = locked(20, False, quantity="loss", events=UNFREEZE)
    assert sentence("P6", locked(19), wrong, locked(21)) == (
        "From the reference's own state, step 20, where 6 arrays unfreeze, differs: "
        "loss (1.0e-09 apart, the reference from itself 1.0e-15). Equal: steps 19, 21."
    )
    both = locked(20, False, quantity="loss", events=(*UNFREEZE, "the learning rate changes"))
    assert "step 20, where 6 arrays unfreeze, differs" in sentence(
        "P6", locked(10, events=("the learning rate changes",)), both, locked(21)
    ), "the rate changed at step 10, too, which is equal"
    after = locked(21, False, quantity="loss")
    assert "unfreeze" not in sentence("P6", locked(19), wrong, after, locked(22))
    assert "unfreeze" not in sentence("P6", wrong, locked(21))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"quantity": "gradients", "path": "fc.weight", "parts": 2}, "the weights of the 2 micro-batches differ"),
        ({"quantity": "gradients", "path": "fc.weight", "parts": 1}, "gradient fc.weight"),
        ({"quantity": "slots", "path": "fc.weight", "slot": "momentum"}, "loss and gradients are equal: the update"),
        ({"quantity": "values", "path": "fc.weight", "factor": 0.5}, "is 0.5 times the reference's: its rate differs"),
        ({"quantity": "values", "path": "fc.weight"}, "and the optimizer's state are equal: the update differs"),
        ({"quantity": "average", "path": "fc.weight"}, "the weights are equal: the moving average differs"),
        ({"quantity": "scales"}, "weights of the micro-batches"),
    ],
)
def test_the_part_of_a_step_that_differs_is_named(facts: dict[str, Any], words: str) -> None:
    assert words in sentence("P6", locked(0, False, **facts), locked(1, False, **facts))


def test_gradients_that_are_right_in_other_steps_are_not_blamed_on_micro_batches() -> None:
    wrong = locked(1, False, quantity="gradients", path="fc.weight", parts=2)
    assert "micro-batches" not in sentence("P6", locked(0, parts=2), wrong)


def test_a_free_run_that_departs_where_single_steps_are_equal_is_told_apart() -> None:
    departs = row("step", 1e5, number=3, quantity="values", path="fc.weight", apart=1e-9, scatter=1e-14)
    words = sentence("P6", locked(0), row("step", 0.0, True, number=2), departs)
    assert words.startswith(
        "Each of 1 steps is equal where both start from the reference's own state, and the free run"
    )
    assert "departs at step 3: fc.weight (1.0e-09 apart, the reference from itself 1.0e-14)" in words
    begins = row("step", 1e5, number=0, quantity="average", path="fc.weight", apart=1e-1, scatter=1e-16)
    assert sentence("P6", locked(0), begins).endswith("what it begins with differs.")


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("clipped not at all", "are not clipped at all"),
        ("clipped by group", "by the norm of each group"),
        (None, "neither"),
    ],
)
def test_wrong_clipping_is_named(cause: Any, words: str) -> None:
    wrong = row("update", 1e-3, path="fc.weight", side="candidate", number=5, clipped=0.5, cause=cause)
    said = sentence("P5", wrong)
    assert "the clipping differs" in said and words in said and "a joint norm of 0.5" in said


def test_the_strength_of_a_trajectory_is_said_and_what_would_show_more() -> None:
    facts: dict[str, Any] = {"scatter": True, "locked": 8, "silent": 22, "weak": 0, "moved": 60, "shown": 1e-7}
    facts |= {"weakest": "fc.weight", "stronger": ["pretrained weights", "SGD"]}
    strong = strength(Stage("P6", 1.0, 100.0, True, (), facts))
    assert "8 steps from the reference's own state would show a change of 1.0e-7 of an update" in strong
    assert "the free run shows nothing from step 22 on" in strong and "pretrained" not in strong
    weak = strength(Stage("P6", 1.0, 100.0, True, (), {**facts, "weak": 2}))
    assert "of 2 of 60 arrays, such as fc.weight, they show nothing, as rounding makes the update" in weak
    assert weak.endswith("more would show: pretrained weights, SGD")
    coarse = strength(Stage("P6", 1.0, 100.0, True, (), {**facts, "shown": 0.1}))
    assert "a change of 0.1 of an update" in coarse and "more would show" in coarse


def test_a_side_that_stopped_is_mentioned_after_the_difference() -> None:
    wrong = row("step", 1e-3, number=0, quantity="loss")
    end = row("step", number=1, missing="candidate", stopped="a frozen array moved.")
    assert sentence("P6", wrong, end).endswith("Then the candidate stopped before step 1: a frozen array moved.")
    assert sentence("P6", end) == "Equal until step 1: the candidate stopped before step 1: a frozen array moved."


def test_wrong_arrays_are_counted_in_the_first_wrong_update_of_one_side() -> None:
    rows = [
        row("update", 1e-3, path=path, slot=slot, side="candidate", number=2)
        for path, slot in (("fc.weight", ""), ("fc.weight", "momentum"))
    ]
    later = row("update", 1e-3, path="fc.bias", side="candidate", number=3)
    words = sentence("P5", row("update", 0.0, True, side="reference", number=2), *rows, later)
    assert "candidate, update 2: fc.weight (1.0e-03)" in words and "2 arrays, optimizer slot momentum" in words
    assert "1 array, the update of the values" in sentence("P5", later)


def test_a_module_that_differs_by_itself_is_named_with_its_class_on_both_sides() -> None:
    alone = Alone("act", "output", 1e-3, ("GELU", "ReLU"), 1, False)
    words = sentence("P3", row("output", 1e-3, path="act"), replay=alone)
    assert "act (GELU, in the candidate ReLU), fed the reference's own input, gives another output" in words
    assert words.endswith("; so does another module.")


def test_a_module_that_could_not_be_replayed_is_judged_by_the_pass() -> None:
    alone = Alone("mix", "output", 1e-3, ("Mix", "Mix"), 0, False, call=2, calls=3, replay="none", why="it takes a Box")
    words = sentence("P3", row("output", 1e-3, path="mix#2"), replay=alone)
    assert "mix (Mix), in call 2 of 3, gives another output (1.0e-03) from an equal input" in words
    assert words.endswith("; it was not replayed: it takes a Box.")
    by_state = sentence("P3", row("output", 1e-3, path="mix"), replay=replace(alone, replay="equal", calls=1))
    assert "is equal when it is replayed alone: its mode or state differs" in by_state


@pytest.mark.parametrize(
    ("between", "words"),
    [
        (Between("fc", "norm"), "the fault lies between norm and fc"),
        (Between("", "fc"), "the fault lies between fc and the logits"),
        (Between("stem", ""), "the fault lies before stem"),
        (
            Between("fc", "norm", (("act", "ReLU"),)),
            "between norm and fc: act (ReLU) in the reference, functions without a module in the candidate",
        ),
        (Between("b.act", "b.norm", within="b"), "between b.norm and b.act, in the code of b itself"),
        (Between("b", "b.act", within="b"), "between b.act and what b returns, in the code of b itself"),
        (Between("b", "", within="b"), "the fault lies in b itself"),
        (Between("", ""), "the fault lies in the model's own code, outside its modules"),
        (Between("b", "a", swapped=True), "between a and b: the inputs of b are swapped"),
        (Between("b", "a", including=True), "or in b, which could not be judged by itself"),
    ],
)
def test_what_lies_between_two_modules_is_named(between: Between, words: str) -> None:
    assert words in sentence("P4", row("output", 1e-3, path="fc"), replay=between)


@pytest.mark.parametrize(
    ("outside", "words"),
    [
        (Outside("input"), "what enters the model differs"),
        (Outside("logits"), "the model's own output is equal, so what is made of it afterwards differs"),
        (Outside("loss gradient"), "already the gradient that enters the model from the loss differs"),
        (Outside("statistics", "bn"), "replayed alone, bn is equal: what becomes of its statistics afterwards differs"),
        (Outside("statistics", "bn", (1, 2)), "bn is called once in the reference, 2 times in the candidate"),
    ],
)
def test_what_lies_around_the_model_is_named(outside: Outside, words: str) -> None:
    assert words in sentence("P4", row("output", 1e-3, path="fc"), replay=outside)


def test_a_size_that_only_the_reference_takes_is_one_line() -> None:
    words = sentence("P3", row("size", size=45, missing="candidate", stopped="it broke."))
    assert words == "At 45 px the candidate cannot run, and the reference can: it broke."


def test_other_stages_name_their_first_row() -> None:
    assert sentence("P1", row("weight", path="w", missing="candidate")) == (
        "The weights differ after loading: w (missing in the candidate)."
    )
    assert (
        sentence("P7", row("count", number=0, side="candidate"))
        == "The metrics differ: batch 0: count of the candidate."
    )
    assert sentence("P4", row("correct", values=(3, 4))).startswith(
        "Outputs and loss are equal and the count of correct"
    )


def test_a_stage_without_rows_says_so() -> None:
    stage = Stage("P3", math.inf, 1e-10, False)
    assert summary(stage) == "nothing to compare"
    assert first_difference(Difference(stage, None)) == "P3, forward in eval mode: nothing to compare."
    assert first_difference(None) == ""
