"""Features that an earlier run left are found by the network and the pixels, and only if they are what they were."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.features import FIELDS, outcome
from tlx.training import feature_store
from tlx.training.feature_store import FeatureStore, hashes, open_store

IMAGES = 72 * 4 + 18 + 40  # train in 4 variants, val and test; of equal pixels there are a few


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TLX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def run(out: Path, **fields: Any) -> tuple[Any, ...]:
    return outcome(tlx.run({**FIELDS, "epochs": 8, **fields}, quiet=True, out=str(out)))


def one(cache: Path) -> Path:
    (folder,) = cache.iterdir()
    return folder


@pytest.mark.parametrize(
    "fields", [{}, {"lr": 0.2, "batch_size": 9}, {"seed": 0, "val_fraction": 0.4}, {"limit_test": 30}]
)
def test_a_later_run_computes_nothing_anew(
    fields: dict[str, Any], cache: Path, tmp_path: Path, seen: dict[str, list[int]]
) -> None:
    """Also with another rate, split or number of images. A few choose the boundary and verify the rows all the same."""
    expected = run(tmp_path / "off", feature_cache="off", **fields)
    run(tmp_path / "first", epochs=30)
    seen["features"].clear()
    assert run(tmp_path / "second", **fields) == expected
    others = 40 if "val_fraction" in fields else 0  # images that were validated before come in three more variants now
    assert 0 < sum(seen["features"]) <= (3 + 3) * feature_store.CHECKED + 3 * others


def test_what_was_validated_is_not_computed_for_the_test(
    cache: Path, tmp_path: Path, seen: dict[str, list[int]]
) -> None:
    parts = data(60)
    limits: dict[str, Any] = {"limit_train": None, "limit_test": None, "val_fraction": 0.1}
    fields: dict[str, Any] = {"data": {**parts, "val": parts["test"]}, "augment": "none", **limits}
    expected = run(tmp_path / "off", feature_cache="off", **fields)
    assert run(tmp_path / "on", **fields) == expected
    assert 80 <= sum(seen["features"]) < 100 + feature_store.CHECKED


def test_only_new_images_are_computed(cache: Path, tmp_path: Path, seen: dict[str, list[int]]) -> None:
    fields = {"augment": "none", "limit_train": None, "limit_test": None}
    few, more = ({**fields, "data": data(count)} for count in (60, 80))
    expected = run(tmp_path / "off", feature_cache="off", **more)
    run(tmp_path / "few", **few)
    seen["features"].clear()
    assert run(tmp_path / "more", **more) == expected
    assert 20 <= sum(seen["features"]) <= 20 + (3 + 3) * feature_store.CHECKED


def data(count: int) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (count + 20, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(count + 20) % 2
    return {"train": (pixels[:count], labels[:count]), "test": (pixels[count:], labels[count:])}


@pytest.mark.parametrize("fields", [{"weights": "none", "seed": 1}, {"model": "tiny-mlp"}, {"image_size": 16}])
def test_another_network_has_another_store(fields: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    run(tmp_path / "one")
    run(tmp_path / "other", **fields)
    assert len(list(cache.iterdir())) == 2


def test_nothing_is_left_where_this_run_alone_shall_keep(cache: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", feature_cache="run")
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(tmp_path / "off", feature_cache="off")
    (tmp_path / "file").touch()
    monkeypatch.setenv("TLX_CACHE", str(tmp_path / "file"))
    assert run(tmp_path / "on") == expected


def test_the_screen_says_what_was_found(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "one")
    tlx.run(FIELDS, out=str(tmp_path / "two"))
    assert f"earlier runs left {len(store_of(one(cache)))}" in capsys.readouterr().err


def store_of(folder: Path) -> FeatureStore:
    """The store of the tiny network, 32 units wide."""
    return FeatureStore(folder, np.dtype(np.float32), (32,))


def flip(path: Path, every: int) -> None:
    content = np.fromfile(path, np.uint8)
    content[::every] ^= 255
    content.tofile(path)


def lies(folder: Path) -> None:
    """Rows that are whole, of other numbers: what another processor or a changed library computes."""
    count = len(store_of(folder))
    rows = np.fromfile(folder / "rows", np.float32).reshape(-1, 32) + np.float32(1e-6)
    entries = np.fromfile(folder / "keys", feature_store.ENTRY)
    entries["row"] = hashes(rows)
    rows.tofile(folder / "rows")
    entries.tofile(folder / "keys")
    assert count


DAMAGE = {
    "bytes of rows": lambda folder: flip(folder / "rows", 1000),
    "bytes of keys": lambda folder: flip(folder / "keys", 100),
    "half a row": lambda folder: os.truncate(folder / "rows", 1000),
    "half a key": lambda folder: os.truncate(folder / "keys", 1000),
    "no rows": lambda folder: (folder / "rows").unlink(),
    "no keys": lambda folder: (folder / "keys").unlink(),
    "other numbers": lies,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_or_wrong_is_computed_anew(
    damage: str, cache: Path, tmp_path: Path, seen: dict[str, list[int]]
) -> None:
    expected = run(tmp_path / "first")
    DAMAGE[damage](one(cache))
    seen["features"].clear()
    assert run(tmp_path / "second") == expected
    assert sum(seen["features"]) > 6 * feature_store.CHECKED
    seen["features"].clear()
    assert run(tmp_path / "third") == expected
    assert sum(seen["features"]) <= 6 * feature_store.CHECKED


WRITES = """
import sys, numpy as np
from tlx.training.feature_store import open_store
store = open_store({"of": "test"}, np.dtype(np.float32), (64,))
for number in range(int(sys.argv[1]), int(sys.argv[2])):
    images = np.zeros((16, 3, 4, 4), np.uint8) + np.arange(16, dtype=np.uint8)[:, None, None, None]
    images[:, 0, 0, 0], images[:, 0, 0, 1] = number % 256, number // 256 % 256
    store.add(images, np.repeat(images[:, :1, :2, :2].reshape(16, 4), 16, axis=1).astype(np.float32))
    print(number, flush=True)
