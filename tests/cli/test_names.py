"""Names that no terminal shows well: in other alphabets, without an encoding, with control characters in them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.finished_runs import load_digits

NAMES = ["Äpfel".encode(), "猫".encode(), b'a, "b"', b"[red]", "ñ é".encode()]
TERMINALS: dict[str, dict[str, str]] = {
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "no locale": {"LC_ALL": "C", "LANG": "C"},
}
# One process for all commands: each ends by `sys.exit`.
COMMANDS = """
import sys
from tlx.cli import main
for command in sys.argv[1].split("|"):
    sys.argv[1:] = command.split("&")
    try:
        main()
    except SystemExit as end:
        print("exit", end.code, flush=True)
"""
RUN = "--backend&loopback&--model&tiny-mlp&--weights&none&--image-size&8&--batch-size&16&--val-fraction&0&--epochs&1"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits under class names that are hard to print, in a folder whose name is markup."""
    root = tmp_path_factory.mktemp("names") / "dáta [b]"
    for part, images in load_digits().items():
        for i in range(40):
            path = root / part / os.fsdecode(NAMES[images.labels[i] % 5]) / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images.open(i).save(path)
    return root


@pytest.mark.parametrize("terminal", TERMINALS)
def test_every_command_prints_every_name_on_every_terminal(terminal: str, photos: Path, tmp_path: Path) -> None:
    bad = photos.parent / os.fsdecode(b"bad\xe9\n9.png: x 1.0000\x1b[2J.png")
    bad.write_bytes(b"no photo")
    commands = [
        f"run&--data&{photos}&--out&run&{RUN}",
        "run&run/recipe.toml&--out&again",
        "evaluate&run",
        f"evaluate&run&--data&{photos}/test&--json",
        f"predict&run&{photos}/test&{bad}&--top&9",
        f"predict&run&{photos}/test&{bad}&--csv&out.csv",
        "report&run",
        f"explain&run&{photos}/test&{bad}",
        f"predict&run&{bad}",
        f"check&{photos}",
        f"evaluate&run&--data&{photos}/x\ny",
        f"run&--data&{bad}&{RUN}",
        f"strategies&{bad}.toml",
        f"models&{bad}",
        f"run&--{bad}",
        f"parity&compare&{bad}&{photos}",
    ]
    command: list[str | bytes] = [sys.executable, "-c", COMMANDS, os.fsencode("|".join(commands))]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **TERMINALS[terminal]}, capture_output=True)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in err and done.returncode == 0, err
    codes = [line.removeprefix("exit ") for line in out.splitlines() if line.startswith("exit ")]
    assert codes == [*"00000000", "2", "0", *"222222"]
    assert "\x1b" not in out + err
    lines = out.split("\n")
    assert not any(line.startswith("9.png: x") for line in (out + err).split("\n"))
    assert len([line for line in err.splitlines() if line.startswith("tlx: ")]) == 7
    (as_json,) = (json.loads(line) for line in lines if line.startswith("{"))
    assert {entry["class"] for entry in as_json["classes"]} == {os.fsdecode(name) for name in NAMES}
    assert ("\\u732b" if terminal == "ascii" else "猫") in out
    with (tmp_path / "out.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert paths == [*sorted(map(str, (photos / "test").rglob("*.png"))), str(bad)]
