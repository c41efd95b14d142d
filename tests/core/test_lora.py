"""Strategy lora on the reference backend: what trains, what a run leaves, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import tlx
from support.training import training_of
from tlx.backend import Lora, ParamSpec, registry
from tlx.backend.lora import adapted_weights, adapter_names, choose_weights, merged
from tlx.cli.look_up import strategies
from tlx.conformance.subject import batch
from tlx.errors import BackendError, FrozenMovedError, RecipeError, TlxError
from tlx.manifest import read_manifest
from tlx.models.weights import digest
from tlx.recipe import Recipe
from tlx.training.build import build_model, start_of

LORA: dict[str, Any] = {"backend": "loopback", "model": "tiny-mlp", "strategy": "lora", "precision": "float64"}
RUN: dict[str, Any] = {
    **LORA,
    **{"data": "digits", "image_size": 8, "augment": "none", "limit_train": 300, "limit_test": 100},
    **{"batch_size": 32, "lr": 0.05, "quiet": True},
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A run of everything, whose weights are adapted to other classes."""
    fields = {**RUN, "strategy": "full", "classes": ("0", "1", "2")}
    return tlx.run(**fields, weights="none", out=str(tmp_path / "base")).run_dir


@pytest.fixture
def adapted(base: Path, tmp_path: Path) -> tlx.Result:
    return tlx.run(**RUN, weights=str(base), rank=2, alpha=3, classes=("7", "8", "9"), out=str(tmp_path / "adapted"))


def test_the_base_is_frozen_and_adapters_and_head_train() -> None:
    rows = {row.group: (row.parameters, row.lr) for row in tlx.plan(**LORA, rank=2, lr=0.01).rows}
    assert rows == {"base": (32 * 192 + 3 * 32, None), "adapters": (2 * (192 + 32), 0.01), "head": (330, 0.01)}
    assert tlx.plan(**LORA).rows[1].parameters == 8 * (192 + 32)


def test_weight_decay_on_weights_alone_acts_on_adapters_too() -> None:
    decays = {r.group: r.weight_decay for r in tlx.plan(**LORA, weight_decay=0.5, decay_on="weights").rows[2:3]}
    assert decays == {"adapters": 0.5}


def test_adapters_add_nothing_at_the_start_and_are_drawn_by_name() -> None:
    training = training_of(**LORA, image_size=8)
    values = training.backend.dump_arrays(training.model)
    first, second = values["fc1.lora_A"], values["fc1.lora_B"]
    assert not second.any() and (first != 0).all()
    bound = 1 / np.sqrt(192)  # kaiming_uniform_(a=sqrt(5)) of [rank, in], as in the authors' code
    assert np.abs(first).max() <= bound and np.abs(first).std() == pytest.approx(bound / np.sqrt(12), rel=0.05)
    plain = training_of(**{**LORA, "strategy": "full"}, image_size=8)
    others = plain.backend.dump_arrays(plain.model)
    assert all(others[name].tobytes() == values[name].tobytes() for name in others)


def test_a_run_leaves_an_ordinary_model(adapted: tlx.Result, base: Path) -> None:
    """Its weights are merged; evaluating, predicting and training on take them as those of any other run."""
    run = adapted.run_dir
    model, start = load_file(run / "model.safetensors"), load_file(base / "model.safetensors")
    assert model.keys() == start.keys()
    moved = {name for name in model if model[name].tobytes() != start[name].tobytes()}
    assert moved == {"fc1.weight", "fc.weight", "fc.bias"}
    assert tlx.evaluate(run, quiet=True)["test_accuracy"] == adapted.test_accuracy
    same = {**RUN, "strategy": "feature_extract", "epochs": 1, "lr": 0.0, "classes": ("7", "8", "9")}
    on = tlx.run(**same, weights=str(run), out=str(run.parent / "on"))
    assert on.test_accuracy == adapted.test_accuracy
    assert tlx.load_model(run).arrays.keys() == adapted.model.arrays.keys() == model.keys()


