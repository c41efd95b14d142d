"""The whole job on the NumPy backend: what a run does, returns and leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import tlx
from tlx.backend import Array, ModelSpec, registry
from tlx.conformance.loopback import Loopback
from tlx.errors import BackendError, FrozenMovedError, TlxError, WeightsError
from tlx.models.initial_values import initial_values
from tlx.models.weights import write_safetensors
from tlx.models.zoo import architecture
from tlx.strategy.schedule import drops
from tlx.training.loop import stalled
from tlx.training.metrics import EpochEnded, Metrics, better

FIELDS: dict[str, Any] = {
    "backend": "loopback",
    "model": "tiny-mlp",
    "weights": "none",
    "data": "digits",
    "image_size": 8,
    "augment": "none",
    "limit_train": 300,
    "limit_test": 100,
    "batch_size": 32,
    "lr": 0.05,
    "quiet": True,
}
KEYS = [
    "backend",
    "strategy",
    "model",
    "test_accuracy",
    "val_accuracy",
    "best_epoch",
    "epochs_run",
    "history",
    "trainable_parameters",
    "total_parameters",
    "train_images_per_second",
    "wall_seconds",
    "processes",
    "versions",
    "notes",
    "groups",
    "frozen",
    "calibration",
    *("multilabel", "val_balanced_accuracy", "val_macro_f1", "test_balanced_accuracy", "test_macro_f1"),
    "recipe",
    "run_dir",
]


@pytest.fixture
def run(tmp_path: Path) -> Any:
    count = iter(range(100))
    return lambda **fields: tlx.run(**{**FIELDS, "out": str(tmp_path / f"run{next(count)}"), **fields})


def test_a_run_learns_and_leaves_everything_behind(run: Any) -> None:
    result = run(epochs=8)
    assert result.test_accuracy > 0.6
    assert sorted(path.name for path in result.run_dir.iterdir()) == [
        "card.json",
        "history.jsonl",
        "last",
        "logits-test.npy",
        "logits-val.npy",
        "manifest.json",
        "model.safetensors",
        "predictions-test.csv",
        "predictions-val.csv",
        "recipe.toml",
        "report.html",
        "result.json",
    ]
    saved = json.loads((result.run_dir / "result.json").read_text())
    assert sorted(saved) == sorted(KEYS) and saved == json.loads(json.dumps(result.to_dict()))
    history = [json.loads(line) for line in (result.run_dir / "history.jsonl").read_text().splitlines()]
    assert history == result.history and [entry["epoch"] for entry in history] == list(range(1, 9))
    card = json.loads((result.run_dir / "card.json").read_text())
    assert card["classes"] == [str(digit) for digit in range(10)] and card["model"] == "tiny-mlp"
    assert result.trainable_parameters == result.total_parameters > 0
    assert {"python", "numpy", "tlx"} <= set(result.versions)


def test_the_saved_recipe_repeats_the_run_bit_for_bit(run: Any) -> None:
    first = run(epochs=2, augment="flips")
    again = tlx.run(first.run_dir / "recipe.toml", out=str(first.run_dir) + "-again", quiet=True)
    other = run(epochs=2, augment="flips", seed=1)
    values = [load_file(r.run_dir / "model.safetensors") for r in (first, again, other)]
    assert all(np.array_equal(values[0][name], values[1][name]) for name in values[0])
    assert not np.array_equal(values[0]["fc.weight"], values[2]["fc.weight"])


def test_the_best_epoch_is_restored(run: Any) -> None:
    # Rates that fall to nothing after a good start, then a collapse: the warm-up ends in a rate that destroys.
    result = run(epochs=6, warmup=5.9, lr=2.0, val_fraction=0.3)
    accuracies = [entry["val_accuracy"] for entry in result.history]
    assert result.best_epoch == 1 + accuracies.index(max(accuracies)) < 6
    assert result.val_accuracy == max(accuracies) > accuracies[-1]
    shorter = run(epochs=6, warmup=5.9, lr=2.0, val_fraction=0.3)
    assert tlx.evaluate(shorter.run_dir, quiet=True)["test_accuracy"] == result.test_accuracy


def test_without_a_validation_part_the_last_epoch_counts(run: Any) -> None:
    result = run(epochs=2, val_fraction=0)
    assert (result.best_epoch, result.val_accuracy) == (2, None)


def test_patience_stops_after_so_many_epochs_without_a_better_one(run: Any) -> None:
    # The warm-up ends in a rate that destroys, so the best epoch comes early.
    result = run(epochs=9, warmup=8.9, lr=2.0, val_fraction=0.3, patience=2)
    assert result.epochs_run == result.best_epoch + 2 < 9
    accuracies = [entry["val_accuracy"] for entry in result.history]
    assert max(accuracies) == accuracies[-3] >= max(accuracies[-2:])


def test_plateau_lowers_the_rate_for_the_next_epoch(run: Any) -> None:
    result = run(epochs=7, lr=2.0, schedule="plateau", step_size=1, gamma=0.25, val_fraction=0.3)
    losses, rates = ([entry[name] for entry in result.history] for name in ("val_loss", "lr"))
    expected = [2.0 * 0.25 ** drops(losses[:epoch], 1) for epoch in range(7)]
    assert [rate for (rate,) in rates] == expected and expected[-1] < 2.0


def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(run: Any) -> None:
    """Without statistics of the batch, which depend on what enters together."""
    source = run(model="tiny-mlp-dropout", epochs=1, precision="float64")
    fields = {"strategy": "feature_extract", "weights": str(source.run_dir), "model": "tiny-mlp-dropout", "epochs": 2}
    runs = [run(**fields, precision="float64", clip_norm=0.5, micro_batch=size) for size in (None, 5, 32, 100)]
    values = [load_file(r.run_dir / "model.safetensors") for r in runs]
    for name, whole in values[0].items():
        for parts in values[1:]:
            np.testing.assert_allclose(parts[name], whole, rtol=1e-12, atol=1e-14)
    assert not np.array_equal(values[0]["fc.weight"], load_file(source.run_dir / "model.safetensors")["fc.weight"])


def test_clipping_bounds_a_step(run: Any) -> None:
    start = initial("tiny-mlp", seed=0)
    moved = []
    for norm in (1e-3, 1e-2):
        result = run(clip_norm=norm, batch_size=270, epochs=1, momentum=0.0, weight_decay=0.0, lr=1.0)
        after = load_file(result.run_dir / "model.safetensors")
        steps = [
            after[name] - start[name] for name in start if not name.startswith("bn1.running") and "num" not in name
        ]
        moved.append(np.sqrt(sum(float((step.astype(np.float64) ** 2).sum()) for step in steps)))
    assert moved == pytest.approx([1e-3, 1e-2], rel=1e-3)


def initial(model: str, seed: int) -> dict[str, Array]:
    backend, arch = registry.load("loopback"), architecture(model)
    built = backend.build(ModelSpec(model, 10, arch.head), "cpu", "float32")
    return initial_values(backend.param_specs(built), arch, "none", seed)[0]


def test_the_moving_average_is_what_is_judged_and_kept(run: Any) -> None:
    """A decay of 0 is no average at all; a slow one lags behind the weights."""
    plain, same, slow = run(epochs=1), run(epochs=1, ema=0.0), run(epochs=1, ema=0.999)
    values = [load_file(r.run_dir / "model.safetensors") for r in (plain, same, slow)]
    assert all(np.allclose(values[0][name], values[1][name], rtol=1e-5, atol=1e-6) for name in values[0])
    start = initial("tiny-mlp", seed=0)
    far, near = (np.linalg.norm(v["fc1.weight"] - start["fc1.weight"]) for v in (values[0], values[2]))
    assert 0 < near < far and slow.history[-1]["val_loss"] != plain.history[-1]["val_loss"]
    assert tlx.evaluate(slow.run_dir, quiet=True)["test_accuracy"] == slow.test_accuracy


def test_a_strategy_of_ones_own_is_saved_and_repeated(run: Any) -> None:
    mine = tlx.Strategy(
        "mine",
        (tlx.Group("norms", "role:norm", weight_decay=0.0), tlx.Group("rest", "!role:norm")),
        (tlx.Phase("all", {"norms": 0.01, "rest": 0.05}), tlx.Phase("rest", {"rest": 0.01}, start=1)),
    )
    first = run(strategy=mine, lr=None, epochs=2)
    again = tlx.run(first.run_dir / "recipe.toml", out=str(first.run_dir) + "-again", quiet=True)
    assert again.recipe.strategy == mine and first.strategy == "mine"
    values = [load_file(r.run_dir / "model.safetensors") for r in (first, again)]
    assert all(np.array_equal(values[0][name], values[1][name]) for name in values[0])
    assert [entry["phase"] for entry in first.history] == ["all", "rest"]


def test_feature_extract_keeps_the_backbone_bit_for_bit(run: Any) -> None:
    source = run(epochs=1)
    for frozen_norm in ("keep", "adapt"):
        result = run(strategy="feature_extract", weights=str(source.run_dir), epochs=2, seed=3, frozen_norm=frozen_norm)
        before, after = (load_file(r.run_dir / "model.safetensors") for r in (source, result))
        moved = {name for name in before if not np.array_equal(before[name], after[name])}
        statistics = {"bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"} & set(before)
        assert moved == {"fc.weight", "fc.bias"} | (statistics if frozen_norm == "adapt" else set())


def test_a_backend_that_moves_what_is_frozen_is_convicted(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = registry.load("loopback")
    honest = backend.update

    def leak(model: Any, optimizer: Any, max_norm: float | None = None) -> None:
        honest(model, optimizer, max_norm)
        arrays = backend.dump_arrays(model)
        backend.load_arrays(model, {**arrays, "fc1.bias": arrays["fc1.bias"] + np.float32(1e-6)})

    monkeypatch.setattr(backend, "update", leak)
    with pytest.raises(FrozenMovedError, match=r"first 'fc1\.bias'"):
        run(strategy="feature_extract", epochs=1)
    assert run(strategy="full", epochs=1).epochs_run == 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, on the way to infinity
@pytest.mark.parametrize(
    "fields", [{"lr": 1e30}, {"lr": 3e38}, {"lr": 1e30, "optimizer": "adam"}, {"lr": 1e30, "ema": 0.9}]
)
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step_and_an_array(
    fields: dict[str, Any], run: Any
) -> None:
    with pytest.raises(
        TlxError, match=r"The train loss is (nan|inf) in epoch \d, step \d+ of 9: .*'\w+\.\w+'"
    ) as error:
        run(**fields, epochs=5)
    assert error.value.fix.startswith("lower lr")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("save_seconds", "when"), [(60, "in epoch 1: '"), (0, "by step 1: 'model/")])
def test_a_gradient_that_is_not_finite_stops_the_run_even_if_no_loss_shows_it(
    save_seconds: float, when: str, run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At the epoch's end, and before anything is saved; an epoch of one step ends with its update."""
    backend = registry.load("loopback")
    honest = backend.update

    def explode(model: Any, optimizer: Any, max_norm: float | None = None) -> None:
        model.grads["bn1.bias"] = np.full_like(model.grads["bn1.bias"], np.inf)
        honest(model, optimizer, max_norm)

    monkeypatch.setattr(backend, "update", explode)
    with pytest.raises(TlxError) as error:
        run(batch_size=300, val_fraction=0, save_seconds=save_seconds, out=str(tmp_path / "stopped"))
    assert f"Training has gone wrong {when}bn1.bias' holds numbers that are not finite" in str(error.value)
    assert not (tmp_path / "stopped" / "last").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_and_named(bad: float, run: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    arrays = initial("tiny-mlp", seed=0)
    arrays["bn1.running_var"][3] = bad
    write_safetensors(path, arrays)
    with pytest.raises(WeightsError, match=r"Weights for tiny-mlp are not finite .* bn1\.running_var"):
        run(weights=str(path))
    arrays["bn1.running_var"][3] = 1
    arrays["fc.bias"][3] = bad  # of the head, which is drawn anew
    write_safetensors(path, arrays)
    assert run(weights=str(path), epochs=1).epochs_run == 1


def test_a_batch_larger_than_the_data_is_the_whole_of_it(run: Any) -> None:
    whole, larger = run(batch_size=270, epochs=1), run(batch_size=500, epochs=1)
    values = [load_file(r.run_dir / "model.safetensors") for r in (whole, larger)]
    assert all(np.array_equal(values[0][name], values[1][name]) for name in values[0])
    assert "batch_size is 500, and there are 270 training images: an epoch is one batch" in larger.notes


def epoch(number: int, accuracy: float, loss: float, best: bool = False) -> EpochEnded:
    measured = Metrics(loss, accuracy, 10)
    return EpochEnded(number, "train", measured, measured, (0.1,), 1.0, best)


def test_the_lower_loss_decides_between_epochs_of_one_accuracy(run: Any) -> None:
    assert better(Metrics(0.4, 0.5, 10), Metrics(0.5, 0.5, 10))
    assert not better(Metrics(0.5, 0.5, 10), Metrics(0.5, 0.5, 10))
    assert not better(Metrics(0.1, 0.4, 10), Metrics(0.5, 0.5, 10))
    result = run(epochs=8, val_fraction=0.04, seed=7)  # 12 images, of which the same number is often right
    scores = [(e["val_accuracy"], -(e["val_loss"] or 0.0)) for e in result.history]
    accuracies = [accuracy for accuracy, _ in scores]
    assert accuracies.count(max(accuracies)) > 1 and result.best_epoch == 1 + scores.index(max(scores))
    assert result.best_epoch != 1 + accuracies.index(max(accuracies))


def test_patience_waits_for_accuracy_alone() -> None:
    history = [epoch(0, 0.5, 0.9, True), epoch(1, 0.5, 0.8, True), epoch(2, 0.5, 0.7, True)]
    assert stalled(history, 2) and not stalled(history, 3) and not stalled(history, None)
    assert not stalled([*history, epoch(3, 0.6, 2.0, True)], 2)


def test_what_is_likely_to_be_wrong_is_said_in_a_line_each(run: Any) -> None:
    stuck = run(lr=1e-9, epochs=1, val_fraction=0.04, schedule="step")
    said = "\n".join(stuck.notes)
    for note in (
        "the validation part has 12 images: one more right is 8 points",
        "schedule step drops nothing: step_size is 7, and epochs 1",
        "the training loss stayed at ln(10) = 2.30, which is guessing; try another lr, or more epochs",
        "the run had 9 steps in all; try more epochs, or a smaller batch_size",
    ):
        assert note in said
    assert json.loads((stuck.run_dir / "result.json").read_text())["notes"] == stuck.notes
    labels = np.array([0, 1] * 40)
    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8, 3)).astype(np.uint8)
    noise = {"train": (images, labels), "test": (images[:10] // 2, np.array([0] * 8 + [1] * 2))}
    guessing = run(data=noise, limit_train=None, limit_test=None, epochs=1, lr=0.5, class_weights="balanced")
    assert "class_weights has nothing to weigh: each class has 36 training images" in guessing.notes
    lines = [note for note in guessing.notes if "always answering" in note]
    expected = "the test accuracy is not above that of always answering '0', which is 0.8000"
    assert lines == ([expected] if (guessing.test_accuracy or 0) <= 0.8 else [])
    good = run(epochs=8)
    assert not any(word in note for note in good.notes for word in ("stayed", "answering", "steps in all"))


def test_nothing_is_overwritten(run: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(TlxError, match="is not empty, and tlx overwrites nothing"):
        run(out=str(tmp_path / "mine"), epochs=1)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_link_to_nothing_in_the_place_of_runs_is_one_line(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each number would be taken for that of another run, for ever."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to("nowhere")
    with pytest.raises(TlxError, match=r"Cannot create runs/.*-1\. Choose another folder with out"):
        run(out=None, epochs=1)


def test_a_name_that_is_too_long_for_the_folder_leaves_none(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / f"{'n' * 240}.npz", images=np.zeros((40, 8, 8), np.uint8), labels=np.arange(40) % 2)
    with pytest.raises(TlxError, match=r"File name too long\. Choose another folder with out"):
        run(data=f"{'n' * 240}.npz", out=None, epochs=1, limit_train=None, limit_test=None)
    assert not (tmp_path / "runs").exists()


def test_arrays_in_python(run: Any) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    images = (rng.integers(0, 120, (80, 8, 8, 3)) + 130 * labels[:, None, None, None]).astype(np.uint8)
    both = run(data={"train": (images, labels), "test": (images[:20], labels[:20])}, limit_train=None, limit_test=None)
    assert both.test_accuracy == 1.0 and both.recipe.to_dict()["data"] == "<arrays>"
    untested = run(data={"train": (images, labels)}, limit_train=None, limit_test=None, epochs=1)
    assert untested.test_accuracy is None


def test_evaluate_repeats_the_recorded_accuracy_and_refuses_what_is_damaged(run: Any, tmp_path: Path) -> None:
    result = run(epochs=2)
    found = tlx.evaluate(result.run_dir, quiet=True)
    assert found["test_accuracy"] == found["recorded_accuracy"] == result.test_accuracy and found["images"] == 100
    for name, content, said in (
        ("card.json", None, "card.json is missing"),
        ("card.json", b"{", "card.json is damaged"),
        ("model.safetensors", b"junk", "damaged"),
        ("recipe.toml", b"epochs=", "recipe.toml is damaged"),
    ):
        copy = Path(shutil.copytree(result.run_dir, tmp_path / f"{name}-{content is None}"))
        (copy / name).unlink() if content is None else (copy / name).write_bytes(content)
        with pytest.raises(TlxError, match=said):
            tlx.evaluate(copy, quiet=True)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"backend": "torhc"}, "Unknown backend 'torhc'. Did you mean 'torch'"),
        ({"device": "cuda"}, "has no device 'cuda' here; it has cpu"),
        ({"precision": "bfloat16"}, "has no native bfloat16 on cpu"),
        ({"model": "resnet18"}, "has no model 'resnet18'"),
        ({"data": "digit"}, "Did you mean 'digits'"),
        ({"augment": "flip"}, "unknown op 'flip'"),
        ({"patience": 1, "val_fraction": 0}, "patience watches the validation part, but there is none"),
        ({"schedule": "plateau", "val_fraction": 0}, "schedule 'plateau' watches the validation part"),
        ({"strategy": "head_then_full", "epochs": 1}, "phase 'full' starts after the last epoch; raise epochs"),
        ({"strategy": "partial", "stages": "fc9"}, "tiny-mlp has no stage 'fc9'. Did you mean 'fc1'"),
        # /proc refuses new folders even to root.
        ({"out": "/proc/tlx/run"}, "Cannot write to /proc/tlx/run: "),
        ({"lrr": 1}, "unknown field 'lrr'. Did you mean 'lr'"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    fields: dict[str, Any], said: str, run: Any, tmp_path: Path
) -> None:
    with pytest.raises(TlxError) as error:
        run(**fields)
    assert said in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_backend_made_for_an_earlier_tlx_is_told_what_lacks(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = Loopback.evaluate
    monkeypatch.setattr(Loopback, "evaluate", lambda *arguments: evaluate(*arguments)[:2])
    with pytest.raises(BackendError, match=r"'loopback': evaluate returns 2 values.*let it return what its logits"):
        run()
