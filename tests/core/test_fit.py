"""Strategies probe and knn as whole runs on the reference backend: a run like any other, but for its epochs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from safetensors.numpy import load_file

import tlx
from support.features import outcome
from support.fits import fits_of
from tlx.backend import registry
from tlx.conformance.loopback import Loopback
from tlx.errors import Interrupted, RecipeError, RunDamaged, TlxError, WeightsError
from tlx.models.weights import safetensors_bytes
from tlx.recipe import Recipe
from tlx.recipe_fields import check_strategy
from tlx.runs.folder import resumed_folder
from tlx.runs.result import Result
from tlx.training.boundary import Boundary
from tlx.training.effects import STEPPING
from tlx.training.logistic import STRENGTHS
from tlx.training.metrics import Event, Stepped
from tlx.training.neighbors import TEMPERATURE

pytestmark = pytest.mark.needs("loopback")

FIELDS: dict[str, Any] = {
    **{"backend": "loopback", "model": "tiny-mlp", "weights": "none", "data": "digits", "image_size": 8},
    **{"limit_train": 240, "limit_test": 60, "val_fraction": 0.25, "batch_size": 32},
}
FEW = STRENGTHS[::11]
BOTH = pytest.mark.parametrize("strategy", ["probe", "knn"])


@pytest.fixture(autouse=True)
def fewer_strengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run takes a quarter of the time; tests/core/test_logistic.py tries all."""
    monkeypatch.setattr("tlx.training.logistic.STRENGTHS", FEW)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    """Run with the fields above; the folder's name comes first."""
    return lambda name="run", **fields: tlx.run({**FIELDS, **fields}, out=str(tmp_path / name), quiet=True)


@BOTH
def test_the_run_is_one_like_any_other(strategy: str, run: Any) -> None:
    result = run(strategy=strategy)
    assert result.test_accuracy > 0.6 and result.val_accuracy > 0.6 and result.epochs_run == result.best_epoch == 1
    files = {path.name for path in result.run_dir.iterdir()}
    like_any_other = {"manifest.json", "recipe.toml", "history.jsonl", "result.json", "card.json", "report.html"}
    like_any_other |= {
        "model.safetensors",
        "predictions-val.csv",
        "predictions-test.csv",
        "logits-val.npy",
        "logits-test.npy",
    }
    assert files == like_any_other | ({"neighbors.safetensors"} if strategy == "knn" else set())
    evaluation = tlx.evaluate(result.run_dir, quiet=True)
    assert evaluation["test_accuracy"] == result.test_accuracy == evaluation["recorded_accuracy"]
    digits = tlx.load_data("digits", limit_train=240, limit_test=60, val_fraction=0.25)
    predictions = tlx.predict(result.run_dir, digits.test, quiet=True)
    right = [p["class"] == str(label) for p, label in zip(predictions, digits.test.labels, strict=True)]
    assert np.mean(right) == result.test_accuracy
    recipe = Recipe.from_toml(result.run_dir / "recipe.toml")
    assert (recipe.epochs, recipe.augment) == (1, "none")
    assert outcome(run("again", **recipe.to_dict() | {"out": None}))[1:] == outcome(result)[1:]


@BOTH
def test_the_history_and_the_lines_say_what_was_chosen(strategy: str, run: Any, tmp_path: Path, capsys: Any) -> None:
    result = tlx.run({**FIELDS, "strategy": strategy}, out=str(tmp_path / "run"))
    (line,) = (result.run_dir / "history.jsonl").read_text(encoding="utf-8").splitlines()
    entry = json.loads(line)
    assert entry == result.history[0] == json.loads((result.run_dir / "result.json").read_bytes())["history"][0]
    fit = entry["fit"]
    assert (
        len(fit["tried"]) == (len(FEW) if strategy == "probe" else 3) and entry["lr"] == [] and entry["phase"] == "fit"
    )
    best = max(fit["tried"], key=lambda trial: (trial["val_accuracy"], -trial["val_loss"], -trial["value"]))
    assert fit["value"] == best["value"] and fit["name"] == ("C" if strategy == "probe" else "neighbors")
    assert entry["val_accuracy"] == best["val_accuracy"] == result.val_accuracy
    assert result.chosen == f"{fit['name']} = {fit['value']:.3g}" and result.chosen in result._repr_html_()
    shown = capsys.readouterr().err
    assert f"{result.chosen}, of {len(fit['tried'])} tried, in" in shown and f"({result.chosen}), " in shown
    assert ("fitted" if strategy == "probe" else "unused") in shown and "epoch 1" not in shown
    parameters = result.trainable_parameters
    assert parameters == (330 if strategy == "probe" else 0) and f"{parameters} of 6,570 parameters" in shown


