"""`tlx runs` lists what lies below a folder: in order, with what differs, and a word for each that is damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tlx
from support.golden import FOLDER as GOLDEN
from support.hostile import snapshot
from support.run_files import FIELDS, reseal, stopped
from tlx.errors import DataNotFound
from tlx.manifest import Manifest, read_manifest
from tlx.runs.listing import RunEntry, differing, list_runs, rows, table
from tlx.training.metrics import EpochEnded, Event

STATES = {"finished", "running", "interrupted", "newer", "foreign", "damaged"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three finished runs and one that was stopped in its third epoch."""
    home = tmp_path_factory.mktemp("home")
    for name, lr, seed in (("a", 0.05, 0), ("deep/er/b", 0.3, 0), ("c", 0.05, 3)):
        tlx.run(**{**FIELDS, "lr": lr, "seed": seed}, out=str(home / name))
    stopped(home / "d", lr=0.01)
    return home


def by_name(entries: list[RunEntry]) -> dict[str, RunEntry]:
    return {Path(entry["run_dir"]).name: entry for entry in entries}


def listed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tlx", "runs", *arguments], capture_output=True, text=True)


def test_runs_are_listed_by_their_validation_accuracy_with_what_differs(home: Path) -> None:
    before = snapshot(home)
    entries = list_runs(home)
    assert snapshot(home) == before
    assert {*by_name(entries)} == {"a", "b", "c", "d"}
    accuracies = [entry["val_accuracy"] or 0 for entry in entries]
    assert accuracies == sorted(accuracies, reverse=True) and len(set(accuracies)) > 1
    assert differing(entries) == ["lr", "seed"]
    for name, folder in (("a", "a"), ("b", "deep/er/b")):
        result, entry = json.loads((home / folder / "result.json").read_text()), by_name(entries)[name]
        assert entry["state"] == "finished" and entry["seconds"] == result["wall_seconds"]
        for name in ("val_accuracy", "test_accuracy", "test_balanced_accuracy", "test_macro_f1"):
            assert entry[name] == result[name]  # type: ignore[literal-required]
    d = by_name(entries)["d"]
    history = [json.loads(line) for line in (home / "d" / "history.jsonl").read_text().splitlines()]
    assert (d["state"], d["epoch"], d["epochs"], d["test_accuracy"]) == ("interrupted", 3, 3, None)
    assert d["val_accuracy"] == max(epoch["val_accuracy"] for epoch in history)
    assert [entry["run_dir"] for entry in list_runs(home / "d")] == [str(home / "d")]


def test_the_command_prints_a_table_or_json(home: Path, tmp_path: Path) -> None:
    table = listed(str(home))
    assert table.returncode == 0 and not table.stderr
    lines = [line.split() for line in table.stdout.splitlines() if line.strip()]
    assert lines[0] == ["run", "state", "val", "test", "balanced", "macro", "F1", "seconds", "lr", "seed"]
    assert "interrupted" in table.stdout and table.stdout.count("finished") == 3
    as_json = listed(str(home), "--json")
    assert json.loads(as_json.stdout) == {"folder": str(home), "runs": list_runs(home)}
    nothing = listed(str(tmp_path))
    assert (nothing.returncode, nothing.stdout) == (0, f"no runs below {tmp_path}\n")
    nowhere = listed(str(tmp_path / "no"))
    assert nowhere.returncode == 2 and nowhere.stderr.count("\n") == 1 and "is no folder" in nowhere.stderr