def test_adapters_beside_the_base_are_the_model_that_was_left(adapted: tlx.Result, base: Path) -> None:
    """By the formula of docs/strategies.md."""
    run = adapted.run_dir
    card = json.loads((run / "card.json").read_text())["lora"]
    values, adapters = load_file(base / "model.safetensors"), load_file(run / "adapters.safetensors")
    assert adapters.keys() == {"fc1.lora_A", "fc1.lora_B", "fc.weight", "fc.bias"}
    assert (card["rank"], card["alpha"], card["scale"], card["weights"]) == (2, 3.0, 1.5, ["fc1.weight"])
    frozen = {name: array for name, array in values.items() if name not in adapters}
    assert digest(frozen) == card["base_sha256"]  # the proof that it did not move
    values |= {name: array for name, array in adapters.items() if name in values}
    for name in card["weights"]:
        stem = name.removesuffix("weight")
        product = card["scale"] * (adapters[f"{stem}lora_B"] @ adapters[f"{stem}lora_A"])
        values[name] = values[name] + product.reshape(values[name].shape)
    left = load_file(run / "model.safetensors")
    assert all(np.array_equal(values[name], left[name]) for name in left)
    assert "adapters.safetensors" in read_manifest(run).files


def test_logits_of_the_merged_model_are_those_of_the_adapted_one(adapted: tlx.Result) -> None:
    backend, recipe = registry.load("loopback"), adapted.recipe
    model, arch = build_model(recipe, backend, 3)
    specs = backend.param_specs(model)
    drawn, _ = start_of(recipe, backend, model, arch, ("7", "8", "9"))
    left = load_file(adapted.run_dir / "adapters.safetensors")
    backend.load_arrays(model, {**drawn, **left})
    plain, _ = build_model(recipe, backend, 3, merged=True)
    backend.load_arrays(plain, merged({**drawn, **left}, specs, recipe.lora.scale))
    noise = batch(labels=np.zeros(4, np.int64))
    ours, theirs = (backend.fetch([backend.logits(m, backend.put(m, noise))])[0] for m in (model, plain))
    assert np.abs(ours - theirs).max() <= 1e-12 * np.abs(theirs).max()


def test_a_moving_average_is_merged_from_averaged_adapters(base: Path, tmp_path: Path) -> None:
    fields = {**RUN, "weights": str(base), "ema": 0.9, "val_fraction": 0.0}
    run = tlx.run(**fields, out=str(tmp_path / "ema")).run_dir
    state, best = (load_file(next((run / "last").glob(f"{kind}-*"))) for kind in ("state", "best"))
    assert state["ema/fc1.lora_B"].tobytes() == best["fc1.lora_B"].tobytes() != state["model/fc1.lora_B"].tobytes()
    specs = [ParamSpec(name, (), "", "adapter" if "lora" in name else "weight", "") for name in best]
    left = load_file(run / "model.safetensors")["fc1.weight"]
    assert left.tobytes() == merged(best, specs, 2.0)["fc1.weight"].tobytes()


