"""Strategies: what trains, what must not, and at which rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tlx
from support.resnet import ARCH, PARAMS, SPECS
from tlx.backend import ParamSpec, Role
from tlx.backend.lora import adapter_names
from tlx.errors import RecipeError
from tlx.models.zoo import Architecture
from tlx.strategy import built_in, register
from tlx.strategy.built_in import STRATEGIES, named
from tlx.strategy.built_in import named as named_strategy
from tlx.strategy.plan import Group, Phase, Plan, Strategy
from tlx.strategy.schedule import Schedule, float32_exact

NORMS = {spec.module for spec in SPECS if spec.role == "statistic"}
HEAD = {"fc.weight", "fc.bias"}
STAGES = [stage for stage, _ in ARCH.stages]
WEIGHT = next(spec for spec in SPECS if spec.role == "weight" and ARCH.stage_of(spec.module) == STAGES[-1])
ADAPTERS = [replace(WEIGHT, name=name, role="adapter") for name in adapter_names(WEIGHT.name)]


def of_stages(*stages: str) -> set[str]:
    return {spec.name for spec in SPECS if spec.role != "statistic" and ARCH.stage_of(spec.module) in stages}


def norms_of(names: set[str]) -> set[str]:
    return {spec.module for spec in SPECS if spec.name in names} & NORMS


def bind(strategy: Strategy, epochs: int = 4, **fields: Any) -> Plan:
    specs = [*ADAPTERS, *SPECS] if strategy.name == "lora" else SPECS
    return strategy.bind(specs, ARCH, Schedule("constant", epochs, 5), 5e-4, **fields)


def plan_of(name: str, epochs: int = 4, options: dict[str, Any] | None = None, **fields: Any) -> Plan:
    options = {**named(name).customary, **(options or {})}
    return bind(named(name).build(ARCH, epochs, **options), epochs, **fields)


@pytest.mark.parametrize("name", ["scratch", "full", "diff_lr", "feature_extract"])
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
    falling = [float32_exact(1e-3 * 0.65**distance) for distance in range(len(STAGES), 0, -1)]
    assert rates == {
        "scratch": [one],
        "full": [one],
        "diff_lr": [tenth, one],
        "feature_extract": [0.0, one],
        "partial": [0.0, tenth, one],
        "head_then_full": [0.0, one],
        "gradual": [*[0.0] * len(STAGES), one],
        "layer_decay": [*falling, one],
        **{"probe": [0.0, 0.0], "knn": [0.0, 0.0]},  # they take no steps
        "lora": [0.0, one, one],
    }
    assert {hyper.weight_decay for hyper in plan_of("diff_lr").state_at(0).hyper} == {float32_exact(5e-4)}


def test_adapters_train_beside_a_frozen_base() -> None:
    plan = plan_of("lora")
    state = plan.state_at(0)
    assert state.trainable == HEAD | {spec.name for spec in ADAPTERS} and state.batch_norm == set()
    assert plan.frozen_at(0) == {spec.name for spec in SPECS} - HEAD


def test_adapting_norms_move_while_their_weights_stay() -> None:
    plan = plan_of("feature_extract", frozen_norm="adapt")
    assert plan.state_at(0).batch_norm == NORMS and plan.state_at(0).trainable == HEAD
    assert plan.frozen_at(0) == set(PARAMS) - HEAD


@pytest.mark.parametrize("stages", [("layer4",), ("layer3", "layer4"), ("stem", "layer2")])
def test_partial_trains_the_chosen_stages_and_the_head(stages: tuple[str, ...]) -> None:
    plan = plan_of("partial", options={"stages": stages})
    state = plan.state_at(0)
    free = of_stages(*stages)
    assert state.trainable == free | HEAD and state.batch_norm == norms_of(free)
    assert plan.frozen_at(0) == {
        s.name for s in SPECS if s.name not in state.trainable and s.module not in norms_of(free)
    }
    rates = {name: hyper.lr for group, hyper in zip(plan.groups, state.hyper, strict=True) for name in group.params}
    assert {rates[name] for name in free} == {float32_exact(1e-4)} and rates["fc.weight"] == float32_exact(1e-3)


def test_partial_by_default_trains_the_last_stage_and_may_train_all() -> None:
    assert plan_of("partial").state_at(0) == plan_of("partial", options={"stages": (STAGES[-1],)}).state_at(0)
    assert plan_of("partial", options={"stages": tuple(STAGES)}).state_at(0).trainable == set(PARAMS)
    with pytest.raises(RecipeError, match=r"has no stage 'layer5'\. Did you mean 'layer"):
        plan_of("partial", options={"stages": ("layer5",)})


def test_head_then_full_lowers_the_heads_rate_when_the_backbone_begins() -> None:
    plan = plan_of("head_then_full", options={"phase_epochs": 3})
    before, after = plan.state_at(14), plan.state_at(15)
    one, tenth = float32_exact(1e-3), float32_exact(1e-4)
    assert before.trainable == HEAD and not before.batch_norm and [h.lr for h in before.hyper] == [0.0, one]
    assert after.trainable == set(PARAMS) and after.batch_norm == NORMS
    assert [h.lr for h in after.hyper] == [tenth, tenth]


def test_gradual_unfreezes_stage_by_stage_from_the_head() -> None:
    plan = plan_of("gradual", epochs=20, options={"phase_epochs": 2})
    for epoch in range(20):
        free = STAGES[max(len(STAGES) - epoch // 2, 0) :]
        assert plan.state_at(5 * epoch).trainable == of_stages(*free) | HEAD
        assert plan.state_at(5 * epoch + 4).batch_norm == norms_of(of_stages(*free))


def test_gradual_in_few_epochs_leaves_the_first_stages_frozen() -> None:
    plan = plan_of("gradual", epochs=2)
    assert {row.phase for row in plan.table()} == {"head", STAGES[-1]}
    assert plan.state_at(9).trainable == of_stages(STAGES[-1]) | HEAD


def test_norms_and_biases_can_be_left_without_decay() -> None:
    plan = plan_of("diff_lr", decay_on="weights")
    role = {spec.name: spec.role for spec in SPECS}
    decays = {
        name: hyper.weight_decay
        for group, hyper in zip(plan.groups, plan.state_at(0).hyper, strict=True)
        for name in group.params
    }
    assert sorted(decays) == sorted(PARAMS)
    assert {n for n, decay in decays.items() if decay} == {n for n in PARAMS if role[n] == "weight"}
    assert sum(row.parameters for row in plan.table()) == plan.total_parameters()


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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"phases": [{"name": "p", "lr": {"head": float("nan")}}]}, "lr of 'head' is nan; expected a finite number"),
        ({"phases": [{"name": "p", "lr": {"head": -1}}]}, "lr of 'head' is -1"),
        ({"phases": [{"name": "p", "lr": {"head": "fast"}}]}, "lr of 'head' is 'fast'"),
        ({"phases": [{"name": "p", "rate": 1}]}, "phases: unknown entry 'rate'"),
        ({"phases": [{"name": "p"}]}, "missing 1 required positional argument: 'lr'"),
        ({"phases": ["p"]}, "'p' is not a table"),
        ({"phases": 3}, "groups and phases are lists of tables"),
        ({"groups": [{"name": "g", "macth": "all"}]}, "unknown entry 'macth'. Did you mean 'match'"),
        ({"group": []}, "unknown entry 'group'. Did you mean 'groups'"),
    ],
)
def test_a_mistake_in_a_written_strategy_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as error:
        Strategy.from_dict({**LATE.to_dict(), **change})
    assert said in str(error.value) and "'late'" in str(error.value)


def test_a_strategy_survives_being_written() -> None:
    assert Strategy.from_dict(LATE.to_dict()) == LATE
    with pytest.raises(RecipeError, match="'phases' is missing"):
        Strategy.from_dict({"name": "x", "groups": []})


def test_a_phase_after_the_end_is_refused() -> None:
    with pytest.raises(RecipeError, match="phase 'all' starts after the last epoch"):
        bind(LATE, epochs=2)


def test_an_unknown_strategy_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"Unknown strategy 'dif_lr'\. Did you mean 'diff_lr'"):
        named("dif_lr")


def test_a_strategy_from_outside_is_one_function(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tlx.strategy.built_in.STRATEGIES", dict(STRATEGIES))
    monkeypatch.setattr("tlx.recipe.STRATEGIES", built_in.STRATEGIES)

    @register("the head twice as fast as the backbone")
    def double(arch: Architecture, epochs: int, *, lr: float = 0.01) -> Strategy:
        groups = (Group("backbone", "backbone"), Group("head", "head"))
        return Strategy("double", groups, (Phase("train", {"backbone": lr, "head": 2 * lr}),))

    fields: dict[str, Any] = {"backend": "loopback", "model": "tiny-mlp", "strategy": "double", "weights": "none"}
    assert [row.lr for row in tlx.plan(fields).rows] == [0.01, 0.02]
    assert [row.lr for row in tlx.plan(fields, lr=0.5).rows] == [0.5, 1.0]
    data: dict[str, Any] = {"data": "digits", "image_size": 8, "limit_train": 200, "limit_test": 20, "epochs": 1}
    result = tlx.run(fields, **data, quiet=True, out=str(tmp_path / "run"))
    assert result.recipe.resolved().lr == 0.01 and result.history[0]["lr"] == [float32_exact(0.01), float32_exact(0.02)]
    with pytest.raises(RecipeError, match="strategy 'double' has no backbone_lr"):
        tlx.Recipe(strategy="double", backbone_lr=0.1)
    with pytest.raises(RecipeError, match="'double' is registered already: the head twice as fast"):
        register("again")(double)


def test_a_strategy_that_takes_what_no_recipe_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlx.strategy.built_in.STRATEGIES", dict(STRATEGIES))
    monkeypatch.setattr("tlx.recipe.STRATEGIES", built_in.STRATEGIES)

    @register("takes an option of its own")
    def odd(arch: Architecture, epochs: int, *, warmth: float = 1.0) -> Strategy:
        raise AssertionError("never built")

    with pytest.raises(RecipeError, match="strategy 'odd' takes 'warmth', which is no recipe field"):
        tlx.Recipe(strategy="odd")


def test_buffers_of_a_container_and_norms_without_parameters_follow_what_trains_around_them() -> None:
    def named(name: str, role: Role) -> ParamSpec:
        return ParamSpec(name, (2,), "float32", role, name.rpartition(".")[0])

    specs = [named("body.conv.weight", "weight"), named("head.fc.weight", "weight"), named("scale", "statistic")]
    specs += [named("body.norm.running_mean", "statistic"), named("head.norm.running_mean", "statistic")]
    arch = Architecture("own", "head", (("body", ("body",)), ("root", ("",))), "")
    for strategy, adapting in (("full", {"", "body.norm", "head.norm"}), ("feature_extract", {"", "head.norm"})):
        plan = named_strategy(strategy).build(arch, 1, lr=0.1).bind(specs, arch, Schedule("constant", 1, 5), 0.0)
        assert plan.state_at(0).batch_norm == adapting
