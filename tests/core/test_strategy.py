"""Strategies: what trains, what must not, and at which rates."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.resnet import ARCH, PARAMS, SPECS
from tlx.errors import RecipeError
from tlx.schedule import Schedule, float32_exact
from tlx.strategy import STRATEGIES, Group, Phase, Plan, Strategy, built_in

NORMS = {spec.module for spec in SPECS if spec.role == "statistic"}
HEAD = {"fc.weight", "fc.bias"}


def bind(strategy: Strategy, epochs: int = 4, **fields: Any) -> Plan:
    return strategy.bind(SPECS, ARCH, Schedule("constant", epochs, 5), 5e-4, **fields)


def plan_of(name: str, **fields: Any) -> Plan:
    custom = built_in(name)
    return bind(custom.make(custom.lr, custom.backbone_lr), **fields)


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_trains_and_what_must_not(name: str) -> None:
    plan = plan_of(name)
    state = plan.state_at(0)
    frozen = name == "feature_extract"
    assert state.trainable == (HEAD if frozen else set(PARAMS))
    assert state.batch_norm == (set() if frozen else NORMS)
    assert plan.frozen_at(0) == ({spec.name for spec in SPECS} - HEAD if frozen else set())
    assert plan.trainable_parameters() == (50 if frozen else plan.total_parameters())
    assert plan.total_parameters() == 5 * (4 * 4 * 9 + 8) + 50


def test_the_customary_rates() -> None:
    rates = {name: [hyper.lr for hyper in plan_of(name).state_at(0).hyper] for name in STRATEGIES}
    one, tenth = float32_exact(1e-3), float32_exact(1e-4)
    assert rates == {"scratch": [one], "full": [one], "diff_lr": [tenth, one], "feature_extract": [0.0, one]}
    assert {hyper.weight_decay for hyper in plan_of("diff_lr").state_at(0).hyper} == {float32_exact(5e-4)}


def test_adapting_norms_move_while_their_weights_stay() -> None:
    plan = plan_of("feature_extract", frozen_norm="adapt")
    assert plan.state_at(0).batch_norm == NORMS and plan.state_at(0).trainable == HEAD
    assert plan.frozen_at(0) == set(PARAMS) - HEAD


LATE = Strategy(
    "late",
    (Group("backbone", "backbone", weight_decay=0.0), Group("head", "head")),
    (Phase("head", {"head": 1e-2}), Phase("all", {"backbone": 1e-4, "head": 1e-3}, start=2)),
)


def test_a_phase_begins_at_its_epoch_and_state_is_a_pure_function() -> None:
    plan = bind(LATE)
    states = {step: plan.state_at(step) for step in (19, 0, 9, 10)}
    assert all(plan.state_at(step) == state for step, state in states.items())
    assert states[0].phase == states[9].phase == "head" and states[10].phase == states[19].phase == "all"
    assert states[9].trainable == HEAD and states[10].trainable == set(PARAMS)
    assert states[9].batch_norm == set() and states[10].batch_norm == NORMS
    assert [hyper.lr for hyper in states[9].hyper] == [0.0, float32_exact(1e-2)]
    assert [hyper.lr for hyper in states[10].hyper] == [float32_exact(1e-4), float32_exact(1e-3)]
    assert [hyper.weight_decay for hyper in states[0].hyper] == [0.0, float32_exact(5e-4)]


def test_the_table_shows_each_group_in_each_phase() -> None:
    rows = [
        (row.phase, row.epoch, row.group, row.tensors, row.parameters, row.lr, row.norm) for row in bind(LATE).table()
    ]
    assert rows == [
        ("head", 0, "backbone", 15, 760, None, "running"),
        ("head", 0, "head", 2, 50, 1e-2, "-"),
        ("all", 2, "backbone", 15, 760, 1e-4, "batch"),
        ("all", 2, "head", 2, 50, 1e-3, "-"),
    ]


GROUPS = (Group("backbone", "backbone"), Group("head", "head"))


@pytest.mark.parametrize(
    ("groups", "phases", "said"),
    [
        ((Group("a", "all"), Group("a", "head")), (Phase("p", {"a": 1}),), "group names repeat"),
        (GROUPS, (), "must start at epoch 0"),
        (GROUPS, (Phase("p", {"head": 1}, start=1),), "must start at epoch 0"),
        (GROUPS, (Phase("p", {"head": 1}), Phase("q", {"head": 1})), "must start at epoch 0 and rise"),
        (GROUPS, (Phase("p", {}),), "no group trains"),
        (GROUPS, (Phase("p", {"haed": 1}),), "no group 'haed'. Did you mean 'head'"),
    ],
)
def test_a_strategy_that_cannot_be_meant_is_refused(groups: Any, phases: Any, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        Strategy("mine", groups, phases)
    assert said in str(error.value)


def test_a_phase_after_the_end_is_refused() -> None:
    with pytest.raises(RecipeError, match="phase 'all' starts after the last epoch"):
        bind(LATE, epochs=2)


def test_an_unknown_strategy_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"Unknown strategy 'dif_lr'\. Did you mean 'diff_lr'"):
        built_in("dif_lr")
