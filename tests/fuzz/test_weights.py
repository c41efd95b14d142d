"""Weights files that a stranger wrote: whatever they hold, nothing of it runs, and no few kilobytes take gigabytes."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

import tlx
from support.altered import DEEP, MISSING, alterations, fewer_inputs, mutated, of_many, values, workplace
from support.finished_runs import FIELDS
from support.hostile import check
from support.pickles import BOMBS, DATA, EXECUTING, legacy, programs, state, tensor, tensors, zipped
from tlx.models.weights import read_weights

RUN = (
    *("run", "--backend", "loopback", "--model", "tiny-mlp", "--data", "digits", "--image-size", "8"),
    *("--limit-train", "40", "--limit-test", "20", "--epochs", "1", "--workers", "0", "--val-fraction", "0"),
)
SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".json", ".npz", "")
names = st.sampled_from(("fc.weight", "net.fc.weight", "", "a" * 5000, "." * 5000, "\x1b[31m\n", "\ud800", "\u202e"))


def use(target: str, content: bytes, suffix: str, folder: Path) -> None:
    (folder / f"w{suffix}").write_bytes(content)
    check(f"weights: {target}", *RUN, "--weights", f"w{suffix}", folder=folder)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The values of a model that fits."""
    fields = {**FIELDS, "epochs": 1, "data": "digits", "limit_train": 40, "limit_test": 20}
    return read_weights(tlx.run(**fields, out=str(tmp_path_factory.mktemp("run") / "r")).run_dir)


def test_weights_that_fit_are_taken(arrays: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(save(arrays))
    assert check("weights: arrays", *RUN, "--weights", "w.safetensors", folder=tmp_path).code == 0


def header_of(content: bytes) -> tuple[Any, bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(header: bytes, data: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + data


@fewer_inputs
@given(data=st.data())
def test_headers_of_safetensors(arrays: dict[str, Any], tmp_path: Path, data: st.DataObject) -> None:
    header, content = header_of(save(arrays))
    altered = json.dumps(data.draw(alterations(header))).encode()
    size = data.draw(st.sampled_from((None, None, None, 0, 1, 2**31, 2**60, 2**64 - 1)))
    with workplace(tmp_path) as folder:
        suffix = data.draw(st.sampled_from(SUFFIXES))
        use("safetensors header", with_header(altered, content, size), suffix, folder)


@pytest.mark.parametrize(
    "header",
    [
        DEEP.encode(),
        b'{"a": ' * 30_000 + b"1" + b"}" * 30_000,
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "F32", "shape": [0], '
        b'"data_offsets": [4, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [1], '
        b'"data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [0, 9223372036854775807, 9], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}',
        b'{"' + b"." * 200_000 + b'": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    ],
    ids=["deep list", "deep", "twice", "overlapping", "nothing of huge sizes", "overflow", "half bytes", "dots"],
)
def test_a_header_of_safetensors_that_lies_is_refused(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(with_header(header, bytes(4)))
    assert check("weights: safetensors header", *RUN, "--weights", "w.safetensors", folder=tmp_path).code == 2


@fewer_inputs
@given(data=st.data())
def test_arrays_of_safetensors(arrays: dict[str, Any], tmp_path: Path, data: st.DataObject) -> None:
    with workplace(tmp_path) as folder:
        use("arrays", save(data.draw(of_many(arrays))), ".safetensors", folder)


@fewer_inputs
@given(program=programs, form=st.sampled_from((zipped, legacy)), suffix=st.sampled_from(SUFFIXES))
def test_programs_of_pickle(program: bytes, form: Any, suffix: str, tmp_path: Path) -> None:
    with workplace(tmp_path) as folder:
        use("pickle", form(program, {"0": DATA}), suffix, folder)


@fewer_inputs
@given(named=st.dictionaries(names, tensors(), max_size=3), form=st.sampled_from((zipped, legacy)))
def test_tensors_of_any_size(named: dict[str, bytes], form: Any, tmp_path: Path) -> None:
    with workplace(tmp_path) as folder:
        use("tensors", form(state(named), {"0": DATA}), ".pth", folder)


@fewer_inputs
@given(data=st.data())
def test_bytes_of_weights(arrays: dict[str, Any], tmp_path: Path, data: st.DataObject) -> None:
    good = {name: tensor() for name in arrays}
    whole = data.draw(
        st.sampled_from(
            (save(arrays), zipped(state(good), {"0": DATA}), legacy(state(good), {"0": DATA}), *EXECUTING, b"")
        )
    )
    with workplace(tmp_path) as folder:
        use("bytes", data.draw(mutated(whole)), data.draw(st.sampled_from(SUFFIXES)), folder)


@fewer_inputs
@given(index=values, listed=values, data=st.data())
def test_indexes_of_weights(index: Any, listed: Any, data: st.DataObject, tmp_path: Path) -> None:
    content = data.draw(
        st.sampled_from((index, {"weight_map": listed}, {"weight_map": {"fc.weight": listed}}, MISSING))
    )
    with workplace(tmp_path) as folder:
        use("index", json.dumps(content).encode(), ".index.json", folder)


@pytest.mark.parametrize("form", [zipped, legacy, lambda program, _: program], ids=["zip", "legacy", "bare"])
@pytest.mark.parametrize("program", EXECUTING)
def test_nothing_in_a_pickle_is_executed(program: bytes, form: Any, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(form(program, {"0": DATA}))
    assert check("weights: pickle", *RUN, "--weights", "w.pth", folder=tmp_path).code == 2


LIMITED = """
import resource, sys
import tlx.models.weights, tlx.models.pth, numpy
from tlx.errors import WeightsError
from tlx.models.weights import read_weights
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)  # beside what Python itself has
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
for path in sys.argv[1:]:
    try:
        read_weights(path)
    except WeightsError as error:
        assert len(str(error)) < 2000 and "\\n" not in str(error), error
        assert "MemoryError" not in repr(error.__cause__), path
    print(path)
"""


def test_no_few_kilobytes_take_gigabytes_or_minutes(tmp_path: Path) -> None:
    for number, program in enumerate(BOMBS.values()):
        assert len(program) < 1 << 20
        (tmp_path / f"{number}.pth").write_bytes(zipped(program, {"0": DATA}))
        (tmp_path / f"{number}-old.pth").write_bytes(legacy(program, {"0": DATA}))
    (tmp_path / "zip.pth").write_bytes(zipped(bytes(64 << 20), {"0": DATA}, zipfile.ZIP_DEFLATED))
    (tmp_path / "twice.pth").write_bytes(zipped(state({"a": tensor()}), {"0": DATA, "../data.pkl": b""}))
    files = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([sys.executable, "-c", LIMITED, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-3000:]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".json", ""])
@pytest.mark.parametrize("kind", ["empty", "zeros", "pipe", "folder", "circle", "nowhere", "npz", "full"])
def test_what_is_no_file_of_weights(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    if kind == "empty":
        path.touch()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, fc=np.zeros(3))
    else:
        path.symlink_to({"zeros": "/dev/zero", "circle": path.name, "nowhere": "nothing", "full": "/dev/full"}[kind])
    assert check("weights: no file", *RUN, "--weights", path.name, folder=tmp_path).code == 2
    folder = tmp_path / "of weights"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": path.name}}))
    if kind != "folder":
        shutil.move(path, folder / path.name)
    check("weights: no file", *RUN, "--weights", folder.name, folder=tmp_path)
