"""Archives of strangers: nothing is written outside of their folder, none unpacks for ever, none by half."""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.archives import ARCHIVES, member, tar_of, tarred, zipped
from tlx.data import load_data
from tlx.data.sources import strict_tar
from tlx.data.sources import unpack as unpacking
from tlx.data.sources.unpack import unpack
from tlx.data.sources.webdataset import is_shard
from tlx.errors import DataError

HOSTILE = {
    "traversal": ((member("../evil", size=1), b"x"), "would be written outside"),
    "traversal within": ((member("a/../../evil", size=1), b"x"), "would be written outside"),
    "absolute": ((member("/tmp/evil-of-tlx", size=1), b"x"), "would be written outside"),
    "drive": ((member("C:/evil", size=1), b"x"), "would be written outside"),
    "symlink out": ((member("a", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b""), "outside the folder"),
    "symlink up": ((member("d/a", type=tarfile.SYMTYPE, linkname="../../x"), b""), "outside the folder"),
    "hard link out": ((member("a", type=tarfile.LNKTYPE, linkname="../../etc/passwd"), b""), "outside the folder"),
    "device": ((member("a", type=tarfile.CHRTYPE), b""), "is a device or a pipe"),
    "pipe": ((member("a", type=tarfile.FIFOTYPE), b""), "is a device or a pipe"),
    "twice": ((member("good.png", size=1), b"x"), "'good.png' is in it twice"),
    "twice, spelled otherwise": ((member("./good.png", size=1), b"x"), "'good.png' is in it twice"),
    "file as folder": ((member("good.png/x", size=1), b"x"), "cannot be unpacked into"),
    "long name": ((member("n" * 2_000_000, size=1), b"x"), "a header has 2000014 bytes"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_tar_is_refused_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    (info, content), message = HOSTILE[kind]
    (tmp_path / "x.tar").write_bytes(tar_of((member("good.png", size=4), b"good"), (info, content)))
    with pytest.raises(DataError, match=message) as error:
        unpack(tmp_path / "x.tar", tmp_path / "in" / "out")
    assert "\n" not in str(error.value) and "x.tar" in str(error.value)
    assert not list((tmp_path / "in").iterdir()) and not (tmp_path / "evil").exists()
    assert not Path("/tmp/evil-of-tlx").exists()


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """A link that is made first would carry the next member elsewhere."""
    link = member("d", type=tarfile.SYMTYPE, linkname=".")
    (tmp_path / "x.tar").write_bytes(tar_of((link, b""), (member("d/evil", size=1), b"x")))
    notes = unpack(tmp_path / "x.tar", tmp_path / "out")
    assert (tmp_path / "out" / "d" / "evil").is_file() and not (tmp_path / "out" / "d").is_symlink()
    assert notes == ["left out of the archive because they lead to no file in it: d"]


def test_links_to_files_of_the_archive_become_these_files(tmp_path: Path) -> None:
    content = (
        (member("d/second", type=tarfile.SYMTYPE, linkname="first"), b""),
        (member("d/first", type=tarfile.SYMTYPE, linkname="../a.png"), b""),
        (member("a.png", size=1), b"x"),
        (member("b.png", type=tarfile.LNKTYPE, linkname="a.png"), b""),
        (member("gone", type=tarfile.SYMTYPE, linkname="nowhere"), b""),
    )
    (tmp_path / "x.tar").write_bytes(tar_of(*content))
    assert unpack(tmp_path / "x.tar", tmp_path / "out") == [
        "left out of the archive because they lead to no file in it: gone"
    ]
    files = {
        p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()
    }
    assert files == dict.fromkeys(("a.png", "b.png", "d/first", "d/second"), b"x")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def zip_entry(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("../evil", "would be written outside"),
        ("/evil", "would be written outside"),
        ("..\\evil", "would be written outside"),
        (zip_entry("link", stat.S_IFLNK | 0o777), "is a link to '../etc/passwd', outside"),
        (zip_entry("device", stat.S_IFCHR | 0o666), "is a device or a pipe"),
        ("good.png", "'good.png' is in it twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_zip_is_refused_and_leaves_nothing(entry: Any, message: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("good.png", b"good")
        archive.writestr(entry, b"../etc/passwd")
    with pytest.raises(DataError, match=message):
        unpack(tmp_path / "x.zip", tmp_path / "in" / "out")
    assert not list((tmp_path / "in").iterdir()) and not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", ["bomb.zip", "bomb.tar.gz", "bomb.tar.bz2", "bomb.tar.xz"])
def test_a_bomb_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "SUSPECT", 2**20)
    zeros = tarred({"a.png": bytes(2**22)})
    pack: dict[str, Any] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    if name.endswith(".zip"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.png", bytes(2**22))
    else:
        (tmp_path / name).write_bytes(pack[Path(name).suffix](zeros))
    with pytest.raises(DataError, match="unpacks to more than 1048576 bytes, suspiciously many"):
        unpack(tmp_path / name, tmp_path / "in" / "out")
    assert not list((tmp_path / "in").iterdir())


def test_an_archive_of_too_many_entries_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "ENTRIES", 3)
    for name, content in (("x.zip", zipped), ("x.tar", tarred)):
        (tmp_path / name).write_bytes(content({f"{i}": b"" for i in range(4)}))
        with pytest.raises(DataError, match="more than 3 entries"):
            unpack(tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tar.xz", "photos.tar.bz2"])
@settings(max_examples=25, derandomize=True, deadline=None)
@given(data=st.data())
def test_a_damaged_archive_is_unpacked_or_one_clear_error(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(ARCHIVES[name])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / name).write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        unpack(folder / name, folder / "in" / "out")
    except DataError as error:
        assert "\n" not in str(error) and not list((folder / "in").iterdir())


def test_a_tar_that_is_cut_off_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    """`tarfile` alone takes some cuts for the end."""
    whole = ARCHIVES["photos.tar"]
    end = whole.rstrip(b"\0")
    for length in range(600, len(end), 1111):
        (tmp_path / "x.tar").write_bytes(whole[:length])
        with pytest.raises(DataError):
            unpack(tmp_path / "x.tar", tmp_path / "out")


def test_many_links_that_lead_to_each_other_take_linear_time(tmp_path: Path) -> None:
    count = 20_000  # each looked for among all others, they would take minutes
    links = [(member(f"{i}", type=tarfile.SYMTYPE, linkname=f"{i + 1}"), b"") for i in range(count)]
    circle = [(member(f"c{i}", type=tarfile.SYMTYPE, linkname=f"c{(i + 1) % count}"), b"") for i in range(count)]
    (tmp_path / "x.tar").write_bytes(tar_of(*links, *circle, (member("x.png", size=1), b"x")))
    (note,) = unpack(tmp_path / "x.tar", tmp_path / "out")
    assert note.startswith("left out of the archive because they lead to no file in it: 0, 1, 10, 100, 1000, ...")


def raw(records: dict[str, str], name: str = "x.png", size: int = 1) -> bytes:
    """A member as PAX writes it, whatever its records say."""
    info = member(name, size=size, pax_headers=records)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


LONG_NAME = member("././@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=1).tobuf(tarfile.GNU_FORMAT) + bytes(512)
EVERY = member("g", type=tarfile.XGLTYPE, size=2**15).tobuf(tarfile.GNU_FORMAT) + b"9 a=bcde\n".ljust(2**15, b"\0")
STRAY = {
    "a size below zero leads back to the beginning": (raw({"size": "-1024"}), "a member has -1024 bytes"),
    "so does one in the header itself": (
        member("x.png", size=-1024).tobuf(tarfile.GNU_FORMAT),
        "a member has -1024 bytes",
    ),
    "digits that are searched again from each of them": (raw({"a": "1" * 60_000}), "a number of more than 1000 digits"),
    "headers that all wait for their member": (LONG_NAME * 2000, "headers follow headers"),
    "records that hold for all members": (EVERY * 8, "a header has 98304 bytes, suspiciously many"),
}


@pytest.mark.parametrize("kind", STRAY)
def test_a_tar_that_leads_tarfile_astray_is_refused(kind: str, tmp_path: Path) -> None:
    header, message = STRAY[kind]
    (tmp_path / "x.tar").write_bytes(tarred({"0.png": b"x", "0.cls": b"0"})[:2048] + header + bytes(2048))
    with pytest.raises(DataError, match=message):
        unpack(tmp_path / "x.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match=message):  # a shard is not unpacked, but its headers are read
        load_data(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(header + bytes(2048))
    assert not is_shard(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/".join("d" * 101), "101 steps, suspiciously many"),
        ("é" * 2100, "2100 letters and 1 steps, suspiciously many"),
    ],
)
def test_a_path_that_no_folder_can_hold_is_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tarred({"good.png": b"x", name: b"x"}))
    with pytest.raises(DataError, match=message):
        unpack(tmp_path / "x.tar", tmp_path / "out")
    link = member("link", type=tarfile.SYMTYPE, linkname="x" * 5000)
    (tmp_path / "x.tar").write_bytes(tar_of((link, b"")))
    with pytest.raises(DataError, match="leads to a path of 5000 letters"):
        unpack(tmp_path / "x.tar", tmp_path / "out")


def test_what_follows_the_end_of_a_tar_is_part_of_the_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "SUSPECT", 2**20)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(tarred({"a.png": b"x"}) + bytes(2**22)))
    with pytest.raises(DataError, match="unpacks to more than 1048576 bytes, suspiciously many"):
        unpack(tmp_path / "x.tar.gz", tmp_path / "out")


def test_what_a_sparse_file_leaves_to_skip_has_an_end(tmp_path: Path) -> None:
    """It says that a terabyte is stored of a file of no bytes."""
    sparse = bytearray(member("x.png", type=tarfile.GNUTYPE_SPARSE, size=2**40).tobuf(tarfile.GNU_FORMAT))
    sparse[386:483] = bytes(97)  # the map, and the size of the file
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    (tmp_path / "x.tar").write_bytes(tarred({"0.png": b"x"})[:1024] + sparse + bytes(2048))
    with pytest.raises(DataError, match="it is cut off"):
        unpack(tmp_path / "x.tar", tmp_path / "out")


def test_the_limits_of_headers_leave_room_for_what_programs_write(tmp_path: Path) -> None:
    records = {"path": "p/" + "é" * 100 + ".png", "SCHILY.xattr.user.x": "x" * 30_000, "mtime": "1.5"}
    (tmp_path / "x.tar").write_bytes(raw(records) + b"x".ljust(512, b"\0") + bytes(1024))
    assert unpack(tmp_path / "x.tar", tmp_path / "out") == []
    assert (tmp_path / "out" / records["path"]).read_bytes() == b"x"
    assert strict_tar.HEADER > 2 * 30_000
