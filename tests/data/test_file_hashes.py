"""Hashes of files in the cache: they spare a second run the reading, and no accident to them changes a result."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

import tlx
from support.small_data import NAMES, folder
from tlx.data import file_hashes
from tlx.data.file_hashes import HASH, FileHashes
from tlx.errors import TlxError


@pytest.fixture(autouse=True)
def _hashes_are_kept_at_once(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Files that a test has just written are younger than 2 s."""
    if "young" not in request.node.name:
        monkeypatch.setattr(file_hashes, "YOUNG", 0.0)


def table_files() -> list[Path]:
    home = Path(os.environ["TLX_CACHE"]) / "hashes"
    return sorted(home.iterdir()) if home.is_dir() else []


def reads(at: Path, files: FileHashes | None = None) -> tuple[bytes, int]:
    """The hashes of the photos in a folder, and how many had to be read."""
    told: list[int] = []
    spans = [(str(at / name), 0, -1) for name in NAMES]
    hashes = (files or FileHashes()).of(at, spans, lambda done, total: told.append(done))
    return hashes.tobytes(), len(told)


def test_a_second_run_reads_no_photo_again(tmp_path: Path) -> None:
    folder(tmp_path / "pets")
    time.sleep(0.02)
    first, read = reads(tmp_path / "pets")
    assert read
    assert reads(tmp_path / "pets") == (first, 0)
    (file,) = table_files()
    assert file.stat().st_size == 16 + 36 * 32


@pytest.mark.parametrize("damage", ["cut", "a byte", "empty", "a folder", "unreadable"])
def test_a_damaged_table_of_hashes_is_as_if_it_were_not_there(damage: str, tmp_path: Path) -> None:
    folder(tmp_path / "pets")
    time.sleep(0.02)
    expected, _ = reads(tmp_path / "pets")
    (file,) = table_files()
    content = bytearray(file.read_bytes())
    content[60] ^= 1
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif damage == "unreadable":
        file.symlink_to(file)
    else:
        file.write_bytes({"cut": bytes(content[:100]), "a byte": bytes(content), "empty": b""}[damage])
    hashes, read = reads(tmp_path / "pets")
    assert hashes == expected and read


def test_hashes_need_no_cache_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TLX_CACHE", str(tmp_path / "file" / "below"))
    folder(tmp_path / "pets")
    assert reads(tmp_path / "pets")[0] == reads(tmp_path / "pets")[0]


def test_the_hash_of_a_young_file_is_not_kept(tmp_path: Path) -> None:
    folder(tmp_path / "pets")
    reads(tmp_path / "pets")
    assert not table_files()


def test_tables_that_were_not_used_for_long_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "LIMIT", 3 * (16 + 36 * 32))
    for i in range(5):
        folder(tmp_path / str(i))
        time.sleep(0.02)
        reads(tmp_path / str(i))
    assert len(table_files()) == 3
    assert reads(tmp_path / "4")[1] == 0 and reads(tmp_path / "0")[1]


def test_a_pipe_among_photos_is_named_and_never_waited_for(tmp_path: Path) -> None:
    data = tlx.load_data(folder(tmp_path / "pets"))
    (tmp_path / "pets" / NAMES[0]).unlink()
    os.mkfifo(tmp_path / "pets" / NAMES[0])
    with pytest.raises(TlxError, match=r"00\.ppm is not a file"):
        assert data.fingerprint


def test_hashes_keep_zeros_at_their_ends() -> None:
    hashes = np.frombuffer(bytes(15) + b"\1" + b"\1" + bytes(15), dtype=HASH)
    assert hashes.tobytes()[-15:] == bytes(15) and hashes[hashes == hashes[1]].tobytes() == b"\1" + bytes(15)
