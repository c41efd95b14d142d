"""Data at an address, and archives of every kind: downloaded once, checked, unpacked safely, read as what they hold."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
import tlx.download as downloading
from support.archives import ARCHIVES, PHOTOS, PLAIN, png, tarred, zipped
from support.server import Server, serving
from tlx.data import load_data
from tlx.download import cache_folder
from tlx.errors import DataError

ROLES = ("train/ is the training part; val/ is the test part, because there is no other",)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.files.update(ARCHIVES)
        yield server


def load(source: Any, **fields: Any) -> tlx.data.Data:
    return load_data(source, **{"val_fraction": 0, **fields})


def pinned(server: Server, name: str, algorithm: str = "sha1") -> str:
    return f"{server.url(name)}#{algorithm}={hashlib.new(algorithm, server.files[name]).hexdigest()}"


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_local_archive_is_read_as_the_folder_in_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(ARCHIVES[name])
    data = load(tmp_path / name)
    assert data.name == "photos" and data.classes == ("ants", "bees")
    assert (len(data.train), len(data.test)) == (16, 6) and data.notes == ROLES
    assert data.train.pixels(0)[0, 0].tolist() == [0, 255, 7]
    assert load(tmp_path / name, root="/nowhere").fingerprint == data.fingerprint


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "md5"])
def test_an_address_is_downloaded_once_and_then_works_offline(algorithm: str, server: Server, tmp_path: Path) -> None:
    address = pinned(server, "photos.zip", algorithm)
    data = load(address)
    assert data.name == "photos" and (len(data.train), len(data.test)) == (16, 6) and data.notes == ROLES
    assert len(server.asked) == 1
    server.stop()
    assert load(address).fingerprint == data.fingerprint
    (tmp_path / "photos.zip").write_bytes(ARCHIVES["photos.zip"])
    assert load(tmp_path / "photos.zip").fingerprint == data.fingerprint


def test_an_address_without_a_hash_says_the_hash_that_was_found(server: Server) -> None:
    found = hashlib.sha256(ARCHIVES["photos.tar.xz"]).hexdigest()
    for _ in range(2):
        notes = load(server.url("photos.tar.xz")).notes
        assert [note for note in notes if f"#sha256={found}" in note]
    assert load(f"{server.url('photos.tar.xz')}#sha256={found}").notes == ROLES
    assert len(server.asked) == 1  # pinning what is there downloads nothing


def test_a_broken_download_goes_on_where_it_stopped(server: Server) -> None:
    content = server.files["photos.tar"]
    server.cut = 20_000
    load(pinned(server, "photos.tar"))
    assert server.asked[:2] == [("photos.tar", None), ("photos.tar", "bytes=20000-")]
    assert len(server.asked) == -(-len(content) // 20_000)


def test_a_later_call_goes_on_with_a_broken_download(server: Server) -> None:
    address = pinned(server, "photos.tar", "md5")
    content, server.files["photos.tar"] = server.files["photos.tar"], b""
    server.files["photos.tar"], server.cut = content, 0
    with pytest.raises(DataError, match=r"stopped after 0 bytes\. Fix: run again"):
        load(address)
    (part,) = cache_folder().rglob("*.part")
    part.write_bytes(content[:30_000])
    server.cut = None
    load(address)
    assert server.asked[-1] == ("photos.tar", "bytes=30000-")


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("changed", [True, False])
def test_without_a_hash_only_the_same_file_is_continued(etags: bool, changed: bool, server: Server) -> None:
    server.etags, server.files["photos.tar"] = etags, tarred({"other.png": bytes(90_000)}) if changed else PLAIN
    server.cut = 0
    with pytest.raises(DataError, match="stopped after 0 bytes"):
        load(server.url("photos.tar"))
    (part,) = cache_folder().rglob("*.part")
    part.write_bytes(server.files["photos.tar"][:20_000])
    server.cut, server.files["photos.tar"] = None, PLAIN
    data = load(server.url("photos.tar"))
    assert (len(data.train), len(data.test)) == (16, 6)
    assert server.asked[-1] == ("photos.tar", "bytes=20000-" if etags else None)
    assert not [path for path in cache_folder().rglob("*") if "download" in path.parts]


def test_a_wrong_hash_leaves_nothing_and_says_what_to_do(server: Server) -> None:
    with pytest.raises(
        DataError, match=r"expected SHA-1 0{40}, got [0-9a-f]{40}.*Fix: if the new file is what you want"
    ):
        load(f"{server.url('photos.zip')}#sha1={'0' * 40}")
    assert not [path for path in cache_folder().rglob("*") if path.is_file() and path.name != ".lock"]


def test_another_pin_downloads_again_and_a_wrong_one_keeps_what_was_there(server: Server) -> None:
    first = pinned(server, "photos.zip")
    before = load(first)
    with pytest.raises(DataError, match="expected SHA-1"):
        load(f"{server.url('photos.zip')}#sha1={'0' * 40}")
    assert load(first).fingerprint == before.fingerprint
    server.files["photos.zip"] = zipped(
        {name: content for name, content in PHOTOS.items() if not name.endswith("/5.png")}
    )
    assert len(load(pinned(server, "photos.zip")).train) == 14
    server.stop()
    with pytest.raises(DataError, match="cannot be reached"):
        load(first)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("{}/none.zip", r"answered 404 .*Fix: check the address and the network, or download it"),
        ("{}/page.zip", r"page\.zip is a web page. Fix: pass the address of the file itself"),
        ("{}/noise", r"noise is no archive and none of \.csv"),
        ("{}/photos.zip#sha1=123", "SHA-1 has 40 hex digits, got '123'"),
        ("{}/photos.zip#sha=123", "unknown hash 'sha'. Did you mean 'sha"),
        ("{}/broken.zip", "broken.zip is a damaged zip archive"),
        ("{}/later.zip", "later.zip is a damaged zip archive: zip file version 25.5"),
        ("{}/broken.tar.gz", "broken.tar.gz cannot be unpacked: Compressed file ended"),
        ("http://127.0.0.1:9/x.zip", r"cannot be reached.*Fix: check the address and the network"),
        ("https:///x.zip", "names no server"),
        ("s3://bucket/x.zip", "only https:// and http:// addresses are downloaded"),
        ("file:///etc/passwd", "only https:// and http:// addresses are downloaded"),
    ],
)
def test_what_an_address_cannot_give_is_one_line_with_the_fix(address: str, message: str, server: Server) -> None:
    server.files["page.zip"] = b"\n<!DOCTYPE html><p>Log in"
    server.files["noise"] = bytes(range(256))
    server.files["broken.zip"] = ARCHIVES["photos.zip"][:-100]
    entry = ARCHIVES["photos.zip"].index(b"PK\1\2")
    server.files["later.zip"] = ARCHIVES["photos.zip"][: entry + 6] + b"\xff" + ARCHIVES["photos.zip"][entry + 7 :]
    server.files["broken.tar.gz"] = ARCHIVES["photos.tar.gz"][:-100]
    with pytest.raises(DataError, match=message) as error:
        load(address.format(server.url("")[:-1]))
    assert "\n" not in str(error.value)


def test_the_content_decides_what_a_download_is(server: Server, tmp_path: Path) -> None:
    arrays = io.BytesIO()
    np.savez(arrays, images=np.zeros((20, 4, 4), np.uint8), labels=np.arange(20) % 2)
    server.files["download"] = arrays.getvalue()
    assert len(load(server.url("download?id=7")).train) == 16
    server.files["get"] = ARCHIVES["photos.tar.gz"]
    assert len(load(server.url("get")).train) == 16
    server.files["list.csv"] = b"path,label\n" + b"".join(b"%d.png,%d\n" % (i, i % 2) for i in range(8))
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    assert len(load(server.url("list.csv"), root=tmp_path, test_fraction=0.25).train) == 6


def test_an_archive_may_hold_arrays_or_a_list_of_its_photos(tmp_path: Path) -> None:
    arrays = io.BytesIO()
    np.savez(arrays, images=np.zeros((20, 4, 4), np.uint8), labels=np.arange(20) % 2)
    (tmp_path / "a.zip").write_bytes(zipped({"set/arrays.npz": arrays.getvalue(), "set/README.md": b"text"}))
    assert load(tmp_path / "a.zip").name == "a" and len(load(tmp_path / "a.zip").train) == 16
    rows = "".join(f"{i:03},{'cat' if i % 2 else 'dog'}\n" for i in range(10))
    photos = {f"pets/train/{i:03}.jpg": png(i) for i in range(10)}
    (tmp_path / "b.tar").write_bytes(tarred({"pets/labels.csv": f"id,breed\n{rows}".encode(), **photos}))
    data = load(tmp_path / "b.tar")
    assert data.classes == ("cat", "dog") and data.name == "b" and len(data.train) == 8


def test_a_zip_of_windows_and_of_macos(tmp_path: Path) -> None:
    files = {name.replace("/", "\\"): content for name, content in PHOTOS.items()}
    rubbish = {"__MACOSX/insects/._train": b"x", "insects/train/ants/._0.png": b"x", "insects/.DS_Store": b"x"}
    (tmp_path / "w.zip").write_bytes(zipped({**files, **rubbish}))
    data = load(tmp_path / "w.zip")
    assert len(data.train) == 16
    assert any("left behind by other programs (2): .DS_Store, train/ants/._0.png" in note for note in data.notes)


ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "for ever": ({"content": bytes(2**16), "pause": 0}, "has more than 1048576 bytes, and does not say how many"),
    "drop by drop": ({"content": b"x", "pause": 0.01}, r"sends less than 1000 bytes a second\. Fix: run again later"),
    "more than fits": ({"length": str(2**60)}, r"more fit on the disk\. Fix: set TLX_CACHE"),
    "in a circle": ({"status": 302, "location": "/x.zip"}, r"redirect.* infinite loop"),
    "with a file of this machine": ({"status": 302, "location": "file:///etc/passwd"}, "is not allowed"),
    "with a part": ({"status": 206, "range": "bytes 5-9/10"}, "sends a part that was not asked for"),
    "with another protocol": ({"status": 302, "location": "ftp://127.0.0.1:9/x"}, "cannot be reached"),
    "in no protocol": ({"raw": b"x" * 99}, "cannot be reached"),
}


@pytest.mark.parametrize("how", ANSWERS)
def test_a_server_that_answers_in_bad_faith_is_left(
    how: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, message = ANSWERS[how]
    monkeypatch.setattr(downloading, "UNANNOUNCED", 2**20)
    monkeypatch.setattr(downloading, "SLOW", 0.2)
    monkeypatch.setattr(downloading, "SLOWEST", 1000)
    server.respond = lambda path: answer
    with pytest.raises(DataError, match=message) as error:
        load(server.url("x.zip"))
    assert "\n" not in str(error.value)


def test_a_changed_archive_is_unpacked_again(tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    path.write_bytes(ARCHIVES["photos.zip"])
    first = load(path)
    path.write_bytes(zipped({name: content for name, content in PHOTOS.items() if not name.endswith("/5.png")}))
    assert len(load(path).train) == len(first.train) - 2


KILLED = """
import os, sys
from pathlib import Path
from tlx.data.sources import unpack
written = 0
real = unpack._Writer.write
def write(self, name, content):
    global written
    written += 1
    if written == 5:
        os.kill(os.getpid(), 9)
    real(self, name, content)
