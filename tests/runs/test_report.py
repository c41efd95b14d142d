"""What the page of a run says, when it is written, and what cannot go wrong by it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.finished_runs import FIELDS as ON_PHOTOS
from support.finished_runs import load_digits, save_as_photos
from support.golden import FOLDER as GOLDEN
from support.pages import words_of
from support.run_files import FIELDS, outcome, stopped
from tlx.conformance.loopback import Loopback
from tlx.errors import RunNotFound, TlxError
from tlx.manifest import REPORT, read_manifest
from tlx.runs.folder import RunFolder
from tlx.runs.listing import list_runs
from tlx.runs.report.comparison import names_of
from tlx.runs.report.page import WRONG
from tlx.runs.report.summary import changes


def train(out: Path, **fields: Any) -> tlx.Result:
    return tlx.run(**{**FIELDS, **fields}, out=str(out))


def text_of(run: Path | str) -> str:
    return (Path(run) / REPORT).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tlx.Result:
    return train(tmp_path_factory.mktemp("report") / "run")


# At the end of a run.


def test_what_the_run_settled_by_itself_is_no_difference_from_the_defaults(finished: tlx.Result) -> None:
    changed, settled = changes(finished.recipe.to_dict())
    given = {name for name in FIELDS if name not in ("quiet", "strategy", "epochs")}  # two of these are as ever
    assert {one.name for one in changed} == given
    assert {"mean", "std", "device", "precision"} <= {one.name for one in settled}
    assert not {one.name for one in settled} & given
    assert ("lr", "0.05", "-") in [(one.name, one.value, one.default.replace("\u2013", "-")) for one in changed]


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
    monkeypatch.setattr(RunFolder, "put", full)
    tlx.run(resume=tmp_path / "run", epochs=4, quiet=True)
    assert not (tmp_path / "run" / REPORT).exists(), "it showed three epochs"


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
        (lambda: tlx.report([finished.run_dir] * 2, explain=True), "explain is of one run"),
        (lambda: tlx.report(finished.run_dir, backend="torch"), "backend has no effect without explain"),
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


def test_the_model_adds_a_map_and_where_it_looked(
    of_photos: tlx.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = tlx.report(of_photos.run_dir, tmp_path / "out.html", explain=True).read_text()
    assert "60 images of the test part, as the network sees them" in words_of(drawn)
    assert "where the model looked, for what it says" in words_of(drawn) and capsys.readouterr().err == ""
    assert drawn.count('aria-label="where the model looked"') == WRONG
    before = words_of(text_of(of_photos.run_dir))
    assert "--explain adds where the model looked" in before and "Map of embeddings" not in before

    photo = Path(tlx.load_predictions(of_photos.run_dir)["path"][0])
    hidden = photo.rename(tmp_path / "hidden.png")
    try:
        with pytest.raises(TlxError, match="fewer images than when the run was trained, so there is nothing to look"):
            tlx.report(of_photos.run_dir, tmp_path / "out.html", explain=True)
    finally:
        hidden.rename(photo)
