"""Features that an earlier run left are found by the network and the pixels, and only if they are what they were."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.features import FIELDS, outcome
from tlx.training import feature_store
from tlx.training.feature_store import FeatureStore, open_store, seals

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
    "fields", [{}, {"lr": 0.2, "batch_size": 24}, {"seed": 0, "val_fraction": 0.4}, {"limit_test": 30}]
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


@pytest.mark.parametrize(
    "fields", [{"mean": (0.5, 0.5, 0.5)}, {"std": (1.0, 1.0, 1.0)}, {"interpolation": "bicubic"}], ids=str
)
def test_features_of_pixels_that_entered_otherwise_are_not_taken(
    fields: dict[str, Any], cache: Path, tmp_path: Path, seen: dict[str, list[int]]
) -> None:
    """The pixels are the same, so only the preprocessing tells the features apart."""
    larger = {"image_size": 16}
    expected = run(tmp_path / "off", feature_cache="off", **larger, **fields)
    assert run(tmp_path / "one", **larger) != expected
    seen["features"].clear()
    assert run(tmp_path / "other", **larger, **fields) == expected
    assert sum(seen["features"]) > 6 * feature_store.CHECKED and len(list(cache.iterdir())) == 2
    seen["features"].clear()
    assert run(tmp_path / "again", **larger, **fields) == expected
    assert sum(seen["features"]) <= 6 * feature_store.CHECKED


def test_nothing_is_left_where_this_run_alone_shall_keep(cache: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", feature_cache="run")
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = run(tmp_path / "off", feature_cache="off")
    (tmp_path / "file").touch()
    monkeypatch.setenv("TLX_CACHE", str(tmp_path / "file"))
    tlx.run({**FIELDS, "epochs": 8}, out=str(tmp_path / "on"))
    said = capsys.readouterr().err
    assert re.search(r"not kept for later runs: the cache .* cannot be written: Not a directory; TLX_CACHE may", said)
    assert run(tmp_path / "again") == expected


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
    entries["seal"] = seals(folder.name, entries["image"], rows)
    rows.tofile(folder / "rows")
    entries.tofile(folder / "keys")
    assert count


def rearranged(path: Path, width: int, change: Callable[[Any], Any]) -> None:
    """Write the records of a file again, [n, width] bytes, after a change."""
    content = np.fromfile(path, np.uint8)
    np.ascontiguousarray(change(content.reshape(-1, width))).tofile(path)


def of_other_images(records: Any) -> Any:
    """Keys in their places, each with another image's hash and its own row's seal."""
    return np.concatenate([np.roll(records[:, :16], 1, axis=0), records[:, 16:]], axis=1)


def swap_stores(folder: Path) -> None:
    """Put the files of another network's store, of the same images, into this one's place."""
    run(folder.parent.parent / "other", seed=5)
    (other,) = (path for path in folder.parent.iterdir() if path != folder)
    for name in ("rows", "keys"):
        os.replace(other / name, folder / name)
    shutil.rmtree(other)


ROW, KEY = 128, 32
DAMAGE = {
    "bytes of rows": lambda folder: flip(folder / "rows", 1000),
    "bytes of keys": lambda folder: flip(folder / "keys", 100),
    "half a row": lambda folder: os.truncate(folder / "rows", 1000),
    "half a key": lambda folder: os.truncate(folder / "keys", 1000),
    "no rows": lambda folder: (folder / "rows").unlink(),
    "no keys": lambda folder: (folder / "keys").unlink(),
    "rows that changed places": lambda folder: rearranged(folder / "rows", ROW, lambda rows: np.roll(rows, 1, axis=0)),
    "keys that changed places": lambda folder: rearranged(folder / "keys", KEY, lambda keys: keys[::-1]),
    "keys of other images": lambda folder: rearranged(folder / "keys", KEY, of_other_images),
    "the files of another store": swap_stores,
    "a row that is missing": lambda folder: rearranged(folder / "rows", ROW, lambda rows: rows[1:]),
    "rows of zeros": lambda folder: rearranged(folder / "rows", ROW, np.zeros_like),
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


@pytest.mark.parametrize("name", ["rows", "keys"])
def test_what_is_appended_is_not_found(name: str, cache: Path, tmp_path: Path, seen: dict[str, list[int]]) -> None:
    """Garbage, or the file once more. What was there before it is found all the same."""
    expected = run(tmp_path / "first")
    content = (one(cache) / name).read_bytes()
    for number, garbage in enumerate((b"garbage" * 1000, content)):
        with (one(cache) / name).open("ab") as file:
            file.write(garbage)
        seen["features"].clear()
        assert run(tmp_path / f"run{number}", lr=0.05 + number) == (expected if number == 0 else run_off(tmp_path))
        assert sum(seen["features"]) <= 6 * feature_store.CHECKED


def run_off(tmp_path: Path) -> tuple[Any, ...]:
    return run(tmp_path / "off", lr=1.05, feature_cache="off")


def test_no_bit_of_a_store_can_be_flipped_unseen(cache: Path) -> None:
    """Bits of a few rows and of their keys: the row that is found is the one that was computed, or none is."""
    images, rows = stored(0)
    opened().add(images[:2], rows[:2])
    for name in ("rows", "keys"):
        whole = (one(cache) / name).read_bytes()
        other = (one(cache) / {"rows": "keys", "keys": "rows"}[name]).read_bytes()
        for bit in range(0, 8 * len(whole), 13):  # each place of a byte comes up
            content = bytearray(whole)
            content[bit // 8] ^= 1 << bit % 8
            (one(cache) / name).write_bytes(content)
            known, found_rows = opened().find(images[:2])
            assert known.sum() == 1 and np.array_equal(found_rows, rows[:2][known]), (name, bit)
            (one(cache) / name).write_bytes(whole)
            (one(cache) / {"rows": "keys", "keys": "rows"}[name]).write_bytes(other)  # they were forgotten


def test_a_store_that_is_cut_or_removed_while_it_is_read_ends_no_process(cache: Path) -> None:
    for number in range(64):
        opened().add(*stored(number))
    store = opened()
    os.truncate(store.folder / "rows", 0)
    known, found_rows = store.find(stored(5)[0])
    assert not known.any() and found_rows.shape == (0, 64)
    store.add(*stored(5))
    shutil.rmtree(cache)
    store.add(*stored(6))
    assert not store.find(stored(6)[0])[0].any()


def test_an_image_that_several_processes_compute_is_kept_once(cache: Path) -> None:
    stores = [opened() for _ in range(3)]
    for number in (0, 1):
        for store in stores:
            store.add(*stored(number))
    assert len(opened()) == 2 * 16


def test_room_is_made_while_others_remove_and_write(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that vanish while they are listed end nothing, and what is left of a removed store is no store."""
    monkeypatch.setattr(feature_store, "LIMIT", 4096)
    limit, network = "feature_store.LIMIT = 9000\n", 'open_store({"of": number % 7}, np.dtype(np.float32), (64,))'
    script = WRITES.replace("for number", f"from tlx.training import feature_store\n{limit}for number")
    script = script.replace(
        "    store.add",
        f"    try: store = {network}\n    except OSError: continue  # removed at once\n    store.add",
    )
    command = [sys.executable, "-c", script, "0", "150"]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        assert process.communicate()[1] == b"" and process.returncode == 0
    opened()
    assert sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) <= 2 * 9000
    assert not [folder for folder in cache.iterdir() if folder.name.endswith(".tmp")]


def test_what_a_killed_process_left_of_a_store_is_removed(cache: Path) -> None:
    opened()
    left = cache / ".0945.750c0122.tmp"
    left.mkdir()
    (left / "rows").write_bytes(bytes(64))
    opened()
    assert not left.exists()


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
