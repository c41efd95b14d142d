"""Several processes that embed or judge the same images: each part is computed once, and all is as of one process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from tlx.errors import TlxError
from tlx.runs.embeddings import parts as parts_module

QUIET: dict[str, Any] = {"quiet": True}
pytestmark = pytest.mark.usefixtures("small_parts")

SHARING = """
import os, signal, sys, time
from pathlib import Path
import tlx
from tlx.runs.embeddings import embed
from tlx.runs.embeddings.parts import Parts

source, data, out, counts, killed_at = sys.argv[1:]
embed.PART_ROWS, write, written = 32, Parts.write, []

def counted(parts, number, *rest):
    with (Path(counts) / str(number)).open("a") as file:
        file.write(f"{os.getpid()}\\n")
    if len(written) == int(killed_at):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)  # so that each process gets some
    written.append(number)
    write(parts, number, *rest)

Parts.write = counted
print("ready", flush=True)
sys.stdin.readline()
print(tlx.embed(source, data, out, quiet=True).computed)
"""


def test_processes_share_the_parts_of_a_file_and_compute_each_once_though_one_is_killed(
    of_photos: tlx.Result, photos: Path, tmp_path: Path
) -> None:
    folder, counts, alone = tmp_path / "shared", tmp_path / "counts", tmp_path / "alone.parquet"
    tlx.embed(of_photos.run_dir, photos, alone, **QUIET)
    folder.mkdir()
    counts.mkdir()
    out = folder / "photos.parquet"
    common = [sys.executable, "-c", SHARING, str(of_photos.run_dir), str(photos), str(out), str(counts)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*common, str(killed_at)], **pipes) for killed_at in (1, 99, 99)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
        while not [*counts.iterdir()]:
            time.sleep(0.01)  # the one that will be killed has begun before the others may
    computed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [-9, 0, 0]
    assert out.read_bytes() == alone.read_bytes() and [*folder.iterdir()] == [out]
    by = {int(path.name): path.read_text().split() for path in counts.iterdir()}
    assert sorted(by) == [*range(13)]  # parts of 32 of 400 photos
    assert {process for each in by.values() for process in each} == {str(process.pid) for process in processes}
    again = [number for number, each in by.items() if len(each) > 1]
    assert len(again) == 1 and by[again[0]][0] == str(processes[0].pid), "what the killed one had begun to write"
    assert sum(map(int, computed[1:])) == 400 - 32  # and it had written one part


JUDGING = """
import json, os, signal, sys, time
from pathlib import Path
import tlx
from tlx.runs import extractor

run, data, counts, killed_at = sys.argv[1:]
extractor.SHARD, compute, computed = 32, extractor._compute, []

def counted(model, images, framing):
    if len(computed) == int(killed_at):
        os.kill(os.getpid(), signal.SIGKILL)
    with (Path(counts) / str(os.getpid())).open("a") as file:
        file.write(f"{images.names[0]}\\n")
    time.sleep(0.2)  # so that each process gets some
    computed.append(images)
    return compute(model, images, framing)

extractor._compute = counted
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps(tlx.check(data, labels=True, run=run, quiet=True).to_dict()))
"""


def test_processes_share_the_features_by_which_labels_are_judged_though_one_is_killed(
    of_photos: tlx.Result, photos: Path, tmp_path: Path
) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

    def check(cache: str, *killed_at: int) -> tuple[list[str], list[list[str]]]:
        (tmp_path / cache).mkdir()
        environment = {**os.environ, "TLX_CACHE": str(tmp_path / cache / "cache")}
        command = [sys.executable, "-c", JUDGING, str(of_photos.run_dir), str(photos), str(tmp_path / cache)]
        processes = [subprocess.Popen([*command, str(at)], env=environment, **pipes) for at in killed_at]
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * len(processes)
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        said = [process.communicate(timeout=120)[0] for process in processes]
        assert [process.returncode for process in processes] == [-9 if at < 99 else 0 for at in killed_at]
        counts = [tmp_path / cache / str(process.pid) for process in processes]
        return said, [path.read_text().split() if path.exists() else [] for path in counts]

    said, computed = check("shared", 1, 99, 99)
    assert len(computed[0]) == 1 and computed[1] and computed[2]
    every = [name for names in computed for name in names]
    assert len(set(every)) == len(every), "what the killed one had computed stays, and no other part is computed twice"
    (alone,), (names,) = check("alone", 99)
    assert said[1:] == [alone] * 2 and sorted(names) == sorted(every)


def test_an_iterator_is_for_one_process(of_photos: tlx.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "PATIENCE", 0.2)
    out, refused = tmp_path / "e.parquet", list[str]()

    def pictures(inner: bool) -> Iterator[np.ndarray[Any, Any]]:
        for level in range(70):
            if inner and level == 50:  # a part was begun
                with pytest.raises(TlxError) as caught:
                    tlx.embed(of_photos.run_dir, pictures(False), out, **QUIET)
                refused.append(str(caught.value))
            yield np.full((8, 8, 3), level, np.uint8)

    assert tlx.embed(of_photos.run_dir, pictures(True), out, **QUIET).images == 70
    assert len(refused) == 1 and "another process is writing e.parquet" in refused[0]
