"""Archives with hostile members, on this machine and at an address."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.hostile import check, hostile_inputs
from support.hostile_data import COMMANDS, RUN, SAMPLES, fewer_inputs, mutated, places, png, use, workplace
from support.server import Server, serving

NAMES = (
    *(
        "../evil",
        "a/../../evil",
        "/evil",
        "//evil",
        "C:/evil",
        "..\\evil",
        "a\\b",
        ".",
        "",
        "./",
        "a//b",
        "p/0",
        "p/0/0.png",
    ),
    *(
        "P/0/0.PNG",
        "p/0/0.png/x",
        "é.png",
        "e\u0301.png",
        "\x1b[31m.png",
        "a\nb.png",
        "\udcff.png",
        "x" * 255,
        "x" * 256,
    ),
    *(
        "x" * 5000,
        "/".join("d" * 90),
        "/".join("d" * 2000),
        "~/x",
        "-x",
        "aux",
        "p/.hidden.png",
        "__MACOSX/._0.png",
        "x.csv",
    ),
    *("x.npz", "x.tar", "train/0/0.png", "test/0/0.png", "link/0.png", "\u202e.png"),
)
TARGETS = ("/etc/passwd", "../x", "..", ".", "p/0/0.png", "0.png", "link", "x" * 5000, "", "/dev/zero", "/", "\udcff")
TYPES = (
    b"0",
    b"\0",
    b"1",
    b"2",
    b"3",
    b"4",
    b"5",
    b"6",
    b"7",
    b"S",
    b"L",
    b"K",
    b"x",
    b"g",
    b"X",
    b"Z",
    b"D",
    b"M",
    b"V",
)
PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
}
RECORDS = (
    {"size": "-1024"}, {"size": "9" * 30}, {"path": "../evil"}, {"linkpath": "/etc/passwd"}, {"path": "x" * 90_000},
    {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 18}, {"hdrcharset": "BINARY"},
    {"GNU.sparse.map": "0,9999999999", "GNU.sparse.size": "9" * 15}, {"mtime": "nan"}, {"uid": "-1"},
    {"a": "1" * 60_000},
)  # fmt: skip


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    """Photos of two classes, and members that are hostile by name, type, link, size or record."""
    file = io.BytesIO()
    format: Any = draw(st.sampled_from((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))
    content = png()
    with tarfile.open(fileobj=file, mode="w", format=format, errors="surrogateescape") as archive:
        hostile = draw(places)
        for i in range(SAMPLES):
            member = tarfile.TarInfo(f"p/{i % 2}/{i}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
            if i not in hostile:
                continue
            member = tarfile.TarInfo(draw(st.sampled_from(NAMES)))
            member.type, member.linkname = draw(st.sampled_from(TYPES)), draw(st.sampled_from(TARGETS))
            member.size = draw(st.sampled_from((0, len(content), 512, 2**33, 2**40)))
            member.pax_headers = dict(draw(st.sampled_from(({}, *RECORDS))))
            try:
                header = member.tobuf(format, "utf-8", "surrogateescape")
            except (ValueError, UnicodeError):  # what the format cannot hold
                continue
            # Repeated, headers chain; and a size below zero leads back.
            file.write(header * max(1, min(draw(st.sampled_from((1, 1, 1, 2, 50, 2000))), 2**17 // len(header))))
            file.write((content + bytes(512))[:512] * draw(st.integers(0, 2)))
            archive.offset = file.tell()
    return file.getvalue()


@st.composite
def zips(draw: st.DrawFn) -> bytes:
    """Photos of two classes, and members that are hostile by name, mode, packing or flag."""
    file, content = io.BytesIO(), png()
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of members that come twice
        hostile = draw(places)
        for i in range(SAMPLES):
            archive.writestr(f"p/{i % 2}/{i}.png", content)
            if i not in hostile:
                continue
            member = zipfile.ZipInfo(draw(st.sampled_from(NAMES)).encode(errors="replace").decode())
            member.external_attr = (
                draw(st.sampled_from((0, 0o100644, 0o120777, 0o040755, 0o020666, 0o010666, 0o140666))) << 16
            )
            member.compress_type = draw(st.sampled_from((0, 8, 12, 14)))
            archive.writestr(
                member,
                draw(st.sampled_from((content, b"", bytes(2**16), *(t.encode(errors="replace") for t in TARGETS)))),
            )
    whole = bytearray(file.getvalue())
    if draw(st.integers(0, 3)) == 0:  # lie about an entry, in the directory: flags, packing, sizes, offset
        entries = [at for at in range(len(whole)) if whole[at : at + 4] == b"PK\1\2"]
        at = draw(st.sampled_from(entries)) + draw(st.sampled_from((6, 8, 10, 16, 20, 24, 28, 30, 38, 42)))
        number = draw(st.sampled_from((b"\1\0", b"\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f")))
        whole[at : at + len(number)] = number
    return bytes(whole)


def nothing_escaped(tmp_path: Path) -> bool:
    """Whether no member lies outside of its folder, in the test's folders or at the root."""
    places = (tmp_path, Path(os.environ["TLX_CACHE"]))
    return not os.path.lexists("/evil") and not any(list(place.rglob("evil")) for place in places)


