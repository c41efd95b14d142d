"""CIFAR-10 as published: read, downloaded, and refused where it is hostile."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.server import serving
from tlx.data import load_data
from tlx.data.sources import cifar10
from tlx.download import hash_file
from tlx.errors import DataError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def batch(seed: int) -> bytes:
    data = np.random.default_rng(seed).integers(0, 256, (20, 3072), dtype=np.uint8)
    return pickle.dumps({b"data": data, b"labels": [i % 10 for i in range(20)]}, protocol=3)


FILES = {**{name: batch(i) for i, name in enumerate((*cifar10.TRAIN, *cifar10.TEST))}}
FILES[cifar10.META] = pickle.dumps({b"label_names": NAMES}, protocol=3)


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_the_published_set(test_data: Path) -> None:
    data = load_data("cifar10", root=test_data, val_fraction=0.1)
    assert data.classes == tuple(NAMES)
    assert [len(part) for part in (data.train, data.val, data.test)] == [45_000, 5_000, 10_000]
    assert np.bincount(data.val.labels).tolist() == [500] * 10
    assert data.train.size == (32, 32) and data.train.pixels(0).shape == (32, 32, 3)


def test_it_is_downloaded_unpacked_and_then_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = archive(tmp_path / "c.tar.gz", {f"{cifar10.FOLDER}/{name}": content for name, content in FILES.items()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("TLX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TLX_DATA_ROOT", raising=False)
    monkeypatch.setattr(cifar10, "URLS", (f"http://127.0.0.1:{server.server_port}/c.tar.gz",))
    monkeypatch.setattr(cifar10, "SHA256", hash_file(served))
    try:
        first = load_data("cifar10", val_fraction=0)
    finally:
        server.shutdown()
        server.server_close()
    again = load_data("cifar10", val_fraction=0)  # the server is gone
    assert first.fingerprint == again.fingerprint and len(first.train) == 100
    assert [path.name for path in (tmp_path / "cache" / "data").iterdir()] == [cifar10.FOLDER]


def test_mirrors_are_tried_in_turn_and_continue_what_another_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = archive(tmp_path / "c.tar.gz", {f"{cifar10.FOLDER}/{name}": content for name, content in FILES.items()})
    monkeypatch.setenv("TLX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TLX_DATA_ROOT", raising=False)
    monkeypatch.setattr(cifar10, "SHA256", hash_file(served))
    content = served.read_bytes()
    with serving() as server:
        server.files.update({"wrong": b"another file", "right": content})
        urls = ("http://127.0.0.1:9/gone", server.url("gone"), server.url("wrong"), server.url("right"))
        monkeypatch.setattr(cifar10, "URLS", urls)
        data = load_data("cifar10", val_fraction=0)
        assert data.notes[0].startswith(f"downloaded from {urls[3]}; {urls[0]} cannot be reached")
        assert (
            f"{urls[1]}: the server answered 404" in data.notes[0] and f"{urls[2]}: expected SHA-256" in data.notes[0]
        )
        assert not load_data("cifar10", val_fraction=0).notes
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache" / "data").mkdir(parents=True)
        (tmp_path / "cache" / "data" / "gone.part").write_bytes(content[:1000])
        monkeypatch.setattr(cifar10, "URLS", (urls[0], urls[1], urls[3]))
        assert load_data("cifar10", val_fraction=0).fingerprint == data.fingerprint
    assert server.asked[-1] == ("right", "bytes=1000-")


def test_where_it_cannot_be_downloaded_it_says_what_to_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLX_CACHE", str(tmp_path))
    monkeypatch.delenv("TLX_DATA_ROOT", raising=False)
    monkeypatch.setattr(cifar10, "URLS", ("http://127.0.0.1:9/c.tar.gz", "http://127.0.0.1:9/mirror.tar.gz"))
    with pytest.raises(
        DataError,
        match=r"c\.tar\.gz cannot be reached.*mirror\.tar\.gz cannot be reached.*--data-root FOLDER.*--data digits",
    ):
        load_data("cifar10")
    with pytest.raises(DataError, match="no CIFAR-10 in"):
        load_data("cifar10", root=tmp_path)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", f"{cifar10.FOLDER}/../../evil", f"{cifar10.FOLDER}/extra"])
def test_an_archive_with_other_members_is_refused(name: str, tmp_path: Path) -> None:
    bad = archive(tmp_path / "c.tar.gz", {name: b"x"})
    with pytest.raises(DataError, match="is not the CIFAR-10 archive: it holds"):
        cifar10.unpack(bad, tmp_path / "in" / cifar10.FOLDER)
    assert not list((tmp_path / "in").iterdir()) and not (tmp_path / "evil").exists()


WHOLE = {f"{cifar10.FOLDER}/{name}": content for name, content in FILES.items()}


def symlink(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(f"{cifar10.FOLDER}/data_batch_1")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    return path


@pytest.mark.parametrize(
    ("make", "limits", "message"),
    [
        (lambda path: archive(path, WHOLE), {"MAX_FILE": 61_000}, r"it holds '.*data_batch_1' \(\d+ bytes\)"),
        (lambda path: archive(path, WHOLE), {"MAX_ARCHIVE": 300_000}, "unpacks to more than"),
        (lambda path: archive(path, {k: v for k, v in WHOLE.items() if "_5" not in k}), {}, "it lacks data_batch_5"),
        (symlink, {}, "it holds '.*data_batch_1'"),
        (lambda path: path.write_bytes(archive(path, WHOLE).read_bytes()[:-50_000]), {}, ""),
        (lambda path: path.write_bytes(b"<html>not found</html>"), {}, "gzip"),
    ],
    ids=["large member", "bomb", "missing", "link", "truncated", "html"],
)
def test_an_archive_unlike_the_published_one_leaves_nothing(
    make: Any, limits: dict[str, int], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "c.tar.gz")
    for name, value in limits.items():
        monkeypatch.setattr(cifar10, name, value)
    with pytest.raises(DataError, match=rf"c\.tar\.gz is not the CIFAR-10 archive: .*{message}"):
        cifar10.unpack(tmp_path / "c.tar.gz", tmp_path / "in" / cifar10.FOLDER)
    assert not list((tmp_path / "in").iterdir())


def write(folder: Path, **files: bytes) -> Path:
    for name, content in {**FILES, **files}.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_row_holds_the_red_plane_then_green_then_blue(tmp_path: Path) -> None:
    data = load_data("cifar10", root=write(tmp_path), val_fraction=0)
    row = np.random.default_rng(1).integers(0, 256, (20, 3072), dtype=np.uint8)[3]  # as `batch` draws data_batch_2
    pixels = data.train.pixels(23)
    assert [pixels[r, c, k] for r, c, k in np.ndindex(32, 32, 3)] == [
        row[k * 1024 + r * 32 + c] for r, c, k in np.ndindex(32, 32, 3)
    ]
    assert data.train.names[23] == "data_batch_2/3" and data.train.labels[23] == 3


PIXELS = np.zeros((20, 3072), np.uint8)
DEEP = b"]" * 5000 + b"a" * 4999


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_2", {b"data": PIXELS, b"labels": [0] * 19 + [[1]]}, "ragged"),
        ("data_batch_2", {b"data": PIXELS, b"labels": [0] * 19 + [10]}, "label 10 of sample 19"),
        ("data_batch_2", {b"data": PIXELS, b"labels": [0] * 19}, "20 images but 19 labels"),
        ("data_batch_2", {b"data": PIXELS[:, :3071], b"labels": [0] * 20}, r"got \[20, 3071\]"),
        ("data_batch_2", {b"data": PIXELS.astype(np.float32), b"labels": [0] * 20}, "dtype"),
        ("data_batch_2", {b"labels": [0] * 20}, r"'data', found \['labels'\]"),
        ("data_batch_2", [1], "it holds a list"),
        ("data_batch_2", b"\x80\x03}(C\x04datacnumpy.core.multiarray\n_reconstruct\n)RC\x06labels]u.", r"got \[0\]"),
        (cifar10.META, {b"label_names": NAMES[:9] + NAMES[:1]}, "10 different label names"),
        (cifar10.META, b"\x80\x03}C\x0blabel_names](" + DEEP + b"es.", "not all text"),
    ],
)
def test_a_readable_pickle_with_the_wrong_content_is_named(
    name: str, content: Any, message: str, tmp_path: Path
) -> None:
    raw = content if isinstance(content, bytes) else pickle.dumps(content, protocol=3)
    write(tmp_path, **{name: raw})
    with pytest.raises(DataError, match=rf"{name}\b.*{message}") as error:
        load_data("cifar10", root=tmp_path, val_fraction=0)
    assert "\n" not in str(error.value)


class Hostile:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "argument"),
    [(os.system, "touch {}"), (eval, "open({!r}, 'w')"), (os.mkdir, "{}")],
    ids=lambda v: str(v),
)
def test_a_pickle_that_calls_code_is_refused_by_name(function: Any, argument: str, tmp_path: Path) -> None:
    victim = tmp_path / "pwned"
    argument = argument.format(str(victim))
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({b"data": Hostile(function, argument)}, protocol=3))
    with pytest.raises(DataError, match=rf"data_batch_1 is not a CIFAR-10 file: it refers to \S*{function.__name__}"):
        cifar10.read_pickle(path)
    assert not victim.exists()


# Bytes that matter: the opcodes before and after the pixels.
PLACES = st.integers(0, 300) | st.integers(len(FILES["test_batch"]) - 150, len(FILES["test_batch"]) - 1)


@settings(
    derandomize=True, max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=st.dictionaries(PLACES, st.integers(0, 255), max_size=4), cut=st.just(0) | st.integers(1, 400))
def test_a_damaged_batch_is_an_error_or_still_twenty_images(changes: dict[int, int], cut: int, tmp_path: Path) -> None:
    content = bytearray(FILES["test_batch"])
    for at, byte in changes.items():
        content[at] = byte
    path = tmp_path / "test_batch"
    path.write_bytes(bytes(content[: len(content) - cut]))
    try:
        part = cifar10._part(tmp_path, ("test_batch",))
    except DataError as error:
        assert changes or cut
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert part.array.shape[1:] == (3, 32, 32) and len(part.labels) == len(part.array) == len(part.names)
        assert part.labels.min() >= 0 and part.labels.max() <= 9
