"""Pickles of torch.save, written opcode by opcode, so that no framework is needed and any lie can be told."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
DATA = bytes(48)  # of every storage


def text(value: str) -> bytes:
    data = value.encode(errors="surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data if len(data) < 256 else b"\x8b" + struct.pack("<I", len(data)) + data


def numbers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    key: str = "0",
    count: int = 12,
    offset: int = 0,
    shape: Sequence[int] = (3, 4),
    strides: Sequence[int] = (4, 1),
    kind: str = "FloatStorage",
    function: str = "torch._utils\n_rebuild_tensor_v2",
    window: bytes = b"",
) -> bytes:
    storage = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + number(count)
    rebuild = b"c" + function.encode() + b"\n("
    return rebuild + storage + window + b"tQ" + number(offset) + numbers(shape) + numbers(strides) + b"\x89)tR"


def state(entries: dict[str, bytes]) -> bytes:
    items = b"".join(text(name) + value for name, value in entries.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."


def zipped(program: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore", UserWarning)  # of two records of one name
        archive.writestr("m/data.pkl", program)
        for key, data in storages.items():
            archive.writestr(f"m/data/{key}", data)
    return file.getvalue()


def legacy(program: bytes, storages: dict[str, bytes]) -> bytes:
    keys = pickle.dumps(list(storages), 2)
    return MAGIC + program + keys + b"".join(struct.pack("<q", len(data) // 4) + data for data in storages.values())


class Executes:
    """Runs a command where it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


# What runs in `pickle.load`, as the pickle of a whole file, or as a value within one.
EXECUTING = [
    *(pickle.dumps(Executes(os.system, "touch executed"), protocol) for protocol in range(5)),
    pickle.dumps(Executes(eval, "open('executed', 'w')"), 2),
    pickle.dumps(Executes(exec, "import os; os.mkdir('executed')"), 2),
    pickle.dumps({"fc.weight": Executes(os.mkdir, "executed")}, 2),
    b"cos\nsystem\n(S'touch executed'\ntR.",
    b"(S'touch executed'\nios\nsystem\n.",
    b"(cos\nsystem\nS'touch executed'\no.",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0etouch executed\x85R.",
    b"\x80\x02cbuiltins\ngetattr\nc__builtin__\neval\nX\x08\x00\x00\x00__call__\x86R.",
    b"\x80\x02\x82\x01.",  # an extension
    b"Pos.system\n.",  # a persistent id
]
DEPTH = 20_000
# What takes a program of some kilobytes to gigabytes, or to hours.
BOMBS = {
    "nested lists": b"\x80\x02" + b"]" * DEPTH + b"a" * (DEPTH - 1) + b".",
    "nested dictionaries": b"\x80\x02" + (b"}" + text("a")) * DEPTH + tensor() + b"s" * DEPTH + b".",
    "nested tuples": b"\x80\x02)" + b"\x85" * DEPTH + b".",
    "laughs": b"\x80\x02]q\x00" + b"".join(b"(h%c" % i * 9 + b"lq%c" % (i + 1) for i in range(90)) + b".",
    "doubled tuples": b"\x80\x02)" + b"2\x86" * DEPTH + b".",
    "marks": b"\x80\x02" + b"(" * DEPTH + b".",
    "duplicates": b"\x80\x02}" + b"2" * DEPTH + b".",
    "a long integer": b"\x80\x02" + number(1 << 800_000) + b".",
    "a long key": state({}).removesuffix(b".") + number(1 << 800_000) + tensor() + b"s.",
    "a long count": state({"a": tensor(count=1 << 800_000)}),
    "long sizes": state({"a": tensor(shape=(1 << 80_000,) * 16, strides=(1,) * 16)}),
    "an integer of text": b"\x80\x02I" + b"9" * 100_000 + b"\n.",
    "a long of text": b"\x80\x02L" + b"9" * 100_000 + b"L\n.",
    "a promised text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.",
    "promised bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
    "a promised frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"}.",
    "a far memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "expanded": state({"a": tensor(count=1, shape=(10**6, 10**6), strides=(0, 0))}),
    "expanded to nothing": state({"a": tensor(count=1, shape=(0, 10**18, 10**18), strides=(0, 0, 0))}),
    "dots": state({"." * 200_000: tensor()}),
    "dots and no dots": state({".".join("ab" * 3_000): tensor(), "fc." * 2000 + "weight": tensor()}),
}


