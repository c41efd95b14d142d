"""What the page of a run says, when it is written, and what cannot go wrong by it."""

from __future__ import annotations

import errno
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tlx
from support.finished_runs import FIELDS as ON_PHOTOS
from support.finished_runs import load_digits, save_as_photos
from support.golden import FOLDER as GOLDEN
from support.pages import HOSTILE, contents, judged, summary
from support.run_files import FIELDS, outcome, stopped
from tlx.conformance.loopback import Loopback
from tlx.data import Augment, Loader
from tlx.data.mixing import Targets
from tlx.errors import RunNotFound, TlxError
from tlx.manifest import REPORT, read_manifest
from tlx.runs.confidence import calibration_error
from tlx.runs.folder import RunFolder
from tlx.runs.listing import list_runs
from tlx.runs.report.album import FULL, GONE, Album, heated, uris_in
from tlx.runs.report.comparison import comparison_of, mcnemar, names_of
from tlx.runs.report.contents import first_batch
from tlx.runs.report.figures import class_table, confusion, interval, least_sure, most_wrong, reliability
from tlx.runs.report.page import page
from tlx.runs.report.summary import changes, summary_of
from tlx.runs.report.verdict import percent, verdict_of


def train(out: Path, **fields: Any) -> tlx.Result:
    return tlx.run(**{**FIELDS, **fields}, out=str(out))


def text_of(run: Path | str) -> str:
    return (Path(run) / REPORT).read_text(encoding="utf-8")


def words_of(page: str) -> str:
    """The words of a page, without tags."""
    body = page.partition("<main")[2].partition('<script type="application/json"')[0]
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", body).split())).replace("\u00a0", " ")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tlx.Result:
    return train(tmp_path_factory.mktemp("report") / "run")


# What it counts.


def test_the_figures_of_classes_are_those_of_scikit_learn() -> None:
    from sklearn import metrics

    made = judged(300, 7)
    made = replace(made, labels=np.where(made.labels == 6, 5, made.labels))  # the last one only as a prediction
    table = class_table(made, 8)
    expected = metrics.precision_recall_fscore_support(made.labels, made.predictions, labels=range(7), zero_division=0)
    for ours, theirs in zip((table.precision, table.recall, table.f1, table.support), expected, strict=True):
        np.testing.assert_allclose(np.nan_to_num(ours[:7]), theirs)
    assert table.macro_f1 == pytest.approx(metrics.f1_score(made.labels, made.predictions, average="macro"))
    recalls = metrics.recall_score(made.labels, made.predictions, average=None, labels=range(6))
    assert table.balanced_accuracy == pytest.approx(recalls.mean())
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


def test_what_the_run_settled_by_itself_is_no_difference_from_the_defaults(finished: tlx.Result) -> None:
    changed, settled = changes(finished.recipe.to_dict())
    given = {name for name in FIELDS if name not in ("quiet", "strategy", "epochs")}  # two of these are as ever
    assert {one.name for one in changed} == given
    assert {"mean", "std", "device", "precision"} <= {one.name for one in settled}
    assert not {one.name for one in settled} & given
    assert ("lr", "0.05", "-") in [(one.name, one.value, one.default.replace("\u2013", "-")) for one in changed]


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
    assert shown[0, 0, 0] > 150 and shown[0, 0, 1] > 150 and (shown[-1, -1] < 90).sum() >= 2
    assert heated(Image.new("RGB", (8, 8)), np.full((2, 2), np.nan)).size == (96, 96)


def test_the_first_batch_is_the_one_that_trains() -> None:
    data = tlx.load_data("digits", limit_train=60, val_fraction=0)
    from tlx.backend import Preprocess

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


# At the end of a run.