def test_no_framework_is_loaded(home: Path) -> None:
    code = (
        "import sys; from tlx.runs.listing import list_runs, rows; rows(list_runs(sys.argv[1]))\n"
        "print([name for name in sys.modules if name in ('torch', 'oneflow', 'torchvision', 'sklearn')])"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_a_run_that_goes_on_is_running_and_is_not_disturbed(tmp_path: Path) -> None:
    seen: list[tuple[str, int | None]] = []

    def look(event: Event) -> None:
        if isinstance(event, EpochEnded):
            (entry,) = list_runs(tmp_path)
            seen.append((entry["state"], entry["epoch"]))

    tlx.run(**FIELDS, save_seconds=0, out=str(tmp_path / "run"), on_event=look)
    assert [state for state, _ in seen] == ["running"] * 3 and seen[-1][1] == 3
    assert list_runs(tmp_path)[0]["state"] == "finished"


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_runs_of_0_1_0_are_listed(state: str, tmp_path: Path) -> None:
    with tarfile.open(GOLDEN / "saved-by-0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    entries = by_name(list_runs(tmp_path))
    assert entries[state]["state"] == {"finished": "finished", "stopped": "interrupted"}[state]
    assert (entries[state]["val_accuracy"] or entries[state]["test_accuracy"] or state == "stopped") is not None


def forge(name: str, edit: Callable[[str], str]) -> Callable[[Path], Any]:
    """Change a file, with a manifest that says that it belongs to the run."""

    def forged(run: Path) -> None:
        (run / name).write_bytes(edit((run / name).read_text()).encode("utf-8", "surrogateescape"))
        reseal(run)

    return forged


def value(name: str, text: str) -> Callable[[Path], Any]:
    return forge("result.json", lambda old: json.dumps({**json.loads(old), name: "@"}).replace('"@"', text))


def replaced(path: Path) -> Path:
    path.unlink()
    return path


def other_values(run: Path) -> None:
    weights = run / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))


def newer(run: Path) -> None:
    text = (run / "manifest.json").read_text()
    from tlx.manifest import _digest  # as a later tlx would seal it

    body = {name: value for name, value in json.loads(text).items() if name != "sha256"} | {"format": 99}
    (run / "manifest.json").write_text(json.dumps({**body, "sha256": _digest(body)}))


def without_manifest(recipe: str) -> Callable[[Path], Any]:
    def strip(run: Path) -> None:
        shutil.rmtree(run)
        (run / "last").mkdir(parents=True)
        (run / "recipe.toml").write_text(recipe)

    return strip


def unreadable(run: Path) -> None:
    manifest = read_manifest(run)
    assert manifest is not None
    Manifest({name: entry for name, entry in manifest.files.items() if name != "recipe.toml"}).write(run)


HOSTILE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "manifest empty": ("damaged", lambda run: (run / "manifest.json").write_bytes(b"")),
    "manifest gone": ("damaged", lambda run: (run / "manifest.json").unlink()),
    "manifest a folder": ("damaged", lambda run: replaced(run / "manifest.json").mkdir()),
    "manifest a pipe": ("damaged", lambda run: os.mkfifo(replaced(run / "manifest.json"))),
    "manifest a loop": ("damaged", lambda run: replaced(run / "manifest.json").symlink_to("manifest.json")),
    "manifest endless": ("damaged", lambda run: os.truncate(run / "manifest.json", 1 << 40)),
    "manifest nested": ("damaged", lambda run: (run / "manifest.json").write_text("[" * 100_000)),
    "manifest newer": ("newer", newer),
    "manifest without recipe": ("damaged", unreadable),
    "result edited": ("damaged", lambda run: (run / "result.json").write_text("{}")),
    "result a pipe": ("damaged", lambda run: os.mkfifo(replaced(run / "result.json"))),
    "result endless": ("damaged", lambda run: os.truncate(run / "result.json", 1 << 40)),
    "result a list": ("damaged", forge("result.json", lambda old: "[]")),
    "accuracy a text": ("damaged", value("val_accuracy", '"0.9"')),
    "accuracy NaN": ("damaged", value("val_accuracy", "NaN")),
    "accuracy 2": ("damaged", value("test_accuracy", "2")),
    "seconds huge": ("damaged", value("wall_seconds", "1" + "0" * 400)),
    "seconds true": ("damaged", value("wall_seconds", "true")),
    "history": ("damaged", forge("history.jsonl", lambda old: "{}\n")),
    "history no text": ("damaged", forge("history.jsonl", lambda old: "\udcff\n")),
    "recipe no TOML": ("damaged", forge("recipe.toml", lambda old: "=")),
    "recipe with a date": ("damaged", forge("recipe.toml", lambda old: old.replace("seed = 0", "seed = 2000-01-01"))),
    "recipe NaN": ("damaged", forge("recipe.toml", lambda old: old.replace("seed = 0", "seed = nan"))),
    "recipe epochs": ("damaged", forge("recipe.toml", lambda old: old.replace("epochs = 3", 'epochs = "many"'))),
    "recipe unknown": ("damaged", forge("recipe.toml", lambda old: old + "elephants = 3\n")),
    "weights shorter": ("damaged", lambda run: os.truncate(run / "model.safetensors", 10)),
    "weights gone": ("damaged", lambda run: (run / "model.safetensors").unlink()),
    "foreign": ("foreign", without_manifest('[tool.poetry]\nname = "x"\n')),
    "begun": ("interrupted", without_manifest('data = "digits"\n')),
    "weights of the same size, which are not read": ("finished", other_values),
    "a\x1b[31m\nb": ("finished", lambda run: None),
    os.fsdecode(b"\xff"): ("finished", lambda run: None),
}


