"""What strategy is advised, why, and that the line to type works."""

from __future__ import annotations

import json
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.backends import FRAMEWORKS
from support.norm_net import net_of
from tlx import cli
from tlx.comparison import advise as module
from tlx.comparison.decide import CANDIDATES, FROZEN, NEAREST, decide, frozen_of, paired, rule_of
from tlx.comparison.domain import divergence
from tlx.errors import RecipeError

FIELDS: dict[str, Any] = {
    **{"backend": "loopback", "model": "tiny-mlp-dropout", "image_size": 8, "limit_train": 300, "limit_test": 40},
    **{"batch_size": 16, "epochs": 2, "lr": 0.05},
}
AMPLE = "100h"  # with which every trial has its five folds, however slow the machine is
SECONDS = {name: 10.0 * (1 + at) for at, name in enumerate(name for name in CANDIDATES if name != NEAREST)}
SEVERAL = np.zeros((4, 8, 8, 3), np.uint8), 1 - np.eye(4, dtype=np.int64)  # three labels for each image
LABELLED = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2
OWN_VAL = {"train": LABELLED, "val": LABELLED, "test": LABELLED}
BN = {"running_mean": "bn.running_mean", "running_var": "bn.running_var"}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run's folder, whose values others start from."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    fields = {**FIELDS, "limit_train": 400, "epochs": 6}
    tlx.run(data="digits", strategy="full", weights="none", seed=1, out=str(folder), quiet=True, **fields)
    return str(folder)