unpack._Writer.write = write
import tlx
tlx.load_data(sys.argv[1], val_fraction=0)
"""


def test_a_kill_while_it_unpacks_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(ARCHIVES["photos.zip"])
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "photos.zip")], env=dict(os.environ))
    assert killed.returncode == -9
    assert list(cache_folder().rglob("*.png")) and not list(cache_folder().rglob("record.json"))
    assert len(load(tmp_path / "photos.zip").train) == 16
    assert len(list(cache_folder().rglob("*.png"))) == len(PHOTOS)  # of the first attempt nothing is left


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos.zip").write_bytes(ARCHIVES["photos.zip"])
    (tmp_path / "file").touch()
    monkeypatch.setenv("TLX_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"the cache .* cannot be written: Not a directory\. Fix: set TLX_CACHE"):
        load(tmp_path / "photos.zip")


def test_a_run_keeps_the_address_in_its_recipe_and_says_the_hash(server: Server, tmp_path: Path) -> None:
    address = server.url("photos.zip")
    small = {
        "backend": "loopback",
        "model": "tiny-mlp",
        "image_size": 8,
        "epochs": 1,
        "batch_size": 4,
        "weights": "none",
    }
    result = tlx.run(**small, data=address, out=str(tmp_path / "run"), val_fraction=0, quiet=True)  # type: ignore[arg-type]
    assert tlx.Recipe.from_toml(tmp_path / "run" / "recipe.toml").data == address
    assert tlx.evaluate(tmp_path / "run")["test_accuracy"] == result.test_accuracy
    found = hashlib.sha256(ARCHIVES["photos.zip"]).hexdigest()
    assert found in (tmp_path / "run" / "card.json").read_text()