"""


def stored(number: int) -> tuple[Any, Any]:
    images = np.zeros((16, 3, 4, 4), np.uint8) + np.arange(16, dtype=np.uint8)[:, None, None, None]
    images[:, 0, 0, 0], images[:, 0, 0, 1] = number % 256, number // 256 % 256
    return images, np.repeat(images[:, :1, :2, :2].reshape(16, 4), 16, axis=1).astype(np.float32)


def opened() -> FeatureStore:
    store = open_store({"of": "test"}, np.dtype(np.float32), (64,))
    assert store is not None
    return store


def writer(start: int, stop: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITES, str(start), str(stop)], stdout=subprocess.PIPE, text=True)


def test_processes_write_side_by_side(cache: Path) -> None:
    processes = [writer(0, 150), writer(100, 250)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    for number in range(250):
        images, rows = stored(number)
        known, found_rows = opened().find(images) if number % 50 == 0 else (np.ones(16, bool), rows)
        assert known.all() and np.array_equal(found_rows, rows)


def test_a_killed_writer_leaves_what_it_had_written(cache: Path) -> None:
    for _ in range(3):
        with writer(0, 100_000) as process:
            assert process.stdout is not None
            while int(process.stdout.readline()) < 50:
                pass
            time.sleep(0.01 * np.random.default_rng().random())
            process.send_signal(signal.SIGKILL)
        images, rows = stored(40)
        known, found_rows = opened().find(images)
        assert known.all() and np.array_equal(found_rows, rows)
    opened().add(*stored(200_000))
    known, _ = opened().find(stored(200_000)[0])
    assert known.all()


def test_stores_stay_within_their_limit(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "LIMIT", 3 * 16 * (256 + 32))
    for number in range(5):
        opened().add(*stored(number))
    assert len(opened()) == 3 * 16
    os.utime(opened().folder, (time.time() - 1000,) * 2)
    for age, name in ((300, "old"), (200, "new")):
        other = open_store({"of": name}, np.dtype(np.float32), (64,))
        assert other is not None
        for number in range(2):
            other.add(*stored(number))
        os.utime(other.folder, (time.time() - age,) * 2)
    newer = open_store({"of": "new"}, np.dtype(np.float32), (64,))
    assert newer is not None and len(newer) == 2 * 16
    assert len(list(cache.iterdir())) == 2
    assert len(opened()) == 0, "the least recently used one was to go"