def test_hostile_folders_are_one_word_each(home: Path, tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    for name, (_, edit) in HOSTILE.items():
        edit(shutil.copytree(home / "a", tmp_path / "all" / name))
    (tmp_path / "all" / "others").mkdir()
    (tmp_path / "all" / "others" / "manifest.json").write_text('{"name": "an app"}')
    (tmp_path / "all" / "recipes").mkdir()
    (tmp_path / "all" / "recipes" / "recipe.toml").write_text('data = "digits"')
    (tmp_path / "all" / "loop").symlink_to(tmp_path / "all")
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    entries = list_runs(tmp_path / "all")
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert {name: entry["state"] for name, entry in by_name(entries).items()} == {
        name: state for name, (state, _) in HOSTILE.items()
    }
    assert {entry["state"] for entry in entries} <= STATES
    heads, cells = rows(entries)
    assert all(len(row) == len(heads) and "\x1b" not in "".join(row) for row in cells)
    json.dumps(entries, allow_nan=False)
    for options in ((), ("--json",)):
        ended = listed(str(tmp_path / "all"), *options)
        assert ended.returncode == 0 and not ended.stderr and "\x1b" not in ended.stdout


def test_hundreds_of_runs_are_listed(home: Path, tmp_path: Path) -> None:
    for number in range(300):
        shutil.copytree(home / "a", tmp_path / str(number), copy_function=os.link)
    entries = list_runs(tmp_path)
    assert [entry["state"] for entry in entries] == ["finished"] * 300
    assert differing(entries) == [] and rows(entries)[0][:5] == ["run", "state", "val", "test", "balanced"]


def test_a_default_differs_from_another_value_and_an_unreadable_recipe_from_nothing() -> None:
    figures = dict.fromkeys(("val_accuracy", "test_accuracy", "test_balanced_accuracy", "test_macro_f1"))
    empty: Any = {"state": "finished", "epoch": None, "epochs": 3, **figures}
    recipes: list[Any] = [{"seed": 0, "stages": ["layer4"]}, {"lr": 0.1, "seed": 0, "stages": ["layer3", "layer4"]}, {}]
    entries: list[Any] = [{**empty, "run_dir": "x", "seconds": None, "recipe": recipe} for recipe in recipes]
    assert sorted(differing(entries)) == ["lr", "stages"]
    assert rows(entries)[1][2] == ["x", "finished", *["-"] * 7]


def test_a_narrow_table_cuts_nothing_and_names_the_fields_without_room(home: Path) -> None:
    entries = list_runs(home)
    whole, narrow = table(entries), table(entries, 40)
    assert "seed" in whole.splitlines()[0] and len(whole.splitlines()) == 5
    heads, *lines, last = narrow.splitlines()
    assert heads.split() == ["run", "state", "val", "test", "balanced", "macro", "F1", "seconds"] and len(lines) == 4
    assert last == "They differ in lr, seed too: use a wider terminal, or --json."
    assert all(line.startswith(entry["run_dir"]) for line, entry in zip(lines, entries, strict=True))
    wide: Any = {**entries[0], "run_dir": "\u732b\u732b"}
    assert table([wide], 40).splitlines()[1].startswith("\u732b\u732b  finished"), "which are two cells wide each"


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="is no folder"):
        list_runs(tmp_path / "no")
