"""A run's folder that was damaged or edited gives the same result, or one line that names the file; never another."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tlx
from support.golden import FOLDER as GOLDEN
from support.hostile import snapshot
from support.run_files import FIELDS, outcome, state_file, stopped
from tlx.errors import RunDamaged, TlxError
from tlx.manifest import read_manifest
from tlx.models.weights import digest, read_weights
from tlx.runs.saved import parse_history
from tlx.training.metrics import EpochEnded, Event

UNFINISHED = ("recipe.toml", "history.jsonl", "manifest.json", "last/state-*.safetensors", "last/best-*.safetensors")
FINISHED = (*UNFINISHED[:4], "model.safetensors", "card.json", "result.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: `whole` of three epochs, `six`, and `stopped`; `other-...` are those of another seed."""
    home = tmp_path_factory.mktemp("runs")
    for name, seed in (("", 0), ("other-", 7)):
        tlx.run(**FIELDS, seed=seed, out=str(home / f"{name}whole"))
        stopped(home / f"{name}stopped", seed=seed)
    tlx.run(**{**FIELDS, "epochs": 6}, out=str(home / "six"))
    return home


def flipped(bit: float) -> Callable[[Path, Path], None]:
    def flip(file: Path, other: Path) -> None:
        data = bytearray(file.read_bytes())
        place = min(int(bit * len(data)), len(data) - 1)
        data[place] ^= 1 << place % 8
        file.write_bytes(data)

    return flip


