"""The .pth reader on files made by hand, opcode by opcode, so that no framework is needed and any lie can be told."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlx.backend import Array
from tlx.errors import WeightsError
from tlx.models.weights import read_weights

FLOATS = np.arange(12, dtype="<f4")


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    key: str = "0",
    count: int = 12,
    offset: int = 0,
    shape: tuple[int, ...] = (3, 4),
    strides: tuple[int, ...] = (4, 1),
    kind: str = "FloatStorage",
    window: bytes = b"",
) -> bytes:
    storage = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + number(count)
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return rebuild + storage + window + b"tQ" + number(offset) + numbers(shape) + numbers(strides) + b"\x89)tR"


def state(entries: dict[str, bytes]) -> bytes:
    items = b"".join(text(name) + value for name, value in entries.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."


def zipped(path: Path, program: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("m/data.pkl", program)
        for key, data in storages.items():
            archive.writestr(f"m/data/{key}", data)
    return path


def legacy(path: Path, program: bytes, storages: dict[str, tuple[int, bytes]]) -> Path:
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    blocks = b"".join(struct.pack("<q", count) + data for count, data in storages.values())
    keys = pickle.dumps(list(storages), 2)
    path.write_bytes(b"".join(pickle.dumps(value, 2) for value in head) + program + keys + blocks)
    return path


def write(path: Path, form: str, program: bytes, data: bytes = FLOATS.tobytes(), count: int = 12) -> Path:
    if form == "zip":
        return zipped(path, program, {"0": data})
    return legacy(path, program, {"0": (count, data)} if text("storage") in program else {})


both = pytest.mark.parametrize("form", ["zip", "legacy"])


@both
@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({}, FLOATS.reshape(3, 4)),
        ({"shape": (4, 3), "strides": (1, 4)}, FLOATS.reshape(3, 4).T),
        ({"offset": 5, "shape": (2,), "strides": (3,)}, FLOATS[[5, 8]]),
        ({"offset": 3, "shape": (), "strides": ()}, FLOATS[3]),
        ({"shape": (0, 5), "strides": (5, 1)}, np.empty((0, 5), "f4")),
    ],
    ids=["plain", "transposed", "window", "scalar", "empty"],
)
def test_layouts(tmp_path: Path, form: str, declared: dict[str, Any], expected: Array) -> None:
    read = read_weights(write(tmp_path / "w.pth", form, state({"w": tensor(**declared)})))["w"]
    assert read.shape == expected.shape and read.dtype == np.float32
    np.testing.assert_array_equal(read, expected)


@both
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("DoubleStorage", "f8"),
        ("HalfStorage", "f2"),
        ("LongStorage", "i8"),
        ("ByteStorage", "u1"),
        ("BoolStorage", "?"),
    ],
)
def test_dtypes(tmp_path: Path, form: str, kind: str, dtype: str) -> None:
    data = np.array([0, 1, 1], dtype)
    program = state({"w": tensor(count=3, shape=(3,), strides=(1,), kind=kind)})
    read = read_weights(write(tmp_path / "w.pth", form, program, data.tobytes(), 3))["w"]
    assert read.dtype == data.dtype and read.tolist() == data.tolist()


@both
def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path: Path, form: str) -> None:
    exact = np.array([1.5, -2.0, 0.15625, np.inf], "<f4")
    program = state({"w": tensor(count=4, shape=(4,), strides=(1,), kind="BFloat16Storage")})
    upper = exact.view("<u2")[1::2].tobytes()
    np.testing.assert_array_equal(read_weights(write(tmp_path / "w.pth", form, program, upper, 4))["w"], exact)


@both
@pytest.mark.parametrize("nest", ["state_dict", "model_state_dict", "model"])
def test_nested_and_tied(tmp_path: Path, form: str, nest: str) -> None:
    inner = state({"a": tensor(), "b": tensor()})[2:-1]
    read = read_weights(write(tmp_path / "w.pth", form, state({"epoch": number(3), nest: inner})))
    assert list(read) == ["a", "b"] and np.shares_memory(read["a"], read["b"])


def test_python_2_ordered_dict(tmp_path: Path) -> None:
    program = b"\x80\x02ccollections\nOrderedDict\n(](](" + text("w") + tensor() + b"eetR."
    np.testing.assert_array_equal(
        read_weights(legacy(tmp_path / "w.pth", program, {"0": (12, FLOATS.tobytes())}))["w"][0, 1], 1
    )


def test_legacy_window_into_another_storage(tmp_path: Path) -> None:
    window = b"(" + text("1") + number(4) + number(3) + b"t"
    program = state({"w": tensor(shape=(3,), strides=(1,), window=window)})
    assert read_weights(write(tmp_path / "w.pth", "legacy", program))["w"].tolist() == [4, 5, 6]


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.mkdir, (str(self.path),)


@both
def test_a_pickle_that_calls_code_runs_nothing_and_is_named(tmp_path: Path, form: str) -> None:
    program = pickle.dumps({"w": Bomb(tmp_path / "gotcha")}, 2)
    with pytest.raises(WeightsError, match=r"w\.pth: holds no dictionary of tensors.*'w' \((posix|nt)\.mkdir\)"):
        read_weights(write(tmp_path / "w.pth", form, program))
    assert not (tmp_path / "gotcha").exists()


def payloads(target: Path) -> dict[str, bytes]:
    """Programs that would make a file, each by another way to call code; what they leave goes into a dictionary."""
    command, source = f"touch {target}", f"open({str(target)!r}, 'w').close()"
    call, named = b"(" + text(command) + b"tR", text("os") + text("system") + b"\x93"
    lookup = b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(" + text("os") + b"tR" + text("system") + b"tR"
    return {
        "os.system": b"cos\nsystem\n" + call,
        "posix.system": b"cposix\nsystem\n" + call,
        "eval": b"cbuiltins\neval\n(" + text(source) + b"tR",
        "exec of Python 2": b"c__builtin__\nexec\n(" + text(source) + b"tR",
        "a chain of getattr": lookup + call,
        "STACK_GLOBAL": named + call,
        "STACK_GLOBAL out of the memo": named + b"\x940h\x00" + call,
        "a dotted name": b"cbuiltins\nopen.__call__\n(" + text(str(target)) + text("w") + b"tR",
        "codecs": b"c_codecs\nencode\n(ccodecs\ndecode\n(" + text(source) + text("rot13") + b"tR" + text("hex") + b"tR",
        "an object": b"csubprocess\nPopen\n((" + text("touch") + text(str(target)) + b"lt\x81",
        "an object with keywords": b"csubprocess\nPopen\n)}" + text("args") + text(command) + b"s\x92",
        "an instance": b"(" + text(command) + b"ios\nsystem\n",
        "OBJ": b"(cos\nsystem\n" + text(command) + b"o",
        "attributes": b"cargparse\nNamespace\n)\x81}" + text("__setstate__") + b"cos\nsystem\nsb",
        "a persistent id": b"(" + text("storage") + b"cos\nsystem\n" + text("0") + text("cpu") + number(12) + b"tQ",
        "a module's class": b"(" + text("module") + b"cos\nsystem\n" + text("f") + text(source) + b"tQ" + call,
        "a subclass of a tensor": b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\n" + b"cos\nsystem\n"
        + b"(" + text(command) + b"t}tR",
        "an ordered dictionary of a call": b"ccollections\nOrderedDict\n(cos\nsystem\n" + call + b"tR",
        "a factory of defaults": b"ccollections\ndefaultdict\n(cos\nsystem\ntR",
        "a list that calls": b"]cos\nsystem\n" + call + b"a",
        "a key that calls": b"}cos\nsystem\n" + call + b"K\x01s",
        "a torch that loads": b"ctorch\nload\n(" + text(str(target)) + b"tR",
        "numpy's own pickles": b"cnumpy\nload\n(" + text(str(target)) + b"NtR",
        "an extension": b"\x82\x01" + call,
    }  # fmt: skip


@both
@pytest.mark.parametrize("shape", payloads(Path("x")))
def test_no_shape_of_a_call_is_executed_and_the_weights_beside_it_are_read(
    tmp_path: Path, form: str, shape: str
) -> None:
    program = state({"optimizer": payloads(tmp_path / "gotcha")[shape], "state_dict": state({"w": tensor()})[2:-1]})
    try:
        read = read_weights(write(tmp_path / "w.pth", form, program))
    except WeightsError as error:
        assert shape == "an ordered dictionary of a call" and "damaged" in str(error)
    else:
        np.testing.assert_array_equal(read["w"], FLOATS.reshape(3, 4))
    assert not (tmp_path / "gotcha").exists()


def test_the_payloads_do_call_when_a_real_unpickler_reads_them(tmp_path: Path) -> None:
    """Otherwise the test above would prove nothing."""
    for shape in ("os.system", "eval", "a chain of getattr", "STACK_GLOBAL", "an instance", "OBJ", "a list that calls"):
        target = tmp_path / shape.replace(" ", "_")
        pickle.loads(b"\x80\x04" + payloads(target)[shape] + b".")
        assert target.exists(), shape


huge = 1 << 60
nest = b"(" + text("x") + b"t" + b"\x86".join([b"q\x01h\x01"] * 60) + b"\x86"

HOSTILE = {
    "global at protocol 4": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "it holds os.system"),
    "eval": (state({"w": b"cbuiltins\neval\n" + b"(" + text("1") + b"tR"}), "'w' (builtins.eval)"),
    "torch but no storage": (state({"w": b"ctorch\nload\n)R"}), "'w' (torch.load)"),
    "an unknown persistent object": (state({"w": b"(" + text("x") * 4 + b"tQ"}), "'w' (persistent object)"),
    "instance": (b"(ios\nsystem\n.", "it holds os.system"),
    "object": (b"ccollections\nOrderedDict\n)\x81.", "it holds collections.OrderedDict"),
    "extension": (b"\x82\x01.", "it holds extension.1"),
    "calls a storage": (state({"w": b"ctorch\nFloatStorage\n)R"}), "'w' (torch.FloatStorage)"),
    "huge memo index": (b"\x80\x02Nr\xff\xff\xff\x7f.", "no dictionary"),
    "nest of tuples as a key": (b"\x80\x02}" + nest + b"Ns.", "no dictionary"),
    "size bomb by stride 0": (state({"w": tensor(shape=(huge,), strides=(0,))}), "beyond its storage"),
    "offset": (state({"w": tensor(offset=1)}), "beyond its storage"),
    "negative offset": (state({"w": tensor(offset=-1)}), "negative"),
    "negative stride": (state({"w": tensor(strides=(-1, 1))}), "negative"),
    "strides of another rank": (state({"w": tensor(strides=(1,))}), "unfit strides"),
    "too many dimensions": (state({"w": tensor(shape=(1,) * 40, strides=(1,) * 40)}), "unfit strides"),
    "no storage": (state({"w": b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR"}), "without a storage"),
    "a storage of no kind": (state({"w": tensor(kind="FloatStorage").replace(b"ctorch\nFloatStorage\n", text("x"))}),
                             "a storage declares"),
    "huge storage": (state({"w": tensor(count=huge)}), "declares"),
    "two sizes of one storage": (state({"w": tensor(), "v": tensor(count=3)}), "twice"),
    "not a tensor": (state({"w": text("hello")}), "'w' (str)"),
    "not a dictionary": (b"\x80\x02].", "no dictionary"),
    "a module within itself": (
        b"}q\x05" + text("_modules") + b"}q\x06scx\nM\n)\x81q\x07h\x05bh\x06" + text("m") + b"h\x07s0.",
        "modules within modules",
    ),
    "empty stack": (b"\x80\x02R.", "damaged"),
    "no end": (b"\x80\x02]", "damaged"),
}  # fmt: skip


@both
@pytest.mark.parametrize("lie", HOSTILE)
def test_hostile(tmp_path: Path, form: str, lie: str) -> None:
    program, reason = HOSTILE[lie]
    with pytest.raises(WeightsError) as caught:
        read_weights(write(tmp_path / "w.pth", form, program))
    message = str(caught.value)
    assert reason in message and str(tmp_path / "w.pth") in message and "\n" not in message


def test_zip_bombs(tmp_path: Path) -> None:
    deflated = zipped(tmp_path / "a.pth", state({"w": tensor()}), {"0": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="more data than the file holds"):
        read_weights(deflated)
    slight = zipped(tmp_path / "b.pth", state({"w": tensor()}), {"0": FLOATS.tobytes()}, zipfile.ZIP_BZIP2)
    with pytest.raises(WeightsError, match=r"compressed|more data"):
        read_weights(slight)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"PK\x03\x04" + bytes(100), b"\x80\x02K\x01."])
def test_not_a_pth(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.pth: "):
        read_weights(tmp_path / "w.pth")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        read_weights(tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"a folder without model\.safetensors; expected"):
        read_weights(tmp_path)


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("photo.jpg", b"x")
    with pytest.raises(WeightsError, match=r"no data\.pkl"):
        read_weights(tmp_path / "w.pth")


def test_two_records_of_one_name(tmp_path: Path) -> None:
    path = zipped(tmp_path / "w.pth", state({"w": tensor()}), {"0": FLOATS.tobytes()})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(next(name for name in archive.namelist() if name.endswith("data/0")), bytes(48))
    with pytest.raises(WeightsError, match="two records of one name"):
        read_weights(path)


PROGRAM = state({"w": tensor(), "n": tensor(key="0", offset=2, shape=(), strides=())})


@pytest.fixture(scope="module", params=["zip", "legacy"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes, Path]:
    path = tmp_path_factory.mktemp("fuzz") / "w.pth"
    return request.param, write(path, request.param, PROGRAM).read_bytes(), path


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_bytes_are_read_equal_or_refused(real: tuple[str, bytes, Path], data: st.DataObject) -> None:
    form, content, path = real
    position = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "drop"]))
    middle = {
        "flip": bytes([content[position] ^ data.draw(st.integers(1, 255))]),
        "insert": b"\0" + content[position : position + 1],
    }
    damaged = content[:position] + middle.get(kind, b"") + (b"" if kind == "cut" else content[position + 1 :])
    path.write_bytes(damaged)
    try:
        read = read_weights(path)
    except WeightsError:
        return
    # A zip carries checksums. A legacy file has none, so a flipped name or number is read as what it now says.
    if form == "zip":
        assert {name: array.tolist() for name, array in read.items()} == {"w": FLOATS.reshape(3, 4).tolist(), "n": 2.0}
    assert sum(array.size for array in read.values()) <= 13


@settings(max_examples=300, deadline=None)
@given(program=st.binary(max_size=60))
def test_any_pickle_is_a_dictionary_of_arrays_or_refused(
    tmp_path_factory: pytest.TempPathFactory, program: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pth"
    try:
        assert isinstance(read_weights(write(path, "zip", program)), dict)
    except WeightsError as error:
        assert "\n" not in str(error)


def test_reading_needs_neither_pickle_nor_a_framework(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = write(tmp_path / "w.pth", "zip", PROGRAM)
    code = (
        "import sys, pathlib; from tlx.models.weights import read_weights\n"
        "import pickle; pickle.Unpickler = pickle.loads = pickle.load = None\n"
        f"assert len(read_weights(pathlib.Path({str(path)!r}))) == 2; assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
