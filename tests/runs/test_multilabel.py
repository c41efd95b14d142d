"""Runs on images that may have several labels: what they learn, what they leave, and what they refuse."""

from __future__ import annotations

import csv
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score

import tlx
from support.backends import FRAMEWORKS
from support.multilabel import CLASSES, digits
from support.pages import CONTRAST, HOSTILE, contents, judged, opened, words_of
from tlx.backend import LOSSES, Capabilities
from tlx.conformance.loopback import Loopback
from tlx.errors import BackendError, Interrupted, RecipeError, RunDamaged, TlxError
from tlx.manifest import REPORT
from tlx.runs.classify import averaged_of_several
from tlx.runs.multilabel import judge_multilabel
from tlx.runs.prediction import write_csv
from tlx.runs.report.page import WRONG, page
from tlx.runs.report.several import Several, shown_of
from tlx.runs.report.verdict import percent
from tlx.runs.table import parse_multilabel
from tlx.training.loop import stalled
from tlx.training.metrics import EpochEnded, Event, Metrics, Stepped
from tlx.training.multilabel import (
    average_precisions,
    choose_thresholds,
    figures,
    losses_of,
    mean_average_precision,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FIELDS: dict[str, Any] = {
    **{"backend": "loopback", "model": "tiny-mlp", "weights": "none", "image_size": 8, "precision": "float64"},
    **{"strategy": "full", "lr": 0.05, "momentum": 0.9, "batch_size": 32, "epochs": 12, "augment": "none"},
    **{"quiet": True, "workers": 0},
}


def train(out: Path, **fields: Any) -> tlx.Result:
    return tlx.run(**{"data": digits(600), **FIELDS, **fields}, out=str(out))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tlx.Result:
    return train(tmp_path_factory.mktemp("multilabel") / "run")


# Its figures.


def test_average_precision_and_f1_are_those_of_scikit_learn() -> None:
    noise = np.random.Generator(np.random.Philox(3))
    labels = noise.integers(0, 2, (200, 5))
    logits = np.round(noise.normal(size=(200, 5)) + labels, 1) * 40  # with ties, and where a sigmoid rounds to 1
    thresholds = choose_thresholds(logits, labels)
    found = figures(logits, labels, thresholds, "abcde")
    assert mean_average_precision(logits, labels) == pytest.approx(
        average_precision_score(labels, logits, average="macro"), rel=1e-12
    )
    answers = (1 / (1 + np.exp(-logits)) >= thresholds).astype(int)
    for name in ("micro", "macro"):
        assert found[f"{name}_f1"] == pytest.approx(f1_score(labels, answers, average=name), rel=1e-12)  # type: ignore[literal-required]


def test_no_other_threshold_has_a_higher_f1_on_the_images_that_chose_it() -> None:
    noise = np.random.Generator(np.random.Philox(4))
    labels = (noise.uniform(size=(80, 3)) < 0.3).astype(np.int64)
    logits = noise.normal(size=(80, 3)) + labels
    odds = 1 / (1 + np.exp(-logits))
    for k, threshold in enumerate(choose_thresholds(logits, labels)):
        chosen = f1_score(labels[:, k], odds[:, k] >= threshold)
        assert chosen == max(f1_score(labels[:, k], odds[:, k] >= other) for other in [0.0, *odds[:, k]])


def test_a_class_that_no_image_has_is_left_out_of_the_mean() -> None:
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    logits = np.array([[3.0, 0.0], [1.0, 2.0], [2.0, 1.0]])
    assert np.isnan(average_precisions(logits, labels)[1]) and mean_average_precision(logits, labels) == 1.0
    assert choose_thresholds(logits, labels)[1] == 0.5


def test_mean_average_precision_chooses_the_best_epoch_and_stops() -> None:
    epochs = [
        EpochEnded(i, "train", Metrics(1.0, 0.0, 9), Metrics(1.0, accuracy, 9, ranked), (), 1.0, i == 0)
        for i, (accuracy, ranked) in enumerate([(0.1, 0.8), (0.2, 0.7), (0.3, 0.6)])
    ]
    assert stalled(epochs, 2) and not stalled(epochs, 3)


# What it leaves.


def test_a_run_learns_several_labels_and_says_how_well(finished: tlx.Result) -> None:
    said = finished.multilabel
    assert said is not None and said["val"] is not None and said["test"] is not None
    assert finished.calibration is None and tuple(said["thresholds"]) == CLASSES
    ranked = [epoch["val_average_precision"] for epoch in finished.history]
    best = finished.history[finished.best_epoch - 1]
    assert best["val_average_precision"] == max(ranked) == said["val"]["average_precision"]
    assert ranked[0] < 0.97 < said["test"]["average_precision"] and "test mAP" in repr(finished)
    saved = json.loads((finished.run_dir / "result.json").read_text())
    assert saved["multilabel"] == said
    assert json.loads((finished.run_dir / "card.json").read_text())["thresholds"] == [*said["thresholds"].values()]


def test_its_table_holds_labels_answers_and_probabilities(finished: tlx.Result) -> None:
    data = tlx.load_data(digits(600))
    assert data.test is not None and finished.multilabel is not None and finished.multilabel["test"] is not None
    with (finished.run_dir / "predictions-test.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    labels = np.array([[name in row["labels"].split("|") for name in CLASSES] for row in rows]).astype(int)
    assert (labels == data.test.labels).all()
    odds = np.array([[float(row[f"probability of {name}"]) for name in CLASSES] for row in rows])
    assert average_precision_score(labels, odds) == pytest.approx(finished.multilabel["test"]["average_precision"])
    answers = np.array([[name in row["prediction"].split("|") for name in CLASSES] for row in rows])
    assert (answers == (odds >= [*finished.multilabel["thresholds"].values()])).all()
    mean = np.mean([float(row["loss"]) for row in rows])
    again = tlx.evaluate(finished.run_dir, quiet=True, data=digits(600), csv=finished.run_dir.parent / "again.csv")
    assert again["test_loss"] == pytest.approx(mean, rel=1e-12) and again["multilabel"] == finished.multilabel["test"]
    assert again["test_accuracy"] == again["recorded_accuracy"] == finished.test_accuracy
    written = (finished.run_dir.parent / "again.csv").read_text()
    assert written == (finished.run_dir / "predictions-test.csv").read_text()


def test_predictions_name_every_label_that_reaches_its_threshold(finished: tlx.Result, tmp_path: Path) -> None:
    images = digits(600)["all"][0][:40]
    rows: list[Any] = tlx.predict(finished.run_dir, images, quiet=True)
    assert finished.multilabel is not None
    for row in rows:
        odds = {entry["class"]: entry["probability"] for entry in row["top"]}
        assert set(odds) == set(CLASSES) and row["class"] == "|".join(row["labels"])
        assert {name for name, p in odds.items() if p >= finished.multilabel["thresholds"][name]} == {*row["labels"]}
    assert {len(row["labels"]) for row in rows} > {1, 2}
    write_csv(tmp_path / "out.csv", rows)
    assert (tmp_path / "out.csv").read_text().splitlines()[0].startswith('"path","prediction","probability of above')


def test_thresholds_are_a_half_without_a_validation_part(tmp_path: Path) -> None:
    result = train(tmp_path / "run", val_fraction=0, epochs=1)
    assert result.multilabel is not None and result.multilabel["val"] is None
    assert {*result.multilabel["thresholds"].values()} == {0.5}
    assert judge_multilabel(tlx.load_data(digits(600)), {})["test"] is None


def test_a_run_that_was_stopped_ends_bit_for_bit_as_the_whole_one(tmp_path: Path) -> None:
    steps = []

    def stop(event: Event) -> None:
        steps.append(event)
        if sum(isinstance(one, Stepped) for one in steps) == 20:  # in the second epoch
            os.kill(os.getpid(), signal.SIGINT)

    job: dict[str, Any] = {"epochs": 3, "label_smoothing": 0.1, "mixup": 0.4, "micro_batch": 7}
    whole = train(tmp_path / "whole", **job)
    with pytest.raises(Interrupted):
        train(tmp_path / "run", **job, on_event=stop)
    again = tlx.run(resume=tmp_path / "run", data=digits(600), quiet=True)
    assert again.multilabel == whole.multilabel
    for name in ("model.safetensors", "predictions-val.csv", "logits-test.npy"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.needs(*FRAMEWORKS)
def test_both_frameworks_have_the_same_numbers(tmp_path: Path) -> None:
    """In float64, with soft targets, through a frozen phase with cached features and one that trains everything."""
    job: dict[str, Any] = {
        **{"model": "squeezenet1_1", "image_size": 32, "strategy": "head_then_full", "epochs": 2, "batch_size": 16},
        **{"label_smoothing": 0.1, "lr": 0.01, "data": digits(60), "val_fraction": 0.2},
    }
    torch, flow = (train(tmp_path / name, **job, backend=name) for name in FRAMEWORKS)
    for a, b in zip(torch.history, flow.history, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-9)
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-9)
        assert a["val_average_precision"] == pytest.approx(b["val_average_precision"], rel=1e-9)
    logits = [np.load(result.run_dir / "logits-test.npy") for result in (torch, flow)]
    assert np.abs(logits[0] - logits[1]).max() <= 1e-9 * np.abs(logits[0]).max()
    assert torch.multilabel is not None and flow.multilabel is not None
    assert torch.multilabel["thresholds"] == pytest.approx(flow.multilabel["thresholds"], rel=1e-9)


# Its page.


def test_its_page_has_the_figures_of_each_class_and_is_drawn_again_byte_for_byte(finished: tlx.Result) -> None:
    page = finished.run_dir / REPORT
    before, text = page.read_bytes(), words_of(page.read_text(encoding="utf-8"))
    assert finished.multilabel is not None and finished.multilabel["test"] is not None
    figures = finished.multilabel["test"]
    assert f"(mAP) on 120 test images is {figures['average_precision']:.3f}" in text
    for row in figures["classes"]:
        said = f"{row['average_precision']:.3f} {row['f1']:.3f} {row['threshold']:.3f} {row['images']}"
        assert f"{row['class']} {said}" in text
    with (finished.run_dir / "predictions-test.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    worst, right = max(rows, key=lambda row: float(row["loss"])), sum(r["labels"] == r["prediction"] for r in rows)
    assert f"all labels are right for {percent(right / len(rows))}".replace("\u00a0", " ") in text
    assert not {"confusion", "balanced", "temperature"} & {*text.lower().split()}
    assert f'title="{worst["path"]}"' in page.read_text().partition('id="wrong"')[2].partition("</figure>")[0]
    assert "mean average precision on the test images" in finished._repr_html_()
    tlx.report(finished.run_dir, data=digits(600))
    assert page.read_bytes() == before
    tlx.report(finished.run_dir, finished.run_dir.parent / "blind.html")  # without the data, which was a Python object
    assert "the image cannot be had" in (finished.run_dir.parent / "blind.html").read_text()


def test_without_a_test_part_the_page_says_that_its_figures_are_optimistic(tmp_path: Path) -> None:
    result = train(tmp_path / "run", test_fraction=0.0, epochs=2)
    text = words_of((result.run_dir / REPORT).read_text(encoding="utf-8"))
    assert "validation images is" in text and "these images also chose the epoch and the thresholds" in text
    assert "mean average precision on the validation images" in result._repr_html_()


def test_of_many_classes_a_page_shows_those_with_the_lowest_average_precision() -> None:
    noise, skill = np.random.default_rng(5), np.linspace(0, 6, 150)
    labels = (noise.uniform(size=(80, 150)) < 0.2).astype(np.int64)
    labels[:, 7] = 0
    classes = [f"class {k}" for k in range(150)]
    part = Several(labels, noise.normal(size=(80, 150)) + skill * labels, np.full(150, 0.5), str)
    shown = shown_of(part, classes, 3)
    names = [row["class"] for row in shown.rows]
    assert len(names) == 100 and "class 7" not in names and names == sorted(names, key=classes.index)
    kept = [row["average_precision"] or 0.0 for row in shown.rows]
    left_out = [row["average_precision"] for row in shown.figures["classes"] if row["class"] not in {*names, "class 7"}]
    assert max(kept) <= min(value for value in left_out if value is not None)
    losses = [shot["loss"] for shot in shown.shots]
    assert losses == sorted(losses, reverse=True) and losses[0] == losses_of(part.logits, labels).max()
    assert "more" in shown.shots[0]["labels"]  # of some thirty labels


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("probability of prime", "probability of cat"),
        lambda text: text.replace('"even"', '"a class of another run"', 1),
        lambda text: text.rstrip().rpartition(",")[0],
        lambda text: text.replace("0.", '"0.', 1),
        lambda text: "",
    ],
)
def test_a_table_that_is_damaged_is_one_line(change: Any, finished: tlx.Result) -> None:
    path = finished.run_dir / "predictions-test.csv"
    text = path.read_text()
    assert len(parse_multilabel(text.encode(), path, CLASSES).path) == 120
    with pytest.raises(RunDamaged, match=r"predictions-test\.csv is damaged: "):
        parse_multilabel(change(text).encode(), path, CLASSES)


def test_names_of_classes_do_no_harm_to_its_page(browser: Browser, tmp_path: Path) -> None:
    noise = np.random.default_rng(6)
    labels = noise.integers(0, 2, (30, len(HOSTILE)))
    made = judged(30, 2)
    part = Several(labels, noise.normal(size=labels.shape), np.full(len(HOSTILE), 0.5), made.name, made.open)
    html = page(replace(contents(HOSTILE, parts=(), multilabel={"test": None}), several={"test": part}))
    with opened(browser, html, tmp_path, width=380) as seen:
        assert seen.page.evaluate("window.hacked") is None and not seen.said and not seen.asked
        assert seen.page.locator("#wrong figure").count() == WRONG and seen.page.locator("#wrong .gone").count() == 0
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 380
        assert seen.page.locator("#classes tbody tr").count() == len(HOSTILE) and "\u202e" not in html


def test_one_page_compares_runs_of_several_labels_and_of_no_other_kind(
    finished: tlx.Result, browser: Browser, tmp_path: Path
) -> None:
    short, single = train(tmp_path / "short", epochs=1), train(tmp_path / "single", data="digits", epochs=1)
    page = tlx.report([short.run_dir, finished.run_dir], tmp_path / "both.html", quiet=True).read_text(encoding="utf-8")
    assert finished.multilabel is not None and finished.multilabel["test"] is not None
    figures: Any = finished.multilabel["test"]
    value = figures["average_precision"]
    assert f"run is best, with a mean average precision (mAP) of {value:.3f} on its test images" in words_of(page)
    with opened(browser, page, tmp_path) as seen:
        rows = [row.strip().split("\t") for row in seen.page.locator("#figures tbody tr").all_inner_texts()]
        assert rows[0][:4] == ["run", *(f"{figures[n]:.3f}" for n in ("average_precision", "micro_f1", "macro_f1"))]
        assert rows[1][0] == "short" and seen.page.locator("#together").count() == 0
        titles = seen.page.locator("#curves figcaption").all_inner_texts()
        assert titles == ["Training loss", "Validation loss", "Validation mAP"] and not seen.said
    with pytest.raises(TlxError, match=r"may have several in others, .* Fix: compare those of one kind"):
        tlx.report([finished.run_dir, single.run_dir], tmp_path / "mixed.html", quiet=True)


def test_its_page_is_quiet_and_readable_in_a_browser(finished: tlx.Result, browser: Browser, tmp_path: Path) -> None:
    html = (finished.run_dir / REPORT).read_text(encoding="utf-8")
    for scheme, width in (("light", 1400), ("dark", 380)):
        with opened(browser, html, tmp_path, width=width, scheme=scheme) as seen:  # type: ignore[arg-type]
            shown = seen.page.eval_on_selector_all("section[id]", "nodes => nodes.map((node) => node.id)")
            assert shown[:4] == ["curves", "classes", "wrong", "batch"]
            assert {"confusion", "trust", "unsure"}.isdisjoint(shown)
            seen.page.locator("#classes thead th:nth-child(2) button").click()
            values = seen.page.locator("#classes tbody td:nth-child(2)").all_inner_texts()
            assert len(values) == len(CLASSES) and values == sorted(values)
            count, low = seen.page.evaluate(CONTRAST)
            assert count > 100 and not low and not seen.said and not seen.asked
            assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_mirror_image_counts_by_its_probability_with_several_labels_too(finished: tlx.Result) -> None:
    images = digits(90)["all"][0]
    views = (images, np.ascontiguousarray(images[:, :, ::-1]))

    def odds(given: Any, **options: Any) -> NDArray[np.float64]:
        rows: Any = tlx.predict(finished.run_dir, given, quiet=True, **options)
        return np.array(
            [[{e["class"]: e["probability"] for e in row["top"]}[name] for name in CLASSES] for row in rows]
        )

    one, other = map(odds, views)
    assert np.abs(one - other).max() > 0.1  # a mean of two equal numbers would show nothing
    for given in views:
        np.testing.assert_allclose(odds(given, tta="hflip"), (one + other) / 2, rtol=1e-9, atol=0)
    part = digits(90)
    found = tlx.evaluate(finished.run_dir, data=part, tta="hflip", quiet=True)
    expected = average_precision_score(part["all"][1], (one + other) / 2, average="macro")
    assert found["multilabel"] is not None and found["tta"] == "hflip"
    assert found["multilabel"]["average_precision"] == pytest.approx(expected, rel=1e-12)


def test_the_mean_of_two_probabilities_keeps_its_digits_far_from_zero() -> None:
    ends = np.array([[-800.0, 800.0, -40.0, 0.0]])
    assert np.array_equal(averaged_of_several(ends, ends), ends)
    one, other = np.array([[-50.0, 50.0]]), np.array([[-52.0, 52.0]])
    low = np.log((np.exp(-50.0) + np.exp(-52.0)) / 2)
    np.testing.assert_allclose(averaged_of_several(one, other), [[low, -low]], rtol=1e-12)


# What it refuses.


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"class_weights": "balanced"}, "class_weights weighs the one label of an image"),
        ({"sampler": "balanced"}, "sampler balanced shows each class equally often"),
        ({"strategy": "knn", "class_weights": "balanced"}, "class_weights"),
    ],
)
def test_what_needs_one_label_is_refused_before_the_run(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    job = {**FIELDS, **fields}
    if "strategy" in fields:
        job = {k: v for k, v in job.items() if k not in ("momentum", "epochs", "lr")}
    with pytest.raises(RecipeError, match=said):
        tlx.run(data=digits(100), **job, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_backend_without_the_loss_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    can = Loopback().capabilities()
    monkeypatch.setattr(
        Loopback,
        "capabilities",
        lambda self: Capabilities(
            can.versions, can.devices, can.precisions, can.optimizers, can.models, can.deterministic
        ),
    )
    with pytest.raises(BackendError, match=f"'loopback' has no loss for several labels \\({LOSSES[1]}\\)"):
        train(tmp_path / "run")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run: tlx.load_predictions(run), "load_predictions needs one label"),
        (lambda run: tlx.predict(run, digits(9)["all"][0], reject=0.1), "reject needs one label"),
        (lambda run: tlx.predict(run, digits(9)["all"][0], calibrated=True), "calibrated needs one label"),
        (lambda run: tlx.evaluate(run, data=digits(100), top=2), "top needs one label"),
        (lambda run: tlx.evaluate(run, data="digits", quiet=True), "have one label each, but those of .* several"),
        (lambda run: tlx.report(run, explain=True, data=digits(600)), "explain needs one label"),
        (lambda run: tlx.check(digits(60), quiet=True), "images of .* may have several"),
    ],
)
def test_what_needs_one_label_is_refused_of_a_finished_run(finished: tlx.Result, call: Any, said: str) -> None:
    with pytest.raises(TlxError, match=said):
        call(finished.run_dir)
