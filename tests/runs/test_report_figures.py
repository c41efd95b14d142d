"""What a page counts, says and embeds, on predictions that no run made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tlx
from support.pages import HOSTILE, contents, judged, summary, words_of
from tlx.backend import Preprocess
from tlx.data import Augment, Loader
from tlx.data.mixing import Targets
from tlx.errors import TlxError
from tlx.runs.confidence import calibration_error
from tlx.runs.report.album import FULL, GONE, Album, heated, uris_in
from tlx.runs.report.comparison import comparison_of, mcnemar
from tlx.runs.report.contents import first_batch
from tlx.runs.report.figures import confusion, interval, least_sure, most_wrong, reliability
from tlx.runs.report.page import page
from tlx.runs.report.summary import summary_of
from tlx.runs.report.verdict import percent, verdict_of
from tlx.runs.scores import class_scores

# What it counts.


def test_the_figures_of_classes_are_those_of_scikit_learn() -> None:
    from sklearn import metrics

    made = judged(300, 7)
    made = replace(made, labels=np.where(made.labels == 6, 5, made.labels))  # the last one only as a prediction
    table = class_scores(made.labels, made.predictions, 8)
    expected = metrics.precision_recall_fscore_support(made.labels, made.predictions, labels=range(7), zero_division=0)
    for ours, theirs in zip((table.precision, table.recall, table.f1, table.support), expected, strict=True):
        np.testing.assert_allclose(np.nan_to_num(ours[:7]), theirs)
    assert table.macro_f1 == pytest.approx(metrics.f1_score(made.labels, made.predictions, average="macro"))
    with pytest.warns(UserWarning, match="not in y_true"):
        balanced = metrics.balanced_accuracy_score(made.labels, made.predictions)
    assert table.balanced_accuracy == pytest.approx(balanced)
    assert table.rows() == list(range(7)) and np.isnan(table.f1[7])


def test_of_many_classes_the_matrix_shows_those_that_are_confused_most() -> None:
    made = judged(4000, 2)
    made = replace(made, labels=np.arange(4000) * 2)
    predictions = made.labels.copy()
    predictions[:40], made.labels[:40] = 7, 9000
    predictions[40:60], made.labels[40:60] = 5, 6
    counted = confusion(replace(made, predictions=predictions), 10_000)
    assert len(counted.classes) == 12 and {5, 6, 7, 9000} <= {*counted.classes}
    assert counted.pairs[:2] == [(9000, 7, 40), (6, 5, 20)]
    place = {name: i for i, name in enumerate(counted.classes)}
    assert counted.counts[place[9000], place[7]] == 40
    assert counted.counts.sum() + counted.outside == 4000


def test_mistakes_come_in_the_order_of_their_loss_and_numbers_that_are_none_break_nothing() -> None:
    made = judged(50, 3)
    for column in (made.probability, made.loss, made.margin):
        column[:4] = [np.nan, np.inf, -np.inf, np.nan]
    rows = most_wrong(made, 50)
    assert {*rows} == {*np.flatnonzero(~made.correct)}
    losses = np.nan_to_num(made.loss[rows], nan=np.inf)
    assert (np.diff(losses[np.isfinite(losses)]) <= 0).all()
    assert {*least_sure(made, 3)} == {0, 2, 3}
    assert sum(one.images for one in reliability(made.probability, made.correct)) == 46
    drawn = page(replace(contents(), parts={"test": made}))
    assert "nan" not in words_of(drawn).lower().split()


def test_the_bins_are_those_of_the_calibration_error() -> None:
    made = judged(500, 4)
    bins = reliability(made.probability, made.correct)
    error = sum(one.images * abs(one.accuracy - one.confidence) for one in bins) / 500
    assert error == pytest.approx(calibration_error(made.probability, made.correct))


@pytest.mark.parametrize(("right", "images"), [(0, 7), (5, 8), (93, 100), (64, 64)])
def test_the_interval_and_the_chance_are_those_of_scipy(right: int, images: int) -> None:
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    test = binomtest(right, images, 0.5)
    np.testing.assert_allclose(interval(right / images, images), test.proportion_ci(0.95, "wilson"), atol=1e-6)
    assert mcnemar(right, images - right) == pytest.approx(test.pvalue)
    assert mcnemar(0, 0) == 1 and mcnemar(2000, 2100) == pytest.approx(binomtest(2000, 4100, 0.5).pvalue)


def test_an_accuracy_is_said_in_plain_words() -> None:
    made = judged(100, 2)
    made = replace(
        made, labels=np.arange(100) % 4 // 3, predictions=np.where(np.arange(100) < 90, np.arange(100) % 4 // 3, 1)
    )
    said = verdict_of(replace(contents(("ant", "bee")), parts={"test": made}))
    assert said.line.replace("\u00a0", " ") == "93.0 % of 100 test images are classified correctly"
    assert [text.replace("\u00a0", " ") for text in said.meaning] == [
        "7 images are wrong, about 1 in 14.",
        "Of many more images like these it would get between 86.3 % and 96.6 % right (95 % confidence).",
        "Always answering “ant” would get 75.0 % right.",
    ]
    assert said.trained.replace("\u00a0", " ") == (
        "resnet18, strategy head_then_full, from random weights, trained on photos (2 classes, 1,234 training images), "
        "6 epochs in 75 s; epoch 6 is kept."
    )
    assert [percent(share).replace("\u00a0", " ") for share in (0, 1, 0.99999, 0.25)] == [
        "0 %",
        "100 %",
        "99.9 %",
        "25.0 %",
    ]


# Thumbnails.


def test_a_thumbnail_is_embedded_once_and_the_album_has_an_end() -> None:
    taken: list[int] = []

    def take(row: int) -> Callable[[], Image.Image]:
        def opening() -> Image.Image:
            taken.append(row)
            return Image.new("RGB", (64, 64), (row, 0, 0))

        return opening

    album = Album(room=1200)
    assert [album.add(row, take(row)) for row in (1, 1, 2, 3, 4, 1)] == [0, 0, 1, FULL, FULL, 0] and taken == [1, 2]
    assert Album().add(1, None) == GONE
    broken = Album()
    assert broken.add(1, lambda: 1 / 0) == GONE and broken.gone == 1  # type: ignore[arg-type, return-value]
    assert uris_in(f"x\n{album.css()}\n", [1, 7]) == [album.uris[1]]


@pytest.mark.parametrize("classes", [2, 10_000])
def test_a_page_stays_under_two_megabytes_whatever_it_shows(classes: int) -> None:
    images = 20_000 if classes == 2 else 800
    made = contents([f"{'n' * 200} {number}" for number in range(classes)], 10)
    made = replace(made, parts={"test": judged(images, classes, side=128, skill=1.0)})
    heat = dict.fromkeys(range(images), np.random.default_rng(0).random((7, 7)))
    drawn = page(made, np.random.default_rng(0).normal(size=(images, 2)), heat)
    assert len(drawn.encode()) < 2_000_000
    assert drawn.count("<tr>") < 150


def test_a_heat_map_lies_over_the_photo() -> None:
    heat = np.zeros((4, 4))
    heat[0, 0] = 1
    shown = np.asarray(heated(Image.new("RGB", (64, 64), (100, 100, 100)), heat)).astype(int)
    assert (shown[0, 0, :2] > 150).all() and (shown[-1, -1] < 100).all()
    assert heated(Image.new("RGB", (8, 8)), np.full((2, 2), np.nan)).size == (96, 96)


def test_the_first_batch_is_the_one_that_trains() -> None:
    data = tlx.load_data("digits", limit_train=60, val_fraction=0)
    for targets in (None, Targets(10, mixup=0.5)):
        loader = Loader(
            *(data.train, Preprocess(8)),
            batch_size=16,
            augment=Augment.parse("hflip"),
            shuffle=True,
            seed=3,
            targets=targets,
        )
        batch = next(loader.epoch(0))
        shown = first_batch(loader, data.classes)
        assert len(shown) == 16
        for sample, pixels in zip(shown, batch.images, strict=True):
            np.testing.assert_array_equal(np.asarray(sample.image), pixels.transpose(1, 2, 0))
        first = data.classes[batch.labels[0]]
        assert shown[0].label == (first if targets is None else f"{first} + {data.classes[batch.labels[-1]]}")


def test_a_page_without_any_part_to_judge_by_says_so() -> None:
    bare = contents(parts=(), test_accuracy=None, val_accuracy=None, calibration=None)
    words = words_of(page(bare))
    assert "There was no image to judge the model by" in words and "The run holds no predictions of its images" in words
    one = replace(contents(["only"], 9), summary=summary(epochs=1, phases=("full",)))
    assert "100 % of 9 test images are classified correctly" in words_of(page(one))
    assert "No test image is classified wrongly" in words_of(page(one))


def test_no_name_breaks_a_page() -> None:
    recipe = {"model": HOSTILE[0], "data": HOSTILE[1], "strategy": {"name": HOSTILE[4]}}
    made = contents(HOSTILE, notes=HOSTILE, phases=HOSTILE[:3], recipe=recipe, versions={HOSTILE[0]: HOSTILE[4]})
    for drawn in (page(made), comparison_of([made, replace(made, run_dir=HOSTILE[0])])):
        assert "<script>window" not in drawn and "</style><img" not in drawn and "\u202e" not in drawn
        assert "\x1b" not in drawn and drawn.count("</script>") == 2 and drawn.count("</style>") == 1
        block = drawn.partition('id="data">')[2].partition("</script>")[0]
        assert "<" not in block and json.loads(block)


DAMAGES: list[Callable[[dict[str, Any]], Any]] = [
    lambda result: result.update(history=[]),
    lambda result: result.update(best_epoch=99),
    lambda result: result["history"][0].update(train_loss="x"),
    lambda result: result.update(groups=[{}]),
    lambda result: result.update(frozen=[{"phase": 1}]),
    lambda result: result.update(versions=[]),
    lambda result: result.pop("recipe"),
]


@pytest.mark.parametrize("place", range(len(DAMAGES)))
def test_a_result_that_another_wrote_is_one_line(place: int) -> None:
    from support.pages import result
    from tlx.runs.facts import Facts

    values = result()
    DAMAGES[place](values)
    with pytest.raises(TlxError, match=r"^runs/x/result\.json is damaged: ") as caught:
        summary_of(Facts("runs/x/result.json", values, ""))
    assert "\n" not in str(caught.value)
