"""The cache folder: filled by one process while others wait, cleared of what was left, and done without if need be."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image

import tlx
from support.namespace import in_namespace
from support.server import Server, serving
from tlx.download import cache_folder, clear_leftovers, fetch

RUN = [
    sys.executable,
    "-c",
    "from tlx.cli import main; main()",
    "run",
    "--backend",
    "loopback",
    "--model",
    "tiny-mlp",
    "--weights",
    "none",
]
RUN += ["--image-size", "8", "--epochs", "2", "--strategy", "feature_extract", "--val-fraction", "0"]
LATER = "features are not kept for later runs: "


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def test_processes_that_want_the_same_file_download_it_once(server: Server, tmp_path: Path) -> None:
    content = os.urandom(20_000_000)
    server.files["file"] = content
    script = "import sys; from pathlib import Path; from tlx.download import fetch\n"
    script += "fetch(sys.argv[1], Path(sys.argv[2]), progress=False)"
    command = [sys.executable, "-c", script, server.url("file"), str(tmp_path / "file")]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert len(server.asked) == 1 and (tmp_path / "file").read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


def old(path: Path, days: float) -> Path:
    """A file, or what is there already, of so many days ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(b"half")
    os.utime(path, (time.time() - days * 86400,) * 2)
    return path


def test_what_killed_processes_left_is_cleared_once_it_is_old() -> None:
    cache = cache_folder()
    for home in ("killed", "living"):
        old(cache / "data" / home / ".lock", 0)
    old(cache / "data" / "killed" / ".content.tmp" / "photo.png", 2)
    gone = [
        old(cache / "data" / "killed" / ".content.tmp", 2),
        old(cache / "data" / ".cifar-10-batches-py-x.tmp" / "batch", 2).parent,
        old(cache / "data" / "cifar-10-python.tar.gz.part", 8),
        old(cache / "weights" / "resnet18-f37072fd.pth.part", 8),
        old(cache / "trials" / ".0123.01234567.tmp", 2),
        old(cache / "features" / ".0123.01234567.tmp" / "rows", 2).parent,
    ]
    for folder in gone:
        old(folder, 8)
    stay = [
        old(cache / "data" / "living" / ".content.tmp", 2),  # its lock is held
        old(cache / "weights" / "resnet34-b627a593.pth.part", 6),  # the next call continues it
        old(cache / "weights" / "resnet50-11ad3fa6.pth.part", 8),  # its lock is held
        old(cache / "trials" / ".4567.01234567.tmp", 0),
        old(cache / "trials" / "4567", 100),
        old(cache / "data" / "mine.part", 100),  # of a folder of the user
        old(cache / "data" / "photos" / ".mine.tmp", 100),
    ]
    with FileLock(cache / "data" / "living" / ".lock"), FileLock(cache / "weights" / ".resnet50-11ad3fa6.pth.lock"):
        clear_leftovers()
    assert all(path.exists() for path in stay) and not any(path.exists() for path in gone)


@pytest.mark.parametrize("kind", ["a file", "below /proc", "read-only", "nobody's home", "full"])
def test_a_cache_that_cannot_be_written_is_a_note(kind: str, tmp_path: Path) -> None:
    """And where it is needed, as for an archive, one line says what to do."""
    (tmp_path / "file").touch()
    (tmp_path / "mount").mkdir()
    places = {"a file": tmp_path / "file", "below /proc": "/proc/tlx", "nobody's home": "~nobody-there/cache"}
    environment = {"TLX_CACHE": str(places.get(kind, tmp_path / "mount" / "cache"))}
    before: list[str] = []
    if kind in ("read-only", "full"):
        option = "ro,size=64k" if kind == "read-only" else "size=64k"
        before = in_namespace(tmp_path / "mount", option, fill=kind == "full")
    runs = [
        subprocess.run(
            [*before, *RUN, "--data", "digits", "--out", str(tmp_path / use), "--feature-cache", use],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        for use in ("auto", "off")
    ]
    assert [ended.returncode for ended in runs] == [0, 0], runs
    assert [LATER in ended.stderr and "TLX_CACHE" in ended.stderr for ended in runs] == [True, False], runs
    weights = [(tmp_path / use / "model.safetensors").read_bytes() for use in ("auto", "off")]
    assert weights[0] == weights[1]
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / label / "1.png")
    subprocess.run([sys.executable, "-m", "zipfile", "-c", "photos.zip", "photos/"], cwd=tmp_path, check=True)
    command = [*before, *RUN, "--data", str(tmp_path / "photos.zip"), "--out", str(tmp_path / "zip")]
    ended = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "Fix: set TLX_CACHE" in ended.stderr
    assert not (tmp_path / "zip").exists()


def test_a_record_of_the_cache_that_was_altered_is_not_used(server: Server, tmp_path: Path) -> None:
    """Labels are in it, and the offsets of photos."""
    rows = "path,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(8))
    (tmp_path / "data.csv").write_text(rows)
    for i in range(8):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
    names = ["data.csv", *(f"{i}.png" for i in range(8))]
    subprocess.run([sys.executable, "-m", "zipfile", "-c", "d.zip", *names], cwd=tmp_path, check=True)
    server.files["d.zip"] = (tmp_path / "d.zip").read_bytes()

    def fingerprint() -> Any:
        return tlx.load_data(server.url("d.zip"), val_fraction=0).fingerprint

    expected = fingerprint()
    assert fingerprint() == expected and len(server.asked) == 1
    (record,) = cache_folder().rglob("record.json")
    record.write_text(record.read_text().replace('"sha1": "', '"sha1": "0'))
    assert fingerprint() == expected and len(server.asked) == 2


def test_what_needs_no_lock_takes_none(server: Server, tmp_path: Path) -> None:
    """A file that is there may be in a folder that cannot be written."""
    server.files["f"] = b"content"
    fetch(server.url("f"), tmp_path / "f", progress=False)
    (tmp_path / ".f.lock").mkdir()  # a lock that nobody gets
    assert fetch(server.url("f"), tmp_path / "f", progress=False).read_bytes() == b"content"
