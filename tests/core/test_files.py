"""Only files are opened: a pipe would wait for ever, and a device has no end."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tlx.atomic import write_atomic
from tlx.errors import TlxError
from tlx.files import open_regular, read_regular


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one of each of what may lie in the place of a file."""
    monkeypatch.chdir(tmp_path)  # the path of a socket has 108 bytes at most
    os.mkfifo("pipe")
    os.mkdir("folder")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    for name, target in (("device", "/dev/zero"), ("circle", "circle"), ("to pipe", "pipe"), ("nowhere", "none")):
        os.symlink(target, name)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pipe", "it is a pipe, not a file"),
        ("to pipe", "it is a pipe, not a file"),
        ("socket", "it is a socket, not a file"),
        ("device", "it is a device, not a file"),
        ("/dev/zero", "it is a device, not a file"),
        ("folder", "Is a directory"),
        ("circle", "Too many levels of symbolic links"),
        ("nowhere", "No such file or directory"),
        ("x" * 256, "File name too long"),
        ("folder/\0", "no file can have this name"),
        ("\ud800", "no file can have this name"),
    ],
)
def test_what_is_no_file_is_not_opened(name: str, reason: str, place: Path) -> None:
    with pytest.raises(OSError) as error:
        open_regular(name)
    assert error.value.strerror == reason and error.value.filename == name


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = place / "file"
    file.write_bytes(b"x")
    look = os.stat

    def looked_at(path: Path) -> os.stat_result:
        facts = look(path)
        file.unlink(missing_ok=True)
        os.mkfifo(file)
        return facts

    monkeypatch.setattr(os, "stat", looked_at)
    with pytest.raises(OSError, match="it is a pipe, not a file"):
        open_regular(file)


def test_no_more_is_read_than_asked_for(place: Path) -> None:
    (place / "file").write_bytes(b"12345")
    assert read_regular(place / "file", 5) == b"12345"
    with pytest.raises(OSError, match="it has more than 4 bytes"):
        read_regular(place / "file", 4)
    with (place / "holes").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match=f"it has more than {2**30} bytes"):
        read_regular(place / "holes", 2**30)


@pytest.mark.skipif(not os.path.exists("/proc/self/pagemap"), reason="a file of Linux")
def test_a_file_without_a_size_may_be_endless() -> None:
    with pytest.raises(OSError, match="it has more than 1000000 bytes"):
        read_regular("/proc/self/pagemap", 10**6)


def test_nothing_but_a_file_is_replaced(place: Path) -> None:
    for name in ("pipe", "to pipe", "socket", "folder", ".", "/dev/null"):
        before = os.lstat(name)
        with pytest.raises(TlxError, match=r"Cannot write .*(not a file|Is a directory)"):
            write_atomic(name, b"x")
        assert os.path.samestat(before, os.lstat(name))
    write_atomic("n" * 255, b"x")
    assert Path("n" * 255).read_bytes() == b"x"
