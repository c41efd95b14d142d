"""The learning-rate range test: what it suggests, and that nothing is left of it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tlx
from support.backends import FRAMEWORKS
from support.norm_net import net_of
from support.training import training_of
from tlx.backend import registry
from tlx.comparison.range_test import Trial, middle_of, range_test, rates, steepest, valley
from tlx.errors import RecipeError, TlxError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FIELDS: dict[str, Any] = {
    **{"backend": "loopback", "model": "tiny-mlp-dropout", "weights": "none", "data": "digits", "image_size": 8},
    **{"limit_train": 300, "limit_test": 40, "batch_size": 32, "epochs": 1},
}


def trials(losses: list[float]) -> list[Trial]:
    return [Trial(10.0 ** (at / 10 - 5), loss, loss) for at, loss in enumerate(losses)]


def test_rates_rise_by_one_factor_from_end_to_end() -> None:
    values = rates(1e-6, 10, 8)
    assert [values[0], values[-1]] == pytest.approx([1e-6, 10]) and len(values) == 8
    assert np.diff(np.log(values)) == pytest.approx([math.log(10)] * 7, rel=1e-5)


def test_a_bump_in_the_fall_moves_neither_the_valley_nor_the_suggestion() -> None:
    smooth = [3.0] * 10 + [3 - 0.1 * at for at in range(1, 21)] + [2.0, 4.0, 9.0]
    first, last = valley(trials(smooth))
    assert (first, last) == (0, 29) and middle_of(first, last) == 13
    bumpy = [*smooth[:18], 2.95, *smooth[19:]]
    assert valley(trials(bumpy)) == (0, 29)
    assert steepest(trials([3.0, 2.9, 2.0, 1.9, 1.8, 5.0])) == 1


def test_the_smoothed_loss_has_its_bias_corrected() -> None:
    training = training_of(**{**FIELDS, "limit_train": 100})
    steps = list(range_test(training, 1e-3, 1e-6, 1e-4, 12))
    weights = np.array([0.9 ** (len(steps) - 1 - at) for at in range(len(steps))])
    assert steps[0].smoothed == pytest.approx(steps[0].loss)
    assert steps[-1].smoothed == pytest.approx(np.average([step.loss for step in steps], weights=weights))


def test_groups_keep_their_ratio_and_frozen_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    training = training_of(**FIELDS, strategy="diff_lr", lr=0.2, backbone_lr=0.05, schedule="cosine")
    seen: list[list[float]] = []
    set_hyper = training.backend.set_hyper

    def watched(self: Any, optimizer: Any, values: Any) -> None:
        seen.append([hyper.lr for hyper in values])
        set_hyper(optimizer, values)

    monkeypatch.setattr(type(training.backend), "set_hyper", watched)
    steps = list(range_test(training, 0.2, 1e-4, 1e-2, 15))
    assert [head for _, head in seen] == pytest.approx([step.lr for step in steps])
    assert [head / backbone for backbone, head in seen] == pytest.approx([4.0] * 15)
    frozen = training_of(**FIELDS, strategy="feature_extract")
    before = frozen.backend.dump_arrays(frozen.model)
    list(range_test(frozen, 1e-3, 1e-4, 1e-2, 3))
    after = frozen.backend.dump_arrays(frozen.model)
    names = frozen.plan.frozen_at(0)
    assert names and all(np.array_equal(before[name], after[name]) for name in names)
    assert not all(np.array_equal(before[name], after[name]) for name in before)


def test_the_suggestion_trains_better_than_the_ends_of_the_test(tmp_path: Path) -> None:
    fields = {**FIELDS, "epochs": 4}
    outcome = tlx.find_lr(**fields, quiet=True)
    assert 1e-6 < outcome.lr < outcome.lowest and outcome.trials[0].lr == pytest.approx(1e-6)
    losses = {
        lr: tlx.run(**fields, lr=lr, out=str(tmp_path / str(lr)), quiet=True).history[-1]["val_loss"] or 0.0
        for lr in (1e-6, outcome.lr)
    }
    assert losses[outcome.lr] < losses[1e-6]


def test_a_run_after_it_has_the_bits_of_one_without(tmp_path: Path) -> None:
    tlx.run(**FIELDS, out=str(tmp_path / "without"), quiet=True)
    state = np.random.get_state()[1].copy()  # type: ignore[index]
    files = sorted(tmp_path.rglob("*"))
    tlx.find_lr(**FIELDS, quiet=True)
    assert sorted(tmp_path.rglob("*")) == files and np.array_equal(state, np.random.get_state()[1])  # type: ignore[index]
    tlx.run(**FIELDS, out=str(tmp_path / "with"), quiet=True)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("without", "with")]
    assert weights[0] == weights[1]


@pytest.mark.needs("torch", "oneflow")
def test_both_frameworks_suggest_the_same_and_leave_a_module_of_ones_own_as_it_is() -> None:
    suggestions = {}
    for backend in FRAMEWORKS:
        framework = import_module(backend)
        net = net_of(framework)
        before = {name: value.numpy().copy() for name, value in net.state_dict().items()}
        stream = framework.get_rng_state().numpy().copy()
        fields = {**FIELDS, "backend": backend, "model": net, "weights": "own", "head": "fc", "precision": "float64"}
        outcome = tlx.find_lr(**fields, strategy="diff_lr", quiet=True)
        after = {name: value.numpy() for name, value in net.state_dict().items()}
        if registry.load(backend).restores_generators:  # type: ignore[attr-defined]
            assert np.array_equal(framework.get_rng_state().numpy(), stream)
        assert all(np.array_equal(before[name], after[name]) for name in before) and net.training
        suggestions[backend] = (outcome.lr, outcome.backbone_lr, len(outcome.trials), outcome.command)
        assert outcome.backbone_lr == pytest.approx(outcome.lr / 10, rel=0.05)
    assert suggestions["torch"] == suggestions["oneflow"] and suggestions["torch"][3] is None


def test_the_command_prints_the_line_to_type_and_writes_a_picture(tmp_path: Path, browser: Browser) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in FIELDS.items()]
    picture = tmp_path / "lr.svg"
    command = [sys.executable, "-m", "tlx", "find-lr", *options, "--json", "--picture", str(picture)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert f"--lr {outcome['lr']:g} " in outcome["command"] and [p.name for p in tmp_path.iterdir()] == ["lr.svg"]
    svg = ET.fromstring(picture.read_text())
    assert len(svg.findall(".//{*}circle")) == len(outcome["trials"])
    page = browser.new_page(viewport={"width": 390, "height": 700}, color_scheme="dark")
    page.goto(picture.as_uri())
    assert page.locator("text", has_text=f"lr {outcome['lr']:g}").bounding_box() is not None
    page.close()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"strategy": "probe"}, "strategy probe takes no steps, so it has no learning rate"),
        ({"picture": "lr.png"}, r"picture is 'lr.png'; expected a name that ends in .svg"),
        ({"lr": 0.0}, "lr is 0"),
        ({"lrr": 0.0}, "unknown field 'lrr'"),
    ],
)
def test_a_mistake_is_one_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        tlx.find_lr(**{**FIELDS, **fields}, quiet=True)


def test_a_loss_that_diverges_at_once_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlx.comparison.find_lr.LOW", 1e30)
    monkeypatch.setattr("tlx.comparison.find_lr.HIGH", 1e38)
    with pytest.raises(TlxError, match=r"the loss diverges .*: there is no curve to judge"):
        tlx.find_lr(**FIELDS, quiet=True)