def test_a_backend_that_moves_the_base_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that folds its adapters into the weight as it trains computes the same, and leaves another base."""
    backend: Any = registry.load("loopback")
    update = backend.update

    def folding(model: Any, optimizer: Any, max_norm: float | None = None) -> None:
        update(model, optimizer, max_norm)
        arrays = backend.dump_arrays(model)
        folded = merged(arrays, backend.param_specs(model), model.scale)
        backend.load_arrays(model, {**arrays, **folded, "fc1.lora_B": 0 * arrays["fc1.lora_B"]})

    monkeypatch.setattr(backend, "update", folding)
    with pytest.raises(FrozenMovedError, match=r"first 'fc1\.weight'"):
        tlx.run(**RUN, weights="none", out=str(tmp_path / "run"))


def test_a_backend_that_builds_no_adapters_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend: Any = registry.load("loopback")
    build = backend.build
    monkeypatch.setattr(backend, "build", lambda spec, *place: build(replace(spec, lora=None), *place))
    with pytest.raises(BackendError, match="backend 'loopback' builds no low-rank adapters"):
        tlx.run(**RUN, weights="none", out=str(tmp_path / "run"))


def test_patterns_choose_layers_by_their_paths() -> None:
    linear, convolutions = ("a.mlp.fc1.weight", "a.attn.in_proj_weight"), ("a.conv.weight",)

    def chosen(*patterns: str) -> tuple[str, ...]:
        return choose_weights(Lora(2, 1.0, patterns or None), linear, convolutions, "net")

    assert chosen() == linear
    assert chosen("*") == (*linear, *convolutions)
    assert chosen("*.mlp.*", "a.conv") == ("a.mlp.fc1.weight", "a.conv.weight")
    assert chosen("a.attn") == ("a.attn.in_proj_weight",)
    assert adapter_names("a.attn.in_proj_weight") == ("a.attn.in_proj_lora_A", "a.attn.in_proj_lora_B")
    with pytest.raises(
        RecipeError, match=r"pattern 'a\.mpl' matches no .* of net outside its head\. Did you mean 'a\.mlp"
    ):
        chosen("*", "a.mpl")
    with pytest.raises(
        RecipeError, match=r"net has none outside its head\. Fix: name convolutions .*lora_targets='\*'"
    ):
        choose_weights(Lora(2, 1.0), (), convolutions, "net")


def test_weights_with_adapters_are_known_by_their_roles() -> None:
    specs = [ParamSpec(f"a.{name}", (2, 2), "float32", "adapter", "a") for name in ("lora_A", "lora_B")]
    own = [ParamSpec(f"b.{name}", (2, 2), "float32", "weight", "b") for name in ("lora_A", "lora_B")]
    assert adapted_weights([*specs, *own]) == ("a.weight",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strategy": "full", "rank": 4}, r"strategy 'full' has no rank, but it is 4; .*use one of: lora"),
        ({"strategy": "lora", "rank": 0}, r"rank is 0; expected a finite number, at least 1"),
        ({"strategy": "lora", "alpha": 0.0}, r"alpha is 0\.0; expected .* at least 1e-06"),
        ({"strategy": "lora", "lora_targets": "a,a"}, r"lora_targets is .*all different"),
    ],
)
def test_options_that_make_no_adapters_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe(**fields)


def test_a_resolved_recipe_says_what_its_adapters_are() -> None:
    assert Recipe(strategy="lora").resolved().rank == 8
    assert Recipe(strategy="lora", rank=4, lora_targets=("*.mlp.*",)).lora == Lora(4, 16.0, ("*.mlp.*",))
    assert Recipe(strategy="full").lora is None
    assert Lora(3, 1.0).scale == float(np.float32(1 / 3))


def test_the_table_of_all_strategies_names_what_a_model_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(lora: Lora, linear: Any, convolutions: Any, model: str) -> tuple[str, ...]:
        return choose_weights(lora, (), linear, model)

    monkeypatch.setattr("tlx.conformance.loopback.choose_weights", none)
    strategies(model="tiny-mlp", backend="loopback")
    shown = capsys.readouterr().out
    assert "\n\nlora\n\n  low-rank adapters go on linear layers, and tiny-mlp has none outside its head. Fix: " in shown
    assert "layer_decay" in shown
    with pytest.raises(TlxError, match="tiny-mlp has none"):
        tlx.plan(**LORA)


def test_weights_in_last_are_not_recommended_where_they_are_not_merged(adapted: tlx.Result) -> None:
    """Without the model, the way on is to start again."""
    (adapted.run_dir / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(TlxError, match=r"Whole: .*last/best-\d.*start it again, with: tlx run \S+recipe\.toml$"):
        tlx.evaluate(adapted.run_dir, quiet=True)