@hostile_inputs
@given(
    content=tars() | tars().flatmap(mutated),
    suffix=st.sampled_from(sorted(PACKED)),
    command=st.sampled_from(COMMANDS),
    data=st.data(),
)
def test_a_tar(content: bytes, suffix: str, command: str, data: st.DataObject, tmp_path: Path, run_dir: Path) -> None:
    packed = PACKED[suffix](content)
    if data.draw(st.integers(0, 4)) == 0:
        packed = data.draw(mutated(packed))
    with workplace(tmp_path) as folder:
        (folder / f"x{suffix}").write_bytes(packed)
        use("tar", command, run_dir, f"x{suffix}", folder)
    assert nothing_escaped(tmp_path)


@hostile_inputs
@given(content=zips() | zips().flatmap(mutated), command=st.sampled_from(COMMANDS))
def test_a_zip(content: bytes, command: str, tmp_path: Path, run_dir: Path) -> None:
    with workplace(tmp_path) as folder:
        (folder / "x.zip").write_bytes(content)
        use("zip", command, run_dir, "x.zip", folder)
    assert nothing_escaped(tmp_path)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


NOTHING: dict[str, Any] = {}
ANSWERS = (
    *({"status": status} for status in (200, 204, 206, 301, 304, 401, 404, 416, 500, 999)),
    *({"length": length} for length in ("0", "-1", "999999999999999999999", "x", "1", "1, 2", "")),
    *(
        {"location": to, "status": 302}
        for to in ("x", "file:///etc/passwd", "ftp://localhost/x", "http://[", "", "data:,x", "\x1b")
    ),
    *(
        {"encoding": "gzip"},
        {"range": "bytes 5-9/10"},
        {"range": "rubbish", "status": 206},
        {"range": "bytes */0", "status": 416},
    ),
    {"etag": "\x1b[31m" + "x" * 999},
    *(
        {"raw": raw}
        for raw in (
            b"",
            b"\0",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/9.9 x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 999,
        )
    ),
    {"raw": b"HTTP/1.1 200 OK\r\na: " + b"x" * 99_999 + b"\r\n\r\n"},
    {"raw": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\nx"},
    {"raw": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nrubbish\r\n"},
    {"raw": b"HTTP/1.1 200 \x1b[31m\r\nContent-Length: 1\r\n\r\nx"},
)


@fewer_inputs
@given(
    content=zips()
    | tars()
    | st.sampled_from((b"", b"x", b"<!doctype html>", b"path,label\n", b"PK", b"\x1f\x8b", b"PAR1", png())),
    answer=st.sampled_from((NOTHING,) * 9 + ANSWERS),
    name=st.sampled_from(
        ("x.zip", "x.tar", "x", "x.csv", "", "..", "%2e%2e%2f%2e%2e%2fevil", "%00", "%1b[31m", "x" * 300 + ".zip")
    ),
    number=st.integers(),
)
def test_an_address(
    content: bytes, answer: dict[str, Any], name: str, number: int, server: Server, tmp_path: Path
) -> None:
    server.respond = lambda path: {"content": content, **answer}
    with workplace(tmp_path) as folder:
        check("address", "run", "--data", f"{server.url(name)}?{number}", *RUN, folder=folder)
    assert nothing_escaped(tmp_path)