@BOTH
def test_only_the_head_differs_from_where_the_run_began(strategy: str, run: Any) -> None:
    start = load_file(run("start", strategy="scratch", epochs=1, lr=0.0).run_dir / "model.safetensors")
    result = run(strategy=strategy)
    after = load_file(result.run_dir / "model.safetensors")
    moved = {name for name in after if after[name].tobytes() != start[name].tobytes()}
    # A run of strategy scratch adapts the statistics of BatchNorm.
    assert moved - {name for name in after if name.startswith("bn1.")} == (
        {"fc.weight", "fc.bias"} if strategy == "probe" else set()
    )
    assert start.keys() - after.keys() == (set() if strategy == "probe" else {"fc.weight", "fc.bias"})


def test_the_head_of_a_probe_is_what_another_run_begins_with_and_load_model_returns(run: Any) -> None:
    result = run(strategy="probe")
    module = tlx.load_model(result.run_dir)
    saved = load_file(result.run_dir / "model.safetensors")
    assert all(np.array_equal(module.arrays[name], array) for name, array in saved.items())
    tuned = run("tuned", strategy="full", weights=str(result.run_dir), epochs=1, lr=0.0)
    after = load_file(tuned.run_dir / "model.safetensors")
    assert np.array_equal(after["fc.weight"], saved["fc.weight"])


def test_a_run_by_neighbours_gives_another_its_backbone_alone_and_no_module(run: Any, capsys: Any) -> None:
    result = run(strategy="knn")
    tlx.run({**FIELDS, "weights": str(result.run_dir), "epochs": 1}, out=str(result.run_dir) + "-tuned")
    assert "run: it has no head, so the head is drawn anew" in capsys.readouterr().err
    with pytest.raises(TlxError, match=r"is of strategy knn: .* no head to give logits. Fix: use tlx.predict"):
        tlx.load_model(result.run_dir)