def replaced_by_a_folder(file: Path, other: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Callable[[Path, Path], Any]] = {
    **{f"flipped at {bit}": flipped(bit) for bit in (0, 0.2, 0.5, 1)},
    "truncated": lambda file, other: os.truncate(file, file.stat().st_size // 2),
    "one byte short": lambda file, other: os.truncate(file, file.stat().st_size - 1),
    "empty": lambda file, other: os.truncate(file, 0),
    "deleted": lambda file, other: file.unlink(),
    "another run's": lambda file, other: shutil.copyfile(other, file),
    "a folder": replaced_by_a_folder,
}


def check(run: Path, name: str, read: Callable[[], Any], expected: Any) -> None:
    """It gives what it gave before, or it is refused in one line that names the file, and the disk is as it was."""
    before = snapshot(run)
    try:
        value = read()
    except TlxError as error:
        assert name in str(error) and "\n" not in str(error), error
        assert snapshot(run) == before
    else:
        assert value == expected


def damaged(folder: Path, which: str, pattern: str, damage: str, to: Path) -> tuple[Path, str]:
    run = Path(shutil.copytree(folder / which, to))
    (file,), (other,) = run.glob(pattern), (folder / f"other-{which}").glob(pattern)
    DAMAGES[damage](file, other)
    return run, file.name


@pytest.mark.parametrize("pattern", UNFINISHED)
def test_an_unfinished_run_with_a_damaged_file_ends_as_it_would_have_or_is_refused(
    pattern: str, folder: Path, tmp_path: Path
) -> None:
    def resume(run: Path) -> Any:
        return outcome(tlx.run(resume=run, quiet=True).run_dir)

    for damage in DAMAGES:
        run, name = damaged(folder, "stopped", pattern, damage, tmp_path / damage)
        with pytest.raises(TlxError):
            tlx.evaluate(run, quiet=True)
        check(run, name, lambda run=run: resume(run), outcome(folder / "whole"))  # type: ignore[misc]


def readers(run: Path, scratch: Path) -> dict[str, Callable[[], Any]]:
    def weights() -> Any:
        fields = {**FIELDS, "weights": str(run), "epochs": 1, "strategy": "feature_extract"}
        result = tlx.run(**fields, out=str(scratch / str(len(list(scratch.iterdir())))))
        return {name: a.tobytes() for name, a in load_file(result.run_dir / "model.safetensors").items()}

    evaluation = ("test_accuracy", "test_loss", "recorded_accuracy")
    return {
        "evaluate": lambda: [tlx.evaluate(run, quiet=True)[name] for name in evaluation],  # type: ignore[literal-required]
        "predict": lambda: tlx.predict(run, np.full((2, 8, 8), 99, np.uint8), quiet=True),
        "load_model": lambda: tlx.load_model(run).classes,
        "weights": weights,
        "weights, as a file": lambda: digest(read_weights(run / "model.safetensors")),
        "adding epochs": lambda: outcome(tlx.run(resume=run, epochs=6, quiet=True).run_dir),
    }


@pytest.mark.slow
@pytest.mark.parametrize("pattern", FINISHED)
def test_whatever_reads_a_finished_run_with_a_damaged_file_gives_the_same_or_refuses(
    pattern: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    whole = Path(shutil.copytree(folder / "whole", tmp_path / "whole"))
    expected = {name: read() for name, read in readers(whole, tmp_path / "scratch").items()}
    assert expected["adding epochs"] == outcome(folder / "six")
    for damage in DAMAGES:
        run, name = damaged(folder, "whole", pattern, damage, tmp_path / damage)
        if pattern == "model.safetensors" and damage in ("empty", "deleted", "a folder"):
            name = "model"  # a file that is not there, or no weights, is said in other words
        for use, read in readers(run, tmp_path / "scratch").items():
            check(run, name, read, expected[use])


def test_what_is_damaged_what_is_whole_and_how_to_go_on_are_said(folder: Path, tmp_path: Path) -> None:
    run, _ = damaged(folder, "stopped", "last/state-*", "truncated", tmp_path / "run")
    os.truncate(run / "history.jsonl", 3)
    with pytest.raises(RunDamaged) as error:
        tlx.run(resume=run, quiet=True)
    best = next((run / "last").glob("best-*"))
    for said in (
        f"history.jsonl is damaged: it has 3 bytes, and {(folder / 'stopped/history.jsonl').stat().st_size} were",
        "last/state-1.safetensors is damaged: it has",
        "Whole: recipe.toml, last/best",
        f"start a new run from the best weights, with: tlx run {run}/recipe.toml --weights {best}",
    ):
        assert said in str(error.value)
    tlx.run(run / "recipe.toml", weights=str(best), out=str(tmp_path / "new"), quiet=True)  # as it says


def test_an_edited_recipe_is_refused_and_says_what_was_changed(folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(folder / "stopped", tmp_path / "run"))
    text = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(text.replace("lr = 0.05", "lr = 0.5"))
    with pytest.raises(RunDamaged, match=r"recipe\.toml was changed .* says lr = 0\.5 where it said lr = 0\.05") as e:
        tlx.run(resume=run, quiet=True)
    assert e.value.fix == f"put back what was there, or start a new run with it, with: tlx run {run}/recipe.toml"
    tlx.run(run / "recipe.toml", out=str(tmp_path / "new"), quiet=True)
    (run / "recipe.toml").write_text(text)
    assert outcome(tlx.run(resume=run, quiet=True).run_dir) == outcome(folder / "whole")


def test_a_folder_that_was_copied_packed_or_moved_goes_on(folder: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", folder / "stopped")
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    (tmp_path / "unpacked").rename(tmp_path / "moved")
    assert outcome(tlx.run(resume=tmp_path / "moved", quiet=True).run_dir) == outcome(folder / "whole")
    (tmp_path / "moved").rename(tmp_path / "again")
    assert outcome(tlx.run(resume=tmp_path / "again", epochs=6, quiet=True).run_dir) == outcome(folder / "six")


MINE = (".notes.tmp", ".mine.0123abcd.tmp", "notes.txt", "manifest.json.bak", "last/best-of-all.safetensors")
LEFT = (
    *(".recipe.toml.0123abcd.tmp", ".manifest.json.0123abcd.tmp", "..model.safetensors.0123abcd.tmp.0123abcd.tmp"),
    *("last/.state-3.safetensors.0123abcd.tmp", "last/state-99.safetensors", "last/best-99.safetensors"),
    "last/state.safetensors",
)


@pytest.mark.parametrize(("which", "epochs", "expected"), [("stopped", 3, "whole"), ("whole", 6, "six")])
def test_what_killed_writers_left_is_cleared_and_what_is_not_tlx_s_stays(
    which: str, epochs: int, expected: str, folder: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(folder / which, tmp_path / "run"))
    for name in (*MINE, *LEFT):
        (run / name).write_text(name)
    with (run / "history.jsonl").open("a") as history:
        history.write('{"epoch": 9, "pha')  # a writer was killed within a line
    tlx.run(resume=run, epochs=epochs, quiet=True)
    assert outcome(run) == outcome(folder / expected)
    names = {name for name, kind in snapshot(run).items() if kind != "folder"}
    manifest = read_manifest(run)
    assert manifest is not None
    assert names == {*MINE, *manifest.files, "manifest.json"}
    assert all((run / name).read_text() == name for name in MINE)


def test_the_history_grows_and_is_not_rewritten(tmp_path: Path) -> None:
    sizes, files = [], set()

    def look(event: Event) -> None:
        if isinstance(event, EpochEnded) and event.epoch:
            status = (tmp_path / "run" / "history.jsonl").stat()
            sizes.append(status.st_size)
            files.add(status.st_ino)

    tlx.run(**{**FIELDS, "epochs": 12}, save_seconds=0, out=str(tmp_path / "run"), on_event=look)
    assert len(files) == 1 and sizes == sorted(sizes)
    assert (tmp_path / "run" / "manifest.json").stat().st_size < 3000  # however many epochs there are


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(GOLDEN / "saved-by-0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def flip(file: Path) -> None:
    flipped(0.9)(file, file)


def test_the_weights_of_a_run_of_0_1_0_are_held_to_its_card(old: Path) -> None:
    flip(old / "finished" / "model.safetensors")
    for read in (
        lambda: tlx.evaluate(old / "finished", quiet=True),
        lambda: tlx.predict(old / "finished", np.zeros((1, 8, 8), np.uint8)),
        lambda: tlx.load_model(old / "finished"),
        lambda: tlx.run(**{**FIELDS, "weights": str(old / "finished")}, out=str(old / "new")),
    ):
        with pytest.raises(TlxError, match=r"model\.safetensors is damaged"):
            read()
    assert not (old / "new").exists()


def test_a_run_that_0_1_0_was_stopped_in_takes_epochs_too_once_it_is_finished(old: Path) -> None:
    run, copy = old / "stopped", Path(shutil.copytree(old / "stopped", old / "copy"))
    assert tlx.run(resume=run, quiet=True).epochs_run == 3
    state = state_file(run)
    assert state is not None and list((run / "last").iterdir()) == [state]
    assert tlx.run(resume=run, epochs=5, quiet=True).epochs_run == 5
    flip(copy / "last" / "state.safetensors")
    with pytest.raises(TlxError, match=r"state\.safetensors is damaged"):
        tlx.run(resume=copy, quiet=True)


def as_before_manifests(run: Path) -> Path:
    """Write a finished run's folder as tlx did before it wrote manifests."""
    from safetensors import safe_open

    state = state_file(run)
    assert state is not None
    with safe_open(state, "np") as file:
        facts = json.loads(file.metadata()["tlx"])
    epochs = parse_history((run / "history.jsonl").read_bytes(), run / "history.jsonl")
    arrays = load_file(state)
    facts |= {"version": 1, "history": [asdict(epoch) for epoch in epochs]}
    metadata = {"tlx": json.dumps({**facts, "sha256": digest(arrays)})}
    save_file(arrays, run / "last" / "state.safetensors", metadata)
    state.unlink()
    (run / "manifest.json").unlink()
    card = json.loads((run / "card.json").read_text())
    (run / "card.json").write_text(json.dumps({**card, "format": 1}))
    (run / "history.jsonl").write_text("lost\n")  # the state held it
    return run


def test_a_finished_run_without_a_manifest_takes_epochs(folder: Path, tmp_path: Path) -> None:
    run = as_before_manifests(Path(shutil.copytree(folder / "whole", tmp_path / "run")))
    assert outcome(tlx.run(resume=run, epochs=6, quiet=True).run_dir) == outcome(folder / "six")
    assert read_manifest(run) is not None
