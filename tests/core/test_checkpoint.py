"""Weights on disk: reading, matching to a model, atomic writing, digests."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlx.atomic import write_atomic, write_json
from tlx.backend import Array, ParamSpec
from tlx.errors import TlxError, WeightsError
from tlx.models.matching import match
from tlx.models.weights import digest, digests, read_weights, write_safetensors

ARRAYS = {
    "conv.weight": np.arange(24, dtype="f4").reshape(2, 3, 4).transpose(2, 0, 1),  # not contiguous
    "bn.num_batches_tracked": np.array(7),
    "half": np.array([0.5, 1.5], "f2"),
    "double": np.array([1 / 3]),
    "empty": np.empty((0, 3), "f4"),
}


def spec(name: str, *shape: int, dtype: str = "float32") -> ParamSpec:
    return ParamSpec(name, shape, dtype, "weight", name.rpartition(".")[0])


def test_round_trip_keeps_every_bit_shape_and_dtype(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "w.safetensors", ARRAYS, {"model": "tiny"})
    read = read_weights(tmp_path / "w.safetensors")
    assert digests(read) == digests(ARRAYS)
    assert read["bn.num_batches_tracked"].shape == ()
    header = (tmp_path / "w.safetensors").read_bytes()[8:]
    assert json.loads(header[: header.index(b"}}") + 2])["__metadata__"] == {"model": "tiny"}


def test_a_run_folder_stands_for_its_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"without model\.safetensors"):
        read_weights(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", ARRAYS)
    assert digest(read_weights(tmp_path)) == digest(ARRAYS)


def raw(path: Path, header: dict[str, Any], data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_bfloat16_comes_as_float32(tmp_path: Path) -> None:
    exact = np.array([[1.5, -2.0], [0.15625, np.inf]], "<f4")
    header = {"w": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}
    read = read_weights(raw(tmp_path / "w.safetensors", header, exact.ravel().view("<u2")[1::2].tobytes()))["w"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, exact)


def entry(dtype: str = "F32", shape: tuple[int, ...] = (2,), offsets: tuple[int, int] = (0, 8)) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (entry(shape=(1 << 40,), offsets=(0, 1 << 42)), "damaged"),
        (entry(offsets=(0, 4)), "damaged"),
        (entry(shape=(3,)), "damaged"),
        (entry(dtype="F8_E4M3", shape=(8,)), "F8_E4M3"),
        ({}, "damaged|no weights"),
    ],
    ids=["size bomb", "short", "overrun", "dtype", "empty"],
)
def test_lies_in_a_safetensors_header(tmp_path: Path, header: dict[str, Any], reason: str) -> None:
    with pytest.raises(WeightsError, match=rf"w\.safetensors: .*({reason})") as caught:
        read_weights(raw(tmp_path / "w.safetensors", header, bytes(8)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("w.safetensors", None, "no such file"),
        ("w.safetensors", b"", "damaged"),
        ("w.safetensors", b"\xff" * 16, "damaged"),
        ("w.pth", b"not a pickle", "damaged"),
        ("w.ckpt", b"x", r"unknown kind of weights; expected .* Fix: torch\.save"),
        ("weights", b"", "an empty file"),
    ],
)
def test_not_weights(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        read_weights(tmp_path / name)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutated_safetensors_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    write_safetensors(path, {"a.weight": np.arange(6, dtype="f4").reshape(2, 3), "n": np.array(3)})
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= data.draw(st.integers(1, 255))
    else:
        del content[position:]
    path.write_bytes(content)
    try:
        read = read_weights(path)
    except WeightsError:
        return
    # The format has no checksum: a flipped name or number is read as what it now says, never as more than there is.
    assert sum(array.nbytes for array in read.values()) <= len(content)


SPECS = [
    spec("conv.weight", 4, 3),
    spec("fc.weight", 2, 4),
    spec("bn.running_mean", 4),
    spec("bn.num_batches_tracked", dtype="int64"),
]
GIVEN = {
    "fc.weight": np.ones((1000, 4), "f4"),
    "bn.running_mean": np.full(4, 0.1),
    "conv.weight": np.full((4, 3), 0.5, "f2"),
}


def matched(arrays: dict[str, Array], take_head: bool = False) -> dict[str, Array]:
    return match(arrays, SPECS, head="fc", model_name="tiny", take_head=take_head)


def test_match_casts_fills_the_counter_and_leaves_the_head() -> None:
    result = matched(GIVEN)
    assert list(result) == ["conv.weight", "bn.running_mean", "bn.num_batches_tracked"]
    assert {name: str(array.dtype) for name, array in result.items()} == {
        "conv.weight": "float32", "bn.running_mean": "float32", "bn.num_batches_tracked": "int64",
    }  # fmt: skip
    assert result["bn.num_batches_tracked"].shape == () and result["bn.num_batches_tracked"] == 0
    assert result["bn.running_mean"][0] == np.float32(0.1)


def test_match_takes_the_head_when_asked() -> None:
    head = np.full((2, 4), 3, "f4")
    assert (matched({**GIVEN, "fc.weight": head}, take_head=True)["fc.weight"] == head).all()
    with pytest.raises(WeightsError, match=r"fc\.weight \[1000, 4\] float32 \(model: \[2, 4\] float32\)"):
        matched(GIVEN, take_head=True)


def test_a_value_that_has_two_names_in_the_model_may_have_both_in_the_file() -> None:
    tied = [replace(SPECS[0], aliases=("other.weight",)), *SPECS[1:]]
    value = GIVEN["conv.weight"]
    under_second = {name: array for name, array in GIVEN.items() if name != "conv.weight"} | {"other.weight": value}
    for arrays in ({**GIVEN, "other.weight": value}, under_second):
        assert next(iter(match(arrays, tied, head="fc", model_name="tiny", take_head=False))) == "conv.weight"
    with pytest.raises(WeightsError, match=r"conv\.weight and other\.weight are one value in it, but differ"):
        match({**GIVEN, "other.weight": value + 1}, tied, head="fc", model_name="tiny", take_head=False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"conv.weight": None}, "1 missing: conv.weight"),
        ({f"old.{i}": np.ones(1) for i in range(6)}, "6 not in the model: old.0, old.1, old.2, old.3 and 2 more"),
        ({"conv.weight": np.ones((3, 4), "f4")}, r"conv.weight [3, 4] float32 (model: [4, 3] float32)"),
        ({"conv.weight": np.ones((4, 3), "i8").astype("c8")}, "complex64"),
        ({"bn.num_batches_tracked": np.array(1.5)}, "of another shape or dtype: bn.num_batches_tracked"),
    ],
    ids=["missing", "extra", "shape", "complex", "float for int"],
)
def test_match_lists_what_does_not_fit(change: dict[str, Any], reason: str) -> None:
    arrays = {name: array for name, array in {**GIVEN, **change}.items() if array is not None}
    with pytest.raises(WeightsError) as caught:
        matched(arrays)
    assert reason in str(caught.value) and "tiny" in str(caught.value)


def test_write_atomic_replaces_or_leaves(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"größe": 1})
    assert json.loads(path.read_text("utf-8")) == {"größe": 1}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["result.json"]


def test_a_failed_write_is_one_line_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()  # a folder cannot be replaced by a file: fails after the data is written
    for path in (tmp_path / "taken", tmp_path / "missing" / "file"):
        with pytest.raises(TlxError, match="Cannot write"):
            write_atomic(path, b"x")
    assert os.listdir(tmp_path) == ["taken"]


def test_digest_sees_names_dtypes_shapes_and_every_bit() -> None:
    base = {"a": np.zeros((2, 3), "f4"), "b": np.array(0)}
    changed = [
        {"a": base["a"], "c": base["b"]},
        {**base, "a": base["a"].astype("i4")},
        {**base, "a": base["a"].reshape(3, 2)},
        {**base, "a": -base["a"]},  # -0.0 equals 0.0, but is another bit
        {**base, "b": np.array([0])},
    ]
    assert digest(base) == digest(dict(reversed(base.items())))
    assert len({digest(arrays) for arrays in (base, *changed)}) == 6
    assert digest({"a": np.arange(6.0).reshape(2, 3).T}) == digest({"a": np.arange(6.0).reshape(2, 3).T.copy()})