@pytest.mark.parametrize("model", ["tiny-mlp", "tiny-mlp-dropout"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_logits_of_the_network_are_those_of_the_fit(model: str, precision: str, run: Any, monkeypatch: Any) -> None:
    fitted = fits_of(monkeypatch)
    result = run(strategy="probe", model=model, precision=precision)
    ((features, linear),) = fitted
    saved = load_file(result.run_dir / "model.safetensors")
    logits = features @ saved["fc.weight"].T + saved["fc.bias"]
    assert logits.dtype == features.dtype == np.dtype(precision)
    tolerance = 1e-5 if precision == "float32" else 1e-13
    np.testing.assert_allclose(logits, linear.logits(features), atol=tolerance * np.abs(logits).max())


@BOTH
def test_a_second_run_finds_the_features_of_the_first_and_of_a_trained_head(
    strategy: str, run: Any, seen: dict[str, list[int]]
) -> None:
    run("first", strategy="feature_extract", epochs=2, augment="none")
    assert sum(seen["features"]) == 240 + 60  # those of the test part too
    seen["features"].clear()
    run("second", strategy=strategy)
    assert sum(seen["features"]) == 8  # to see that they are right


@BOTH
def test_whether_features_are_cached_changes_no_bit(strategy: str, run: Any) -> None:
    def of(result: Result) -> Any:
        history, accuracy, weights = outcome(result)
        files = sorted(path for path in result.run_dir.iterdir() if path.name.startswith("neighbors"))
        for entry in history:
            del entry["fit"]["seconds"]
        return history, accuracy, weights, [path.read_bytes() for path in files]

    expected = of(run("auto", strategy=strategy))
    assert of(run("off", strategy=strategy, feature_cache="off")) == expected
    assert of(run("run", strategy=strategy, feature_cache="run", workers=0)) == expected


@BOTH
def test_a_run_that_is_stopped_goes_on_with_the_features_it_has(
    strategy: str, tmp_path: Path, monkeypatch: Any, seen: dict[str, list[int]]
) -> None:
    fields = {**FIELDS, "strategy": strategy}
    expected = outcome(tlx.run(fields, feature_cache="off", out=str(tmp_path / "whole"), quiet=True))
    compute = Boundary.compute

    def stopped(self: Boundary, images: Any) -> Any:
        if sum(seen["features"]) > 100:
            raise KeyboardInterrupt
        return compute(self, images)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Boundary, "compute", stopped)
        tlx.run(fields, out=str(tmp_path / "run"), quiet=True)
    before = sum(seen["features"])
    assert before == 128
    with pytest.raises(TlxError, match="is not finished; finish it with"):
        tlx.evaluate(tmp_path / "run", quiet=True)
    again = outcome(tlx.run(resume=tmp_path / "run", quiet=True))
    assert again[1:] == expected[1:] and sum(seen["features"]) - before == 240 + 60 - before + 8


@BOTH
def test_a_finished_run_has_no_epochs_to_add(strategy: str, run: Any) -> None:
    result = run(strategy=strategy)
    more: tuple[Any, ...] = ({}, {"epochs": 5})
    for fields in more:
        with pytest.raises(RecipeError, match=r"is finished, and strategy .* has no epochs to add. Fix: start"):
            tlx.run(resume=result.run_dir, quiet=True, **fields)
    assert tlx.evaluate(result.run_dir, quiet=True)["test_accuracy"] == result.test_accuracy


OTHERS = {
    **{"optimizer": "adam", "momentum": 0.5, "weight_decay": 0.1, "decay_on": "weights", "clip_norm": 1.0},
    **{"schedule": "cosine", "step_size": 2, "gamma": 0.5, "warmup": 2.5, "ema": 0.9, "patience": 2, "micro_batch": 4},
    **{"mixup": 0.2, "cutmix": 0.2, "label_smoothing": 0.1, "sampler": "balanced", "augment_repeats": 2},
    **{"frozen_norm": "adapt", "epochs": 5, "augment": "hflip", "hidden": 8, "dropout": 0.5},
    "exact": "bits",
}


@BOTH
@pytest.mark.parametrize("field", OTHERS)
def test_what_only_a_step_reads_is_refused(strategy: str, field: str, run: Any, tmp_path: Path) -> None:
    assert {*STEPPING} <= {*OTHERS}
    fix = f"Fix: leave {field} out, or use strategy feature_extract"
    with pytest.raises(RecipeError, match=f"{field} is .*, but strategy {strategy} .*{fix}"):
        run(strategy=strategy, **{field: OTHERS[field]})
    assert not list(tmp_path.iterdir())


def test_the_options_of_other_strategies_are_refused_and_neighbors_is_that_of_knn(run: Any) -> None:
    for strategy, fields in (("probe", {"lr": 0.1}), ("knn", {"lr": 0.1}), ("probe", {"neighbors": 5})):
        with pytest.raises(RecipeError, match=rf"strategy '{strategy}' has no {next(iter(fields))}"):
            run(strategy=strategy, **fields)
    with pytest.raises(RecipeError, match="class_weights is 'balanced', but strategy knn has no loss to weigh"):
        run(strategy="knn", class_weights="balanced")
    assert run(strategy="knn", neighbors=3).chosen == "neighbors = 3"
    with pytest.raises(RecipeError, match="neighbors is 180; expected less than the 180 training images"):
        run("many", strategy="knn", neighbors=180)
    with pytest.raises(RecipeError, match="neighbors is 0"):
        run("none", strategy="knn", neighbors=0)


def test_a_strategy_of_ones_own_cannot_fit() -> None:
    group, phase = tlx.Group("all", "all"), tlx.Phase("fit", {"all": 0.0})
    with pytest.raises(RecipeError, match="strategy is 'mine', which fits 'probe'; only named strategies do"):
        check_strategy("strategy", tlx.Strategy("mine", (group,), (phase,), "probe"))


@BOTH
def test_what_stands_in_a_table_of_groups(strategy: str) -> None:
    table = tlx.plan(strategy=strategy, backend="loopback", model="tiny-mlp")
    state = "fitted" if strategy == "probe" else "unused"
    assert [(row.group, row.lr, row.state, row.norm) for row in table.rows] == [
        ("backbone", None, "frozen", "running"),
        ("head", None, state, "-"),
    ]
    assert state in repr(table) and state in table._repr_html_()


@BOTH
def test_without_validation_a_note_says_how_it_was_chosen(strategy: str, run: Any) -> None:
    result = run(strategy=strategy, val_fraction=0)
    said = "C by, so it is 0.01" if strategy == "probe" else "classified by the others to choose k"
    assert result.val_accuracy is None and any(said in note for note in result.notes)
    assert result.test_accuracy > 0.6


def of_classes(*labels: int) -> dict[str, Any]:
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 3)).astype(np.uint8)
    test = np.arange(6) % 3
    return {"train": (images, np.array(labels)), "test": (images[test], test)}