def answers(accuracy: float, images: int = 1000, first: int = 0) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Answers of which the first `first` are wrong, and further ones up to the accuracy."""
    right = np.ones(images, np.bool_)
    right[first : first + round((1 - accuracy) * images)] = False
    return right


@pytest.mark.parametrize(
    ("images", "distance", "rule"),
    [
        (999, 0.3, "feature_extract"),
        (1_000, 0.3, "partial"),
        (10_000, None, "partial"),
        (10_001, 0.3, "full"),
        (200, 0.8, "full"),
        (200, None, "feature_extract"),
    ],
)
def test_the_rule_goes_by_size_and_distance(images: int, distance: float | None, rule: str) -> None:
    assert rule_of(images, distance)[0] == rule


def test_the_rule_stays_unless_another_is_better_by_more_than_the_error() -> None:
    frozen, tuned = answers(0.90), answers(0.93)
    moved = decide("feature_extract", {FROZEN: frozen, "full": tuned}, SECONDS)
    assert moved.strategy == "full" and "3.0 ± 0.5 points" in moved.reasons[-1] and not moved.close
    # 30 images more are right, of 1,430 that only one of the two has right: a difference by chance.
    noisy = np.concatenate([np.ones(730, np.bool_), np.zeros(700, np.bool_)]), np.zeros(1430, np.bool_)
    noisy[1][730:] = True
    stays = decide("feature_extract", {FROZEN: noisy[1], "full": noisy[0]}, SECONDS)
    assert stays.strategy == FROZEN and stays.close and "full" in stays.reasons[-1]
    assert paired(*noisy)[0] == pytest.approx(30 / 1430) and paired(*noisy)[1] == pytest.approx(1 / 1430**0.5, rel=0.01)


def test_frozen_features_that_are_nearly_always_right_are_kept() -> None:
    assert decide("full", {FROZEN: answers(0.991), "full": answers(1.0)}, SECONDS).strategy == FROZEN
    assert decide("full", {FROZEN: answers(0.98), "full": answers(1.0)}, SECONDS).strategy == "full"


def test_trials_that_fall_behind_frozen_features_are_said_to_lack_steps() -> None:
    behind = decide("full", {FROZEN: answers(0.9), "full": answers(0.3)}, SECONDS)
    assert behind.strategy == FROZEN and "more --epochs, or tlx find-lr, may change the advice" in behind.reasons[-1]
    assert not any(
        "--epochs" in reason for reason in decide("full", {FROZEN: answers(0.9), "full": answers(0.9)}, SECONDS).reasons
    )


def test_what_does_not_fit_into_the_time_is_not_advised() -> None:
    right = {FROZEN: answers(0.8), "partial": answers(0.9), "full": answers(0.95)}
    assert decide("full", right, SECONDS).strategy == "full"
    less = decide("full", right, SECONDS, left=35)
    assert less.strategy == "partial" and "full does not fit into the time" in less.reasons
    none = decide("full", right, SECONDS, left=5)
    assert none.strategy == FROZEN and "no strategy fits" in none.reasons[0]


def test_neighbours_stand_for_frozen_features_where_they_prove_better() -> None:
    assert frozen_of(answers(0.90), answers(0.90)) == (FROZEN, "") == frozen_of(answers(0.93), answers(0.90))
    name, said = frozen_of(answers(0.90), answers(0.93))
    assert name == NEAREST and "knn was better than probe by 3.0 ± 0.5 points; its runs are not exported" in said
    seconds = {NEAREST if name == FROZEN else name: of for name, of in SECONDS.items()}
    right = {NEAREST: answers(0.9), "full": answers(0.3)}
    assert decide("feature_extract", right, seconds, frozen=NEAREST).strategy == NEAREST
    assert decide("full", right, seconds, 15, NEAREST).strategy == NEAREST


def test_neighbours_are_advised_where_no_plane_divides_the_features(pretrained: str, tmp_path: Path) -> None:
    """Thirty patterns, with ten images of each, and classes that are drawn by lot."""
    draw = np.random.default_rng(0)
    pattern, classes = np.repeat(np.arange(30), 10), draw.permutation(30) % 2
    images = draw.integers(0, 200, (30, 8, 8, 3))[pattern] + draw.integers(0, 10, (300, 8, 8, 3))
    np.savez(tmp_path / "patterns.npz", images=images.astype(np.uint8), labels=classes[pattern])
    fields = {**FIELDS, "limit_train": None, "limit_test": None, "weights": pretrained}
    advice = tlx.advise(str(tmp_path / "patterns.npz"), **fields, budget=AMPLE, quiet=True)
    accuracy = {option.strategy: option.accuracy or 0.0 for option in advice.options}
    assert accuracy[NEAREST] > accuracy[FROZEN] + 0.05 and advice.knn == accuracy[NEAREST]
    assert advice.strategy == NEAREST and any("its runs are not exported" in reason for reason in advice.reasons)
    assert "--strategy knn" in (advice.command or "")


def test_a_batch_is_recovered_from_what_it_does_to_the_running_statistics() -> None:
    drawn = np.random.default_rng(0)
    there, spread_there, here, spread_here = (drawn.uniform(0.5, 2.0, 16) for _ in range(4))
    seen = [{BN["running_mean"]: there, BN["running_var"]: spread_there}]
    for _ in range(2):
        seen.append(
            {name: 0.9 * seen[-1][name] + 0.1 * new for name, new in zip(BN.values(), (here, spread_here), strict=True)}
        )
    gap = (here - there) ** 2
    one_way = 0.5 * (np.log(spread_there / spread_here) + (spread_here + gap) / spread_there - 1)
    back = 0.5 * (np.log(spread_here / spread_there) + (spread_there + gap) / spread_here - 1)
    found = divergence(seen, BN)
    assert found is not None and found == pytest.approx(one_way + back)
    assert divergence([seen[0]] * 3, BN) is None


@pytest.mark.needs("torch", "oneflow")
def test_both_frameworks_advise_the_same_and_leave_a_module_of_ones_own_as_it_is() -> None:
    advice = {}
    for backend in FRAMEWORKS:
        net = net_of(import_module(backend))
        before = {name: value.numpy().copy() for name, value in net.state_dict().items()}
        fields = {**FIELDS, "backend": backend, "model": net, "head": "fc", "precision": "float64", "limit_train": 100}
        advice[backend] = tlx.advise("digits", **{**fields, "epochs": 1}, budget=AMPLE, quiet=True)
        after = {name: value.numpy() for name, value in net.state_dict().items()}
        assert all(np.array_equal(before[name], after[name]) for name in before) and net.training
    one, other = (advice[backend] for backend in FRAMEWORKS)
    assert one.distance == pytest.approx(other.distance, rel=1e-5)
    assert (one.strategy, one.rule, one.knn) == (other.strategy, other.rule, other.knn)
    assert [option.accuracy for option in one.options] == [option.accuracy for option in other.options]
    assert one.command is None and "accuracy" in one._repr_html_()


def test_the_line_that_is_printed_trains(
    pretrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**FIELDS, "weights": pretrained}.items()]
    call = ["advise", "digits", *options, "--backbone-lr", "0.01", "--seed", "3", "--budget", AMPLE]
    run(call)
    printed = capsys.readouterr().out
    run([*call, "--json"])
    advice = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed.splitlines()[-1] == advice["command"] and f"advice: {advice['strategy']}" in printed
    assert [option["strategy"] for option in advice["options"]] == list(CANDIDATES)
    assert all(option["seconds"] > 0 for option in advice["options"]) and not list(tmp_path.glob("runs"))
    run([*shlex.split(advice["command"])[1:], "--out", "run"])
    assert tlx.Recipe.from_toml("run/recipe.toml").strategy == advice["strategy"]


def run(words: list[str]) -> None:
    """Call a command in this process."""
    assert not cli.app(words, exit_on_error=False, print_error=False, result_action="return_value")


def test_little_time_leaves_the_trials_out(pretrained: str) -> None:
    advice = tlx.advise("digits", **FIELDS, weights=pretrained, budget=0.001, quiet=True)
    assert advice.strategy == min(advice.options, key=lambda option: option.seconds).strategy
    assert [option.strategy for option in advice.options if option.accuracy is not None] == [FROZEN, NEAREST]
    assert any("no strategy fits" in reason for reason in advice.reasons)


def test_without_a_budget_one_fold_may_take_ten_minutes(pretrained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run times that are set stand for a slow machine."""
    for slow, tried, folds in ((400.0, {"partial", "full"}, "1"), (1e6, {"partial"}, "5")):
        seconds = {**dict.fromkeys(CANDIDATES, 1.0), "full": slow, "diff_lr": 1e6}
        monkeypatch.setattr(module, "seconds_of", lambda recipe, *_, of=seconds: of[recipe.strategy])
        monkeypatch.setattr(module, "AGAIN", 0.0 if folds == "1" else 120.0)
        advice = tlx.advise("digits", **FIELDS, weights=pretrained, quiet=True)
        assert {o.strategy for o in advice.options if o.accuracy is not None} == {FROZEN, NEAREST, *tried}
        assert any(f"trials on {folds} of 5 folds" in reason for reason in advice.reasons)
        missing = " and ".join(name for name in ("diff_lr", "full") if name not in tried)
        assert f"there was no time to try {missing}; a larger --budget gives it" in advice.reasons


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"budget": "ten"}, "budget is 'ten'; expected a time, such as 90s, 10m or 1.5h"),
        ({"budget": 0}, "budget is 0"),
        ({"strategy": "full"}, "strategy is what tlx advise recommends"),
        ({"weights": "none"}, "weights is none"),
        ({"rank": 4}, "rank has no effect in any strategy that tlx advise looks at"),
        ({"val_fraction": 0.3, "data": OWN_VAL}, "val_fraction is 0.3, but .* has a val part of its own"),
        ({"epoch": 4}, "unknown field 'epoch'. Did you mean 'epochs'"),
        ({"data": {"train": SEVERAL, "test": SEVERAL}, "val_fraction": 0.0}, "may have several"),
    ],
)
def test_a_mistake_is_one_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        tlx.advise(**{"data": "digits", **FIELDS, "weights": "own.pth", **fields}, quiet=True)