def modules(depth: int, width: int, name: str) -> bytes:
    """A chain of pickled modules, all of which own the same dictionary of tensors, each under a long name."""
    tensors = b"}q\x01(" + b"".join(text(f"{name}{i}") + b"h\x00" for i in range(width)) + b"u"
    program = b"\x80\x02" + tensor() + b"q\x000" + tensors + b"0"
    empty = b"cmodel\nNet\n)\x81}(" + text("_parameters") + b"h\x01" + text("_modules") + b"}"
    return program + (empty + text("m")) * depth + b"N" + (b"s" + b"ub") * depth + b"."


BOMBS["modules within modules"] = modules(30, 300, "x" * 200)
BOMBS["deep modules"] = modules(2000, 3, "x")


def wide_modules(children: int, width: int) -> bytes:
    """One module with many children that are all different and own the same dictionary of tensors."""
    tensors = b"}q\x01(" + b"".join(text(f"t{i}") + b"h\x00" for i in range(width)) + b"u"
    program = b"\x80\x02" + tensor() + b"q\x000" + tensors + b"0"
    child = b"cmodel\nNet\n)\x81}(" + text("_parameters") + b"h\x01" + text("_modules") + b"}ub"
    inner = b"}(" + b"".join(text(str(i)) + child for i in range(children)) + b"u"
    return program + b"cmodel\nNet\n)\x81}(" + text("_parameters") + b"}" + text("_modules") + inner + b"ub."


BOMBS["wide modules"] = wide_modules(3_000, 3_000)

sizes = st.sampled_from((0, 1, 2, 3, 4, 12, 13, -1, 2**31, 2**40, 2**63, 10**12, 10**30)) | st.integers(-2, 30)


@st.composite
def tensors(draw: st.DrawFn) -> bytes:
    """A tensor whose storage, offset, shape and strides are any numbers."""
    shape = draw(st.lists(sizes, max_size=18))
    return tensor(
        key=draw(st.sampled_from(("0", "1", "../x", ""))),
        count=draw(sizes),
        offset=draw(sizes),
        shape=shape,
        strides=draw(st.just([1] * len(shape)) | st.lists(sizes, max_size=18)),
        kind=draw(st.sampled_from(("FloatStorage", "BFloat16Storage", "QInt8Storage", "LongStorage", "x"))),
        function=draw(
            st.sampled_from(
                ("torch._utils\n_rebuild_tensor_v2", "torch._utils\n_rebuild_parameter", "collections\nOrderedDict",
                 "torch._tensor\n_rebuild_from_type_v2", "os\nsystem", "builtins\nset")
            )
        ),
    )  # fmt: skip


atoms = st.one_of(
    st.sampled_from(
        [b"N", b"\x88", b"\x89", b"]", b"}", b")", b"\x8f", b"(t", b"(l", b"(d", b"2", b"0", b"1", b"\x97"]
    ),
    st.sampled_from([b"(", b"u", b"e", b"a", b"s", b"t", b"R", b"\x81", b"\x92", b"b", b"o", b"Q", b"\x90", b"\x91"]),
    st.sampled_from([b"\x85", b"\x86", b"\x87", b"\x94", b"\x93", b"q\x00", b"h\x00", b"h\x01", b"\x98", b"\x80\x02"]),
    st.sampled_from([b"ccollections\nOrderedDict\n", b"cbuiltins\nset\n", b"ctorch\nFloatStorage\n", b"cos\nsystem\n"]),
    st.sampled_from([b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ios\nx\n"]),
    st.sampled_from(
        [text(word) for word in ("storage", "module", "_modules", "_parameters", "state_dict", "fc.weight")]
    ),
    st.integers(-(2**70), 2**70).map(number),
    st.text(max_size=4).map(text),
    st.binary(max_size=3),
    tensors(),
)
programs = st.lists(atoms, max_size=24).map(lambda parts: b"\x80\x02" + b"".join(parts) + b".")