def test_balanced_class_weights_change_the_probe(run: Any) -> None:
    data = of_classes(*[0] * 40, *[1] * 5, *[2] * 5)
    fields = {"data": data, "val_fraction": 0, "limit_train": None, "limit_test": None}
    shares = []
    for name in ("none", "balanced"):
        result = run(name, strategy="probe", class_weights=name, **fields)
        images = np.random.default_rng(1).integers(0, 256, (80, 8, 8, 3)).astype(np.uint8)
        shares.append(np.mean([p["class"] == "0" for p in tlx.predict(result.run_dir, images, quiet=True)]))
    assert shares[0] - shares[1] > 0.3


@BOTH
def test_features_that_are_not_finite_are_an_error(strategy: str, run: Any, monkeypatch: Any, tmp_path: Path) -> None:
    features = Loopback.features
    monkeypatch.setattr(Loopback, "features", lambda *args: features(*args) * np.float32(np.nan))
    with pytest.raises(TlxError, match="features of train images, which enter 'fc', are not finite"):
        run(strategy=strategy, feature_cache="off")
    assert not list(tmp_path.iterdir())


def test_a_network_whose_logits_are_not_those_of_its_head_is_refused(run: Any, monkeypatch: Any) -> None:
    logits = Loopback.logits
    monkeypatch.setattr(Loopback, "logits", lambda *args: np.tanh(logits(*args)))
    with pytest.raises(RecipeError, match=r"the model's logits are not what its head 'fc' gives on average. Fix: use"):
        run(strategy="probe", feature_cache="off")


def test_a_relu_behind_the_head_cuts_nothing_of_a_probe(run: Any, monkeypatch: Any) -> None:
    plain, images = run("plain", strategy="probe"), tlx.load_data("digits").test
    expected = tlx.predict(plain.run_dir, images, top=10, quiet=True)
    logits = Loopback.logits
    monkeypatch.setattr(Loopback, "logits", lambda *args: np.maximum(logits(*args), 0))
    result = run("relu", strategy="probe", feature_cache="off")
    heads = [load_file(r.run_dir / "model.safetensors") for r in (plain, result)]
    added = heads[1]["fc.bias"] - heads[0]["fc.bias"]
    assert np.array_equal(heads[0]["fc.weight"], heads[1]["fc.weight"])
    np.testing.assert_allclose(added, added[0], atol=1e-4)
    said = f"a ReLU follows the head, so {added[0]:.3g} is added to each bias, which changes no probability"
    assert said in result.notes
    predictions = tlx.predict(result.run_dir, images, top=10, quiet=True)
    for one, other in zip(predictions, expected, strict=True):
        assert one["class"] == other["class"] and one["probability"] == pytest.approx(other["probability"], abs=1e-4)


