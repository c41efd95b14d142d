"""Downloads from a real server: whole, resumed, damaged, absent."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlx.download import fetch
from tlx.errors import DataError

CONTENT = np.random.default_rng(0).bytes(700_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves CONTENT. `ranges` keeps what was asked; `cut` ends each transfer after so many bytes."""

    def __init__(self) -> None:
        self.ranges: list[str | None] = []
        self.cut: int | None = None
        self.honours_range = True
        self.shift = 0  # what the server claims to send, off by so many bytes
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                outer.ranges.append(wanted)
                if self.path != "/file":
                    self.send_error(404)
                    return
                start = int(wanted[6:].split("-")[0]) if wanted and outer.honours_range else 0
                if start >= len(CONTENT):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                    self.end_headers()
                    return
                body = CONTENT[start:]
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start + outer.shift}-{len(CONTENT) - 1}/{len(CONTENT)}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: outer.cut])
                self.close_connection = True

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/file"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.http.shutdown()
    server.http.server_close()


def get(server: Server, dest: Path, **fields: Any) -> Path:
    return fetch(server.url, dest, **{"sha256": SHA256, "progress": False, **fields})


def test_a_file_arrives_once(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        assert get(server, tmp_path / "deep" / "f").read_bytes() == CONTENT
    assert server.ranges == [None]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["f"]


def test_a_cut_transfer_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cut = 300_000
    assert get(server, tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=600000-"]


def test_an_earlier_call_is_resumed(server: Server, tmp_path: Path) -> None:
    server.cut = 0
    (tmp_path / "f.part").write_bytes(CONTENT[:250_000])
    with pytest.raises(DataError, match=r"stopped after 250000 bytes\. Fix: run again to continue"):
        get(server, tmp_path / "f")
    server.cut = None
    assert get(server, tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=250000-"


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.honours_range = False
    (tmp_path / "f.part").write_bytes(b"stale" * 1000)
    assert get(server, tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges == ["bytes=5000-"]


def test_a_server_that_sends_another_range_is_asked_for_the_whole(server: Server, tmp_path: Path) -> None:
    server.shift = 1
    (tmp_path / "f.part").write_bytes(CONTENT[:1000])
    assert get(server, tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-", None]


@pytest.mark.parametrize(("tail", "asked"), [(b"", ["bytes=700000-"]), (b"more", ["bytes=700004-", None])])
def test_a_partial_file_that_is_whole_or_too_long(
    tail: bytes, asked: list[str | None], server: Server, tmp_path: Path
) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT + tail)
    assert get(server, tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges == asked and [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_wrong_hash_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"expected SHA-256 {'0' * 64}, got {SHA256}"):
        get(server, tmp_path / "f", sha256="0" * 64)
    assert not list(tmp_path.iterdir())


def test_a_good_file_is_kept_where_the_server_has_another(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"good")
    with pytest.raises(DataError, match="expected SHA-256"):
        get(server, tmp_path / "f", sha256="0" * 64)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", b"good")]


def test_a_stale_file_is_kept_until_its_successor_is_whole(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"older")
    server.cut = 0
    with pytest.raises(DataError):
        get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"older"
    server.cut = None
    assert get(server, tmp_path / "f", sha256=None, sha256_prefix=SHA256[:8]).read_bytes() == CONTENT


def test_what_cannot_be_had_is_one_line(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/none: the server answered 404"):
        fetch(server.url.replace("file", "none"), tmp_path / "f", sha256=SHA256, progress=False)
    with pytest.raises(DataError, match="cannot be reached") as error:
        fetch("http://127.0.0.1:9/f", tmp_path / "f", sha256=SHA256, progress=False)
    assert "\n" not in str(error.value) and not (tmp_path / "f").exists()
    with pytest.raises(DataError, match="only http and https"):
        fetch(f"file://{__file__}", tmp_path / "f", progress=False)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written: .* Fix: set TLX_CACHE"):
        get(server, tmp_path / "file" / "f")
