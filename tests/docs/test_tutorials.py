"""The tutorials: their scripts run in a small form, and their pages are the scripts and what they published."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tlx
from support.backends import FRAMEWORKS
from tlx import cli

ROOT = Path(__file__).parents[2]
SCRIPTS = ("cifar10", "ants_and_bees", "own_network", "data_size", "embeddings")
# What the sample in CI does of each; `make thorough` does all of the form.
SAMPLES = {
    "cifar10": ("both-feature_extract-*", "by-hand*"),
    "ants_and_bees": ("fixed-*",),
    "own_network": ("own*",),
    "data_size": ("40-feature_extract*", "80-full*"),
    "embeddings": (),
}


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(ROOT / "examples")
    return ROOT / "examples"


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def run(name: str, examples: Path, *arguments: str) -> Any:
    script, tutorial = module(examples / f"{name}.py"), sys.modules["tutorial"]
    return tutorial.main(name, script.runs, script.show, arguments)


@pytest.mark.needs(*FRAMEWORKS)
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_tutorial_runs_in_a_small_form_and_what_is_finished_is_not_run_again(
    name: str, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = ["--only", *SAMPLES[name]] if SAMPLES[name] else []
    first = run(name, examples, "--form", "check", "--out", str(tmp_path), *only)
    assert first.rows and all((tmp_path / "results" / f"{label}.json").exists() for label in first.rows)
    assert all(0 <= row["accuracy"] <= 1 for row in first.rows.values() if "accuracy" in row)
    assert first.pictures and any((tmp_path / "pictures" / name).stat().st_size for name in first.pictures)
    with monkeypatch.context() as patch:
        patch.setattr(tlx, "run", lambda **_: pytest.fail("a finished run was run again"))
        again = run(name, examples, "--form", "check", "--out", str(tmp_path), *only)
    assert again.lines == first.lines and again.rows == first.rows


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.needs(*FRAMEWORKS)
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_tutorial_runs_whole_in_its_small_form(name: str, examples: Path, tmp_path: Path) -> None:
    done = run(name, examples, "--form", "check", "--out", str(tmp_path))
    assert "to do" not in "\n".join(done.lines)
    assert all((tmp_path / "pictures" / picture).stat().st_size for picture in done.pictures)


def test_a_run_that_was_stopped_goes_on_when_the_command_is_repeated(examples: Path, tmp_path: Path) -> None:
    tutorial = importlib.import_module("tutorial")
    fields: dict[str, Any] = {
        **{"backend": "loopback", "model": "tiny-mlp", "weights": "none", "data": "digits", "image_size": 8},
        **{"limit_train": 100, "limit_test": 20, "epochs": 3, "save_seconds": 0.0},
    }

    def stop(event: Any) -> None:
        if type(event).__name__ == "EpochEnded":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tlx.run(**fields, out=str(tmp_path / "one"), quiet=True, on_event=stop)
    row = tutorial.Tutorial("name", "check", tmp_path).run("one", **fields)
    whole = tlx.run(**fields, out=str(tmp_path / "whole"), quiet=True)
    assert row["accuracy"] == whole.test_accuracy and row["epochs"] == 3
    assert row["command"].startswith("tlx run --backend loopback") and row["command"].endswith("--out runs/one")


def test_parts_of_the_whole_form_may_be_published_from_several_machines(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tutorial = importlib.import_module("tutorial")
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(tutorial, "PAGES", tmp_path / "docs")
    monkeypatch.setattr(tutorial, "DATA", tmp_path)
    done: list[str] = []

    def go(label: str) -> dict[str, Any]:
        done.append(label)
        return {"accuracy": len(done) / 4}

    def runs(t: Any) -> None:
        for label in ("first", "second", "third"):
            t.once(label, partial(go, label))

    for machine, only in (("A", ["second"]), ("B", ["first", "second"]), ("C", ["*"])):
        arguments = ["--whole", "--publish", "--out", str(tmp_path / machine), "--only", *only]
        shown = tutorial.main("name", runs, lambda t: t.table("all"), arguments)
    assert done == ["second", "first", "third"]
    kept = json.loads((tmp_path / "docs" / "results" / "name-whole.json").read_text(encoding="utf-8"))
    assert [row["label"] for row in kept["rows"]] == ["first", "second", "third"]
    assert [row["accuracy"] for row in kept["rows"]] == [0.5, 0.25, 0.75]
    assert [line.split()[0] for line in shown.lines if line] == ["all", "first", "second", "third"]
    tutorial.main("name", runs, lambda t: t.table("all"), ["--whole", "--out", str(tmp_path / "D"), "--only", "first"])
    assert done[3:] == ["first"], "who does not publish does the run, whatever has been published"


def test_a_giant_takes_part_where_its_weights_are(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = module(examples / "own_network.py")
    files = (
        "resnet18-imagenet-backbone.safetensors",
        "resnet18-imagenet200-32px.safetensors",
        "resnet101-63fe2227.pth",
    )
    (tmp_path / "weights").mkdir()
    for name in files:
        (tmp_path / "weights" / name).touch()
    monkeypatch.setattr(script, "DATA", tmp_path)
    monkeypatch.setattr(sys.modules["tutorial"], "DATA", tmp_path)
    found = script.giants(sys.modules["tutorial"].Tutorial("own_network", "whole", tmp_path))
    assert found == {
        "resnet18": str(tmp_path / "weights" / files[0]),
        "resnet101": str(tmp_path / "weights" / files[2]),
    }


def test_pages_and_results_are_those_of_the_scripts_and_of_what_they_published() -> None:
    maker = module(ROOT / "docs" / "make_tutorials.py")
    for file, text in maker.pages().items():
        assert file.read_text(encoding="utf-8") == text, f"{file.name} is old: run python docs/make_tutorials.py"


def test_the_code_of_a_page_is_the_scripts_and_its_commands_are_those_of_the_command_line() -> None:
    for page in (ROOT / "docs" / "tutorials").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert text.count(":pyobject:") >= 2 and "```python" not in text
        block = text.partition("```bash\n")[2].partition("```")[0].replace("\\\n", " ")
        commands = [shlex.split(line) for line in block.splitlines() if line.startswith("tlx ")]
        assert commands, page.name
        for words in commands:
            cli.app.parse_args(words[1:], exit_on_error=False, print_error=False)


def test_what_is_published_has_what_a_figure_needs() -> None:
    for file in (ROOT / "docs" / "tutorials" / "results").glob("*.json"):
        for row in json.loads(file.read_text(encoding="utf-8"))["rows"]:
            assert row["machine"] and row["date"] and row["seconds"] >= 0
            assert row["versions"] and not any(place in json.dumps(row) for place in ("/root", "/tmp", "/home"))
