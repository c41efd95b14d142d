"""What a real terminal receives, live bar included, where names try to steer it."""

from __future__ import annotations

import csv
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from support.finished_runs import load_digits
from support.hostile_recipes import BASE
from tlx.errors import UNPRINTABLE

CLASSES = ["[/red]", "[bold]x", ":smile:", "{task}", "a\u202eb", "\U0001f468\u200d\U0001f469", "é" * 120]
# What rich itself sends: colours, and how a live bar is drawn, erased and drawn again, with the cursor hidden.
OWN = re.compile(r"\x1b\[(?:[0-9;]*m|[0-9]*A|\?25[lh])")
ERASED = re.compile(r"\r|\x1b\[2K")  # where a live bar was, and the next line begins
MAIN = "from tlx.cli import main; main()"


def on_a_terminal(*argv: str, folder: Path) -> tuple[int, str]:
    """The exit code of `tlx`, and all that a terminal received of it."""
    ours, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", "LINES": "50"}
    command = [sys.executable, "-c", MAIN, *argv]
    with subprocess.Popen(command, cwd=folder, env=environment, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        received = b""
        while True:
            try:
                received += (part := os.read(ours, 65536))
            except OSError:  # so Linux says that the other side is closed
                break
            if not part:
                break
    os.close(ours)
    return process.returncode, received.decode()


def lines_of(received: str) -> list[str]:
    """The lines without what rich itself sends; nothing else may steer the terminal."""
    lines = OWN.sub("", ERASED.sub("\n", received.replace("\r\n", "\n"))).split("\n")
    for line in lines:
        assert not UNPRINTABLE.search(line), ascii(line)
    return lines


def save_classes(folder: Path, names: list[str]) -> Path:
    """A few digits under these class names."""
    images = load_digits()["train"]
    for i in range(60):
        path = folder / "train" / names[images.labels[i] % len(names)] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.open(i).save(path)
    return folder


def save_table(file: Path, names: list[str]) -> Path:
    """A few digits in a table, whose labels may be any text: no folder has a slash in its name."""
    images, labels = load_digits()["train"], {}
    for i in range(60):
        images.open(i).save(file.parent / f"{i:02}.png")
        labels[f"{i:02}.png"] = names[images.labels[i] % len(names)]
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([("path", "label"), *labels.items()])
    return file


def options(data: Path) -> list[str]:
    """Train on this data in some milliseconds."""
    fields = {**BASE, "data": data}
    return [f"--{name.replace('_', '-')}={value}" for name, value in fields.items() if not name.startswith("limit")]


def test_class_names_are_text_whatever_stands_in_them(tmp_path: Path) -> None:
    data = save_table(tmp_path / "[link=x]data.csv", CLASSES)
    code, received = on_a_terminal("run", *options(data), "--out", "run[/]", folder=tmp_path)
    lines = lines_of(received)
    assert code == 0, received
    assert "\x1b[?25l" in received  # the live bar was there
    assert lines[0].startswith("[link=x]data: 7 classes")
    (counts,) = (line for line in lines if "training images of each class" in line)
    assert all(name in counts for name in ("[/red] ", "[bold]x ", ":smile: ", "{task} ", "a\\u202eb ", "\\u200d"))
    code, received = on_a_terminal("evaluate", "run[/]", folder=tmp_path)
    assert code == 0
    table = "\n".join(lines_of(received))
    assert all(name in table for name in ("[/red] ", "[bold]x ", ":smile: ", "{task} ", "a\\u202eb "))
    code, received = on_a_terminal("predict", "run[/]", str(data), "--top", "7", folder=tmp_path)
    assert code == 0 and all("\\u202e" in line for line in lines_of(received)[:-1])


@pytest.mark.parametrize("name", ["a\x1b[31m", "x\ny", "back\b\b\b\b", "\x1b]0;title\x07", "over\rwritten", "\udcff"])
def test_a_class_name_with_control_characters_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    data = save_classes(tmp_path / "data", ["good", name])
    code, received = on_a_terminal("run", *options(data), folder=tmp_path)
    line, rest = lines_of(received)
    assert code == 2 and line.startswith("tlx: data: the class name '") and not rest
    assert not (tmp_path / "runs").exists()


def test_names_in_a_recipe_can_forge_no_line(tmp_path: Path) -> None:
    forged = "x\nepoch 9/9  train loss 0.0000 accuracy 1.0000"
    strategy = {
        "name": f"[/]{forged}",
        "groups": [{"name": "[/red]\x1b[2J", "match": "head"}, {"name": "\x1b]0;t\x07\u202e", "match": "backbone"}],
        "phases": [
            {"name": "[bold]\r", "lr": {"[/red]\x1b[2J": 0.1}},
            {"name": forged, "start": 1, "lr": {"\x1b]0;t\x07\u202e": 0.1}},
        ],
    }
    fields = {name: value for name, value in BASE.items() if name != "lr"}
    recipe = {**fields, "strategy": strategy, "out": "run\x1b[31m\nepoch 8/8"}
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(recipe))
    code, received = on_a_terminal("run", "recipe.toml", folder=tmp_path)
    lines = lines_of(received)
    assert code == 0, received
    epochs = [line for line in lines if line.startswith("epoch ") and "  train loss " in line]
    assert [line[:9] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    assert any(line.startswith("[/]x\\nepoch 9/9") for line in lines)
    assert any("[/red]\\x1b[2J" in line for line in lines)
    code, received = on_a_terminal("strategies", "recipe.toml", folder=tmp_path)
    assert code == 0 and not [line for line in lines_of(received) if line.startswith("epoch ")]