def test_a_run_leaves_a_page_that_its_folder_draws_again(finished: tlx.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, and no model computes anything for it."""
    manifest = read_manifest(finished.run_dir)
    before = text_of(finished.run_dir)
    assert manifest is not None and REPORT in manifest.files
    for method in ("build", "evaluate", "logits", "features"):
        monkeypatch.setattr(Loopback, method, lambda *args: pytest.fail("the page computed something"))
    assert tlx.report(finished.run_dir) == finished.run_dir / REPORT
    assert text_of(finished.run_dir) == before
    assert finished.frozen == [{"phase": "train", "epoch": 1, "arrays": 0, "numbers": 0, "sha256": None}]
    assert "Nothing was frozen" in words_of(before)
    assert f"{100 * finished.test_accuracy:.1f} % of 20 test images are classified correctly" in words_of(before)


def test_what_was_frozen_has_a_receipt(tmp_path: Path) -> None:
    from tlx.models.weights import digest, read_weights

    result = train(tmp_path / "run", strategy="head_then_full", phase_epochs=2)
    first, last = result.frozen
    assert (first["phase"], first["epoch"], last["phase"], last["epoch"]) == ("head", 1, "full", 3)
    assert first["arrays"] > 0 == last["arrays"] and first["numbers"] > 5000
    assert [row["lr"] for row in result.groups if row["phase"] == "head"] == [None, 0.05]
    frozen = train(tmp_path / "frozen", strategy="feature_extract")
    (entry,) = frozen.frozen
    arrays = read_weights(frozen.run_dir / "model.safetensors")
    kept = {name: array for name, array in arrays.items() if not name.startswith("fc.")}
    assert entry["sha256"] == digest(kept) and entry["arrays"] == len(kept)
    assert entry["sha256"] in text_of(frozen.run_dir)


@pytest.mark.parametrize("place", ["drawing", "writing"])
def test_a_page_that_fails_is_one_note_and_the_run_ends_well(
    place: str, finished: tlx.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    putting = RunFolder.put

    def fail(*args: Any) -> Any:
        raise RuntimeError("no ink")

    def full(folder: RunFolder, name: str, content: bytes) -> None:
        if name == REPORT:
            raise TlxError("Cannot write report.html: No space left on device") from OSError(errno.ENOSPC, "")
        putting(folder, name, content)

    if place == "drawing":
        monkeypatch.setattr("tlx.runs.report.reporting.page", fail)
    else:
        monkeypatch.setattr(RunFolder, "put", full)
    result = train(tmp_path / "run")
    expected = (
        "drawn: RuntimeError: no ink" if place == "drawing" else "written: Cannot write report.html: No space left"
    )
    assert [note for note in result.notes if f"the report could not be {expected}" in note.replace("\n", " ")]
    assert outcome(tmp_path / "run") == outcome(finished.run_dir) and not (tmp_path / "run" / REPORT).exists()
    monkeypatch.undo()
    assert tlx.evaluate(tmp_path / "run", quiet=True)["test_accuracy"] == finished.test_accuracy
    tlx.report(tmp_path / "run")
    assert "are classified correctly" in text_of(tmp_path / "run")


@pytest.mark.parametrize("change", ["deleted", "edited"])
def test_whoever_deletes_or_edits_the_page_loses_nothing(change: str, finished: tlx.Result, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished.run_dir, tmp_path / "run"))
    (run / REPORT).unlink() if change == "deleted" else (run / REPORT).write_text("mine")
    assert list_runs(run)[0]["state"] == "finished"
    assert tlx.evaluate(run, quiet=True)["test_accuracy"] == finished.test_accuracy
    tlx.run(resume=run, epochs=4, quiet=True)
    assert "4 epochs" in words_of(text_of(run)), "added epochs draw it anew"
    manifest = read_manifest(run)
    assert manifest is not None and manifest.files[REPORT].size == (run / REPORT).stat().st_size


def test_a_resumed_run_leaves_the_page_of_a_whole_one(finished: tlx.Result, tmp_path: Path) -> None:
    def without_times(page: str) -> str:
        words = words_of(page)
        return re.sub(r"[\d.,]+ (?:ms|s|images/s)\b", "", words.partition("Speed and versions")[0])

    run = stopped(tmp_path / "run")
    assert not (run / REPORT).exists()
    tlx.run(resume=run, quiet=True)
    assert without_times(text_of(run)) == without_times(text_of(finished.run_dir))


def test_runs_without_steps_or_parts_have_pages_too(tmp_path: Path) -> None:
    fields = {name: value for name, value in FIELDS.items() if name not in ("epochs", "lr", "strategy")}
    for strategy, said in (("probe", "C"), ("knn", "neighbors")):
        result = tlx.run(**{**fields, "limit_train": 60}, strategy=strategy, out=str(tmp_path / strategy))
        words = words_of(text_of(result.run_dir))
        assert "What was tried" in words and f"chosen: {said} = " in words and '<svg class="chart"' not in words
    words = words_of(text_of(train(tmp_path / "no val", val_fraction=0, epochs=1).run_dir))
    assert "There is no validation part, so the last epoch is kept" in words and "There is no temperature" in words
    part = load_digits()["train"]
    images, labels = part.array.transpose(0, 2, 3, 1)[:90], part.labels[:90]
    own = {name: value for name, value in FIELDS.items() if not name.startswith(("limit", "data"))}
    run = tlx.run(**own, data={"train": (images, labels)}, test_fraction=0, out=str(tmp_path / "own")).run_dir
    before = text_of(run)
    assert "validation images are classified correctly" in words_of(before) and "There is no test part" in words_of(
        before
    )
    tlx.report(run)
    assert "The training images cannot be had: data is '<arrays>': it was a Python object" in words_of(text_of(run))
    tlx.report(run, data={"train": (images, labels)})
    assert text_of(run) == before
    with pytest.raises(TlxError, match="the data is not the run's: the contents of images"):
        tlx.report(run, data={"train": (255 - images, labels)})


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
        json.loads(drawn.partition('id="data">')[2].partition("</script>")[0])


# Later.


@pytest.fixture(scope="module")
def of_photos(tmp_path_factory: pytest.TempPathFactory) -> tlx.Result:
    home = tmp_path_factory.mktemp("photos")
    parts = {name: part.select(np.arange(60), part.labels[:60]) for name, part in load_digits().items()}
    save_as_photos(parts, home / "data")
    return tlx.run(**{**ON_PHOTOS, "epochs": 1}, data=str(home / "data"), out=str(home / "run"))


def test_a_photo_that_was_deleted_leaves_a_placeholder(of_photos: tlx.Result, tmp_path: Path) -> None:
    data, before = Path(str(of_photos.recipe.data)), text_of(of_photos.run_dir)
    moved = Path(shutil.copytree(data, tmp_path / "moved"))
    assert tlx.report(of_photos.run_dir, tmp_path / "moved.html", data=moved).read_text() == before
    photo = Path(tlx.load_predictions(of_photos.run_dir)["path"][0])
    hidden = photo.rename(tmp_path / "hidden.png")
    try:
        drawn = tlx.report(of_photos.run_dir, tmp_path / "out.html").read_text()
    finally:
        hidden.rename(photo)
    assert drawn.count("background-image:url(data:") > 30 and 'class="pic gone"' in drawn
    assert "1 image could not be opened" in words_of(drawn)
    assert text_of(of_photos.run_dir) == before, "only OUT was written"


def test_a_run_of_0_1_0_has_a_page_without_what_it_did_not_keep(tmp_path: Path) -> None:
    with tarfile.open(GOLDEN / "saved-by-0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    run = tmp_path / "finished"
    names = {path.name for path in run.iterdir()}
    words = words_of(tlx.report(run).read_text())
    assert "22.5 % of the test images are classified correctly" in words and "An earlier tlx wrote this run" in words
    assert {path.name for path in run.iterdir()} == names | {REPORT}
    assert tlx.evaluate(run, quiet=True)["test_accuracy"] == 0.225
    with pytest.raises(RunNotFound, match="is not finished; finish it with"):
        tlx.report(tmp_path / "stopped")


def test_several_runs_are_compared_on_the_same_images(
    finished: tlx.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, third = train(tmp_path / "other", lr=0.2), train(tmp_path / "third", limit_test=15)
    monkeypatch.chdir(tmp_path)
    written = tlx.report([finished.run_dir, other.run_dir, third.run_dir])
    assert written == Path(REPORT)
    words = words_of(written.read_text())
    right = [
        np.array(table["label"]) == np.array(table["prediction"])
        for table in map(tlx.load_predictions, (finished.run_dir, other.run_dir))
    ]
    assert f"2 runs were tested on the same 20 images: all of them are right on {(right[0] & right[1]).sum()}" in words
    assert "Not compared, as their test parts differ or have no predictions: third" in words
    for name, alone in (("run", right[0] & ~right[1]), ("other", right[1] & ~right[0])):
        assert not alone.any() or f"Only {name} is right: {alone.sum()} image" in words
    assert re.search(r"\blr\b.* 0\.2 ", words) and "limit_test" in words
    tlx.report([finished.run_dir, other.run_dir])  # an earlier page of tlx's gives way
    Path(REPORT).write_text("mine")
    with pytest.raises(TlxError, match=r"report\.html is there already, and is no page of tlx's"):
        tlx.report([finished.run_dir, other.run_dir])
    assert names_of(["a/x", "b/x", "y"]) == ["a/x", "b/x", "y"] and names_of(["x", "x"]) == ["x (1)", "x (2)"]


def test_every_mistake_is_one_line(finished: tlx.Result, tmp_path: Path) -> None:
    calls: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: tlx.report([]), "runs is empty"),
        (lambda: tlx.report(tmp_path / "nowhere"), "holds no finished run"),
        (lambda: tlx.report(finished.run_dir, finished.run_dir / "model.safetensors"), "is a name of the run"),
        (lambda: tlx.report(finished.run_dir, tmp_path / "no" / "x.html"), "Cannot write"),
        (lambda: tlx.report([finished.run_dir] * 2, data="digits"), "data is of one run"),
    )
    for call, said in calls:
        with pytest.raises(TlxError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "nowhere").exists()
    run = Path(shutil.copytree(finished.run_dir, tmp_path / "run"))
    (run / REPORT).unlink()
    (run / REPORT).mkdir()
    with pytest.raises(
        TlxError, match=rf"Cannot write {run}/report\.html: what is there is no file\. Fix: .* -o report\.html$"
    ):
        tlx.report(run)
    tlx.run(resume=run, epochs=4, quiet=True)  # nor does that keep the run from going on


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


def test_the_command_writes_and_says_where(finished: tlx.Result, tmp_path: Path) -> None:
    script = """
import sys
from tlx.cli import main
for command in sys.argv[1].split("|"):
    sys.argv[1:] = command.split("&")
    try:
        main()
    except SystemExit as end:
        print("exit", end.code, flush=True)
"""
    run = finished.run_dir
    commands = [f"report&{run}&-o&one.html", f"report&{run}&{run}&--json", "report", "report&nowhere"]
    command = [sys.executable, "-c", script, "|".join(commands)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ))
    lines = done.stdout.splitlines()
    assert lines[:2] == ["written: one.html", "exit 0"] and lines[3:] == ["exit 0", "exit 2", "exit 2"], done.stderr
    assert json.loads(lines[2]) == {"runs": [str(run)] * 2, "out": REPORT}
    assert len(done.stderr.splitlines()) == 2 and (tmp_path / "one.html").read_text() == text_of(run)
