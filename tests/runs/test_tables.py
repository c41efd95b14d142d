"""Each part's predictions, as a run wrote them: from the evaluation that it made anyway, whatever became of the run."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tlx
from support.run_files import FIELDS, reseal, stopped
from tlx.conformance.loopback import Loopback
from tlx.errors import DataError, Interrupted, RunDamaged, RunNotFound, TlxError
from tlx.manifest import read_manifest
from tlx.runs.logits import Recorder, Spool
from tlx.runs.table import COLUMNS, Table, measured
from tlx.training.metrics import EpochEnded, Evaluated, Event

NAMES = ("predictions-val.csv", "predictions-test.csv", "logits-val.npy", "logits-test.npy")


def train(out: Path, **fields: Any) -> tlx.Result:
    return tlx.run(**{**FIELDS, **fields}, out=str(out))


def tables(run: Path) -> dict[str, bytes]:
    """What a run's tables hold; a file that is not there is not in it."""
    return {name: (run / name).read_bytes() for name in NAMES if (run / name).exists()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tlx.Result:
    return train(tmp_path_factory.mktemp("tables") / "run")


# What they say.


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_table_says_of_each_image_what_the_run_recorded_of_all(part: Any, finished: tlx.Result) -> None:
    data = tlx.load_data("digits", limit_train=70, limit_test=20, val_fraction=0.2)
    images = data.parts[part]
    table = tlx.load_predictions(finished.run_dir, part)
    assert table["part"] == part and table["classes"] == list(data.classes)
    assert table["path"] == list(images.names)
    assert table["label"] == [data.classes[label] for label in images.labels]
    correct = np.array(table["label"]) == np.array(table["prediction"])
    epoch = finished.history[finished.best_epoch - 1]
    accuracy = {"val": finished.val_accuracy, "test": finished.test_accuracy}[part]
    loss = {"val": epoch["val_loss"], "test": tlx.evaluate(finished.run_dir, quiet=True)["test_loss"]}[part]
    assert 0.2 < correct.mean() == accuracy < 1
    assert table["loss"].mean() == pytest.approx(loss, rel=1e-6)
    assert [table["classes"][place] for place in table["logits"].argmax(axis=1)] == table["prediction"]


def test_the_figures_are_those_of_the_formulas() -> None:
    logits = np.array([[0, np.log(3), -800], [2, 2, 2], [-1, 700, 0]], np.float32)
    first, probability, loss, margin = measured(logits, np.array([0, 2, 0]))
    assert first.tolist() == [1, 0, 1]
    np.testing.assert_allclose(probability, [0.75, 1 / 3, 1], rtol=1e-7)
    np.testing.assert_allclose(loss, [np.log(4), np.log(3), 701], rtol=1e-7)
    np.testing.assert_allclose(margin, [0.5, 0, 1], atol=1e-7)
    assert measured(np.ones((1, 1)), np.array([0]))[3] == 1, "of one class"


def test_evaluate_writes_the_same_table(finished: tlx.Result, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tlx", "evaluate", str(finished.run_dir), "--csv", str(tmp_path / "own.csv")]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "own.csv").read_bytes() == tables(finished.run_dir)["predictions-test.csv"]
    evaluation = tlx.evaluate(finished.run_dir, data="digits", quiet=True, csv=tmp_path / "others.csv")
    with (tmp_path / "others.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and len(rows) == evaluation["images"]
    correct = sum(row["label"] == row["prediction"] for row in rows)
    assert correct / len(rows) == evaluation["test_accuracy"]
    with pytest.raises(TlxError, match="Cannot write"):
        tlx.evaluate(finished.run_dir, quiet=True, csv=tmp_path / "no" / "out.csv")


@pytest.mark.parametrize("fields", [{"strategy": "lora", "rank": 2}, {"ema": 0.5}, {"precision": "float32"}])
def test_other_runs_write_tables_too(fields: dict[str, Any], tmp_path: Path) -> None:
    result = train(tmp_path / "run", **{**fields, **({"precision": "float64"} if "precision" in fields else {})})
    for part, accuracy in (("val", result.val_accuracy), ("test", result.test_accuracy)):
        table = tlx.load_predictions(result.run_dir, part)  # type: ignore[arg-type]
        assert np.mean([a == b for a, b in zip(table["label"], table["prediction"], strict=True)]) == accuracy


@pytest.mark.parametrize("strategy", ["probe", "knn"])
def test_a_fitted_head_writes_them_in_float64(strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlx.training.logistic.STRENGTHS", (0.01, 1.0))
    fields = {name: value for name, value in FIELDS.items() if name not in ("epochs", "lr", "strategy")}
    result = tlx.run(**fields, strategy=strategy, out=str(tmp_path / "run"))
    for part, accuracy in (("val", result.val_accuracy), ("test", result.test_accuracy)):
        table = tlx.load_predictions(result.run_dir, part)  # type: ignore[arg-type]
        assert np.mean([a == b for a, b in zip(table["label"], table["prediction"], strict=True)]) == accuracy
    assert tlx.load_predictions(result.run_dir, "val")["logits"].dtype == np.float64


@pytest.mark.needs("torch", "oneflow")
def test_both_backends_write_the_same_classes(tmp_path: Path) -> None:
    fields = {"data": "digits", "model": "resnet18", "strategy": "scratch", "image_size": 16, "precision": "float64"}
    fields |= {
        "limit_train": 40,
        "limit_test": 12,
        "val_fraction": 0.25,
        "epochs": 1,
        "batch_size": 16,
        "lr": 0.01,
        "workers": 0,
    }
    runs = [tlx.run(fields, backend=b, out=str(tmp_path / b), quiet=True).run_dir for b in ("torch", "oneflow")]
    for part in ("val", "test"):
        one, other = (tlx.load_predictions(run, part) for run in runs)
        assert one["prediction"] == other["prediction"] and one["path"] == other["path"]
        np.testing.assert_allclose(one["logits"], other["logits"], rtol=1e-9, atol=1e-9)


# How they come about.


def test_nothing_is_computed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[int] = []
    evaluate: Any = Loopback.evaluate

    def counting(backend: Loopback, model: Any, batch: Any) -> Any:
        evaluated.append(len(batch.labels))
        return evaluate(backend, model, batch)

    monkeypatch.setattr(Loopback, "evaluate", counting)
    monkeypatch.setattr(Loopback, "logits", lambda *args: pytest.fail("logits were computed beside an evaluation"))
    assert len(tables(train(tmp_path / "run", feature_cache="off").run_dir)) == 4
    assert sum(evaluated) == 3 * 14 + 20


@pytest.mark.parametrize(("seed", "lr", "best"), [(3, 1.0, 1), (0, 0.05, 3)])
def test_a_resumed_run_writes_the_same_bytes(seed: int, lr: float, best: int, tmp_path: Path) -> None:
    """Whether the best epoch came before the stop, after the second, or after it."""
    whole = train(tmp_path / "whole", seed=seed, lr=lr)
    assert whole.best_epoch == best
    table = tlx.load_predictions(whole.run_dir, "val")
    assert table["loss"].mean() == pytest.approx(whole.history[best - 1]["val_loss"], rel=1e-6), "of the best epoch"
    run = stopped(tmp_path / "run", seed=seed, lr=lr)
    assert not tables(run) and len(list((run / "last").glob("logits-*.npy"))) == 1
    tlx.run(resume=run, quiet=True)
    assert tables(run) == tables(whole.run_dir) and len(tables(run)) == 4
    assert not list((run / "last").glob("logits-*"))


def test_a_run_that_was_stopped_in_its_test_writes_the_same_bytes(finished: tlx.Result, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Evaluated) and event.part == "test":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(tmp_path / "run", on_event=stop)
    tlx.run(resume=tmp_path / "run", quiet=True)
    assert tables(tmp_path / "run") == tables(finished.run_dir)


@pytest.mark.parametrize(("lr", "best"), [(0.3, 3), (0.05, 6)])
def test_added_epochs_leave_the_tables_of_a_longer_run(lr: float, best: int, tmp_path: Path) -> None:
    """Whether the best epoch is one of the first three, whose logits the finished run holds, or was added."""
    whole = train(tmp_path / "whole", lr=lr, epochs=6)
    assert whole.best_epoch == best
    train(tmp_path / "run", lr=lr)
    between: list[bytes] = []

    def look(event: Event) -> None:
        if isinstance(event, EpochEnded):
            between.append((tmp_path / "run" / "predictions-val.csv").read_bytes())

    before = tables(tmp_path / "run")["predictions-val.csv"]
    tlx.run(resume=tmp_path / "run", epochs=6, quiet=True, on_event=look)
    assert between == [before] * 3, "the old table stays until the new one is written"
    assert tables(tmp_path / "run") == tables(whole.run_dir)


def test_parts_that_are_not_there_have_no_table(tmp_path: Path) -> None:
    run = train(tmp_path / "no val", val_fraction=0).run_dir
    assert sorted(tables(run)) == ["logits-test.npy", "predictions-test.csv"]
    with pytest.raises(TlxError, match=r"no predictions of its validation part: .*val_fraction above 0"):
        tlx.load_predictions(run, "val")
    part = tlx.load_data("digits", limit_train=70, limit_test=10, val_fraction=0).train
    images = np.stack([part.pixels(i) for i in range(len(part))])
    fields = {name: value for name, value in FIELDS.items() if not name.startswith(("limit", "data"))}
    run = tlx.run(
        **fields, data={"train": (images, part.labels)}, test_fraction=0, out=str(tmp_path / "no test")
    ).run_dir
    assert sorted(tables(run)) == ["logits-val.npy", "predictions-val.csv"]
    with pytest.raises(TlxError, match=r"no predictions of its test part: its data had none"):
        tlx.load_predictions(run)


def photos(folder: Path) -> Path:
    """Digits as photos under names that make trouble."""
    data = tlx.load_data("digits", limit_train=60, limit_test=20, val_fraction=0)
    for part, images in (("train", data.train), ("test", data.test)):
        assert images is not None
        for i, label in enumerate(images.labels):
            name = os.fsdecode(b'=1+1, "x"\n\xff\x1b[31m') + f"{i}.png"
            path = folder / part / f"=cmd, {label}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.pixels(i)).save(path, format="PNG")
    return folder


def test_any_name_comes_back_as_it_is(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    fields = {name: value for name, value in FIELDS.items() if not name.startswith(("limit", "data"))}
    run = tlx.run(**fields, data=str(folder), out=str(tmp_path / "run")).run_dir
    for part in ("val", "test"):
        table = tlx.load_predictions(run, part)
        assert len(table["path"]) > 5 and all(Path(path).is_file() for path in table["path"])
        assert table["label"] == [Path(path).parent.name for path in table["path"]]


def test_a_test_part_that_cannot_be_read_leaves_no_half_table(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    broken = sorted((folder / "test").rglob("*.png"))[-1]
    broken.write_bytes(broken.read_bytes()[:100])
    fields = {
        **{name: value for name, value in FIELDS.items() if not name.startswith(("limit", "data"))},
        "data": str(folder),
    }
    with pytest.raises(DataError, match="without a test accuracy"):
        tlx.run(**{**fields, "batch_size": 4}, out=str(tmp_path / "run"))
    assert sorted(tables(tmp_path / "run")) == ["logits-val.npy", "predictions-val.csv"]


def test_logits_flow_through_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = train(tmp_path / "small").run_dir
    for name, value in (("logits.IN_MEMORY", 1), ("logits.BLOCK", 1)):
        monkeypatch.setattr(f"tlx.runs.{name}", value)
    monkeypatch.setattr("tlx.training.metrics.WAITING", 1)
    assert tables(train(tmp_path / "blocks").run_dir) == tables(small)


def test_memory_does_not_grow_with_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlx.runs.logits.IN_MEMORY", 1 << 20)
    spool, batch = Spool(tmp_path), np.random.default_rng(0).normal(size=(64, 1000)).astype(np.float32)
    classes, count = [str(i) for i in range(1000)], 100
    with (tmp_path / "table").open("wb") as table, (tmp_path / "logits").open("wb") as logits:
        tracemalloc.start()
        for _ in range(count):
            spool.add(batch)
        spool.write(logits)
        written = Table(table, classes)
        for block in spool.blocks():
            written.add(["x"] * len(block), np.zeros(len(block), np.int64), block)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (tmp_path / "logits").stat().st_size > 0.99 * count * batch.nbytes > 25e6
    assert peak < 0.6 * count * batch.nbytes * 2, peak
    spool.close()
    assert np.array_equal(np.load(tmp_path / "logits", mmap_mode="r")[-64:], batch)


# What becomes of them later.


EDITS: list[Callable[[bytes], bytes]] = [lambda data: data + b"x", lambda data: data.replace(b"0", b"1")]


def test_they_belong_to_the_run(finished: tlx.Result, tmp_path: Path) -> None:
    manifest = read_manifest(finished.run_dir)
    assert manifest is not None and {*NAMES} <= manifest.files.keys()
    for name in ("predictions-test.csv", "logits-test.npy"):
        for edit in EDITS:
            run = shutil.copytree(finished.run_dir, tmp_path / "run", dirs_exist_ok=True)
            (run / name).write_bytes(edit((run / name).read_bytes()))
            with pytest.raises(RunDamaged, match=f"{name} is damaged"):
                tlx.load_predictions(run)
            assert tlx.evaluate(run, quiet=True)["test_accuracy"] == finished.test_accuracy


FORGED: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("predictions-test.csv", lambda data: b""),
    ("predictions-test.csv", lambda data: b"\xff\0\n" + data),
    ("predictions-test.csv", lambda data: data.replace(b'"label"', b'"lab"')),
    ("predictions-test.csv", lambda data: data.replace(b'"4"', b'"elephant"')),
    ("predictions-test.csv", lambda data: data + b'"a","1","1",1,1\n'),
    ("predictions-test.csv", lambda data: data + b'"a","1","1",x,1,1\n'),
    ("predictions-test.csv", lambda data: data[: data.rstrip().rindex(b"\n") + 1]),
    ("logits-test.npy", lambda data: b""),
    ("logits-test.npy", lambda data: data[:200]),
    ("logits-test.npy", lambda data: data.replace(b"<f", b"|O")),
    ("logits-test.npy", lambda data: data[:-8] + b"\xff" * 8),
]


@pytest.mark.parametrize("place", range(len(FORGED)))
def test_what_another_wrote_is_one_line(place: int, finished: tlx.Result, tmp_path: Path) -> None:
    """With a manifest that says that it belongs to the run."""
    name, edit = FORGED[place]
    run = shutil.copytree(finished.run_dir, tmp_path / "run")
    (run / name).write_bytes(edit((run / name).read_bytes()))
    reseal(run)
    with pytest.raises(RunDamaged, match=r"(predictions-test.csv|logits-test.npy)") as caught:
        tlx.load_predictions(run)
    assert "\n" not in str(caught.value)


def test_what_is_no_finished_run_with_predictions_is_refused(finished: tlx.Result, tmp_path: Path) -> None:
    with pytest.raises(TlxError, match=r"Unknown part 'tset'.* Did you mean 'test'"):
        tlx.load_predictions(finished.run_dir, "tset")  # type: ignore[arg-type]
    with pytest.raises(RunNotFound, match="holds no finished run"):
        tlx.load_predictions(tmp_path)
    with pytest.raises(RunNotFound, match="is not finished; finish it with"):
        tlx.load_predictions(stopped(tmp_path / "stopped"))


def test_a_run_that_an_earlier_tlx_saved_ends_without_those_that_it_lacks(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", seed=3, lr=1.0)
    manifest = read_manifest(run)
    assert manifest is not None
    lacking = {name: entry for name, entry in manifest.files.items() if "logits" not in name}
    type(manifest)(lacking, manifest.recipe).write(run)
    result = tlx.run(resume=run, quiet=True)
    assert result.best_epoch == 1 and any("no predictions of the validation part" in note for note in result.notes)
    assert sorted(tables(run)) == ["logits-test.npy", "predictions-test.csv"]
    assert json.loads((run / "result.json").read_text())["notes"] == result.notes


def test_a_pass_that_begins_again_counts_alone(tmp_path: Path) -> None:
    """A run may be stopped within its validation, which then is read from its start."""
    with closing(Recorder(tmp_path)) as recorder:
        for first in (0, 2, 0):
            recorder(Evaluated("test", first, np.full((2, 3), first, np.float32)))
        assert [block.tolist() for block in recorder.parts["test"].blocks()] == [[[0.0] * 3] * 2]
