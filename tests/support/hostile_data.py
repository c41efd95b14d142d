"""Hostile data for the command line: bytes gone wrong, a folder with traps in it, and the commands that read data."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from support.hostile import INPUTS, Outcome, check, hostile_inputs

# A run of milliseconds, which needs no framework.
RUN = (
    *("--backend", "loopback", "--model", "tiny-mlp", "--weights", "none", "--image-size", "8", "--epochs", "1"),
    *("--batch-size", "4", "--workers", "1"),
)
fewer_inputs = settings(hostile_inputs, max_examples=max(10, INPUTS // 3))  # where much is chosen from a list
COMMANDS = ("run", "predict", "evaluate")
SAMPLES = 20  # of two classes: enough for a validation and a test part to be drawn
places = st.sets(st.integers(0, SAMPLES - 1), max_size=3)  # of samples that are hostile among others
# fmt: off
# What lies in `traps`, under the names of photos.
TRAPS = (
    "pipe.png", "zero.png", "null.png", "tty.png", "folder.png", "circle.png", "nowhere.png", "empty.png", "text.png",
)
# fmt: on


def png() -> bytes:
    """A small photo."""
    file = io.BytesIO()
    Image.new("RGB", (9, 8), (60, 99, 7)).save(file, "PNG")
    return file.getvalue()


def traps(folder: Path, photos: int = SAMPLES) -> Path:
    """Put photos 0.png, 1.png ... into a folder, and beside them whatever is no photo."""
    for i in range(photos):
        Image.new("RGB", (9 + i % 4, 8), (12 * i, 99, 7)).save(folder / f"{i}.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    for name, target in (("zero", "/dev/zero"), ("null", "/dev/null"), ("tty", "/dev/tty"), ("nowhere", "none")):
        (folder / f"{name}.png").symlink_to(target)
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "up").symlink_to("..")
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no photo")
    return folder


def use(target: str, command: str, run_dir: Path, data: str, folder: Path, *more: str) -> Outcome:
    """Give data to a command that reads data: all that `check` promises must hold."""
    argv = {
        "run": ("run", "--data", data, *RUN, *more),
        "predict": ("predict", str(run_dir), data),
        "evaluate": ("evaluate", str(run_dir), "--data", data),
    }
    return check(target, *argv[command], folder=folder)


@contextmanager
def workplace(tmp_path: Path) -> Iterator[Path]:
    """A folder for one input, which is gone after it."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        yield Path(name)


@st.composite
def mutated(draw: st.DrawFn, content: bytes, most: int = 6) -> bytes:
    """A file's bytes with some of them changed, left out, repeated or cut off."""
    for _ in range(draw(st.integers(1, most))):
        # Headers decide most, so half of the changes are near the beginning.
        end = max(1, draw(st.sampled_from((min(64, len(content)), len(content)))))
        at = draw(st.integers(0, end - 1))
        length = draw(st.integers(1, 8))
        kind = draw(st.sampled_from(("change", "number", "remove", "repeat", "cut")))
        if kind == "change":
            content = content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[at + length :]
        elif kind == "number":  # the largest and the smallest of each size
            number = draw(st.sampled_from((b"\xff", b"\x7f", b"\x80", b"\0"))) + draw(
                st.sampled_from((b"", b"\xff" * 3))
            )
            content = content[:at] + number + content[at + len(number) :]
        elif kind == "remove":
            content = content[:at] + content[at + length :]
        elif kind == "repeat":
            content = content[: at + length * 8] + content[at:]
        else:
            content = content[:at]
    return content