def test_what_the_neighbours_are_kept_in_is_checked(run: Any) -> None:
    result = run(strategy="knn")
    path, card = result.run_dir / "neighbors.safetensors", json.loads((result.run_dir / "card.json").read_bytes())
    assert card["neighbors"] == {"k": result.history[0]["fit"]["value"], "temperature": TEMPERATURE}
    whole, arrays = path.read_bytes(), load_file(path)
    assert arrays["features"].shape == (180, 32)
    train = tlx.load_data("digits", limit_train=240, val_fraction=0.25).train
    assert arrays["labels"].tolist() == train.labels.tolist()
    np.testing.assert_allclose(np.linalg.norm(arrays["features"], axis=1), 1, atol=1e-6)
    path.write_bytes(whole[:-1] + b"\7")
    with pytest.raises(RunDamaged, match=r"neighbors.safetensors is damaged"):
        tlx.predict(result.run_dir, "digits", quiet=True)
    path.unlink()
    with pytest.raises(RunDamaged, match=r"neighbors.safetensors is missing"):
        tlx.evaluate(result.run_dir, quiet=True)
    for wrong in (
        {"labels": arrays["labels"]},
        {**arrays, "labels": arrays["labels"][:-1]},
        {**arrays, "labels": arrays["labels"] + 9},
        {**arrays, "features": arrays["features"][:, :-1]},
        {**arrays, "features": arrays["features"] * np.float32(np.nan)},
        {"features": arrays["features"][:3], "labels": arrays["labels"][:3]},
    ):
        forge(result.run_dir, "neighbors.safetensors", safetensors_bytes(wrong))
        with pytest.raises((TlxError, WeightsError), match=r"is damaged: expected features .n, 32. and labels .n."):
            tlx.predict(result.run_dir, "digits", quiet=True)
    forge(result.run_dir, "neighbors.safetensors", whole)
    for neighbors, said in (
        ({"k": 181, "temperature": 0.07}, "labels .n. from 0 to 9 of at least 181 images"),
        ({"k": 0, "temperature": 0.07}, "neighbors.k is 0; expected a whole number from 1"),
        ({"k": 5, "temperature": 0.0}, "neighbors.temperature is 0.0; expected a finite number"),
        ({"k": 5}, "it has no 'neighbors.temperature'"),
        ("many", "neighbors is 'many'; expected an object"),
        (None, "2 missing: fc.weight, fc.bias"),
    ):
        forge(result.run_dir, "card.json", json.dumps({**card, "neighbors": neighbors}).encode())
        with pytest.raises(TlxError, match=said):
            tlx.predict(result.run_dir, "digits", quiet=True)
    forge(result.run_dir, "card.json", json.dumps(card).encode())
    assert tlx.evaluate(result.run_dir, quiet=True)["test_accuracy"] == result.test_accuracy


def forge(run_dir: Path, name: str, content: bytes) -> None:
    """Write a file of one's own into a run, and its digest into the manifest."""
    with resumed_folder(run_dir) as folder:
        folder.put(name, content)
        folder.commit()


def test_a_card_that_speaks_of_neighbours_that_are_not_there_is_one_line(run: Any) -> None:
    result = run(strategy="probe")
    card = json.loads((result.run_dir / "card.json").read_bytes())
    forge(result.run_dir, "card.json", json.dumps({**card, "neighbors": {"k": 5, "temperature": 0.07}}).encode())
    with pytest.raises(TlxError, match=r"says that neighbours vote, but the run has no neighbors.safetensors"):
        tlx.predict(result.run_dir, "digits", quiet=True)


@BOTH
def test_a_signal_stops_a_run_and_the_command_that_is_said_goes_on(strategy: str, tmp_path: Path) -> None:
    fields, out = {**FIELDS, "strategy": strategy}, tmp_path / "run"

    steps: list[Event] = []

    def interrupt(event: Event) -> None:
        steps.extend([event] * isinstance(event, Stepped))
        if len(steps) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    said = f"stopped before the fit was done; nothing was saved yet. Start again with: tlx run --resume {out}"
    with pytest.raises(Interrupted, match=said):
        tlx.run(fields, out=str(out), quiet=True, on_event=interrupt)
    assert len(steps) == 1
    expected = tlx.run(fields, out=str(tmp_path / "whole"), quiet=True)
    assert outcome(tlx.run(resume=out, quiet=True))[1:] == outcome(expected)[1:]


@BOTH
def test_parity_says_that_there_is_no_training_to_compare(strategy: str, tmp_path: Path) -> None:
    fields: Any = {"strategy": strategy, "model": "tiny-mlp", "reference": "loopback", "candidate": "loopback"}
    with pytest.raises(RecipeError, match=r"takes no steps, so there is no training to compare. Fix: compare strategy"):
        tlx.parity(**fields)


def test_a_head_of_several_layers_or_of_ones_own_is_refused() -> None:
    class Module:
        def named_parameters(self) -> Any:
            return iter(())

    with pytest.raises(RecipeError, match="head is a module of your own, but strategy 'probe' has a head of"):
        Recipe(strategy="probe", model=Module(), head={"fc": Module()})


def test_a_recipe_file_names_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(tomli_w.dumps({**FIELDS, "strategy": "knn", "neighbors": 5}), encoding="utf-8")
    result = tlx.run("recipe.toml", quiet=True)
    assert result.chosen == "neighbors = 5" and result.run_dir.name == "digits-tiny-mlp-knn-loopback-1"
    assert registry.load("loopback").name == result.backend
