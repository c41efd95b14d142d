"""Tables, arrays and shards with hostile content."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from support.hostile import hostile_inputs
from support.hostile_data import COMMANDS, SAMPLES, TRAPS, mutated, places, png, traps, use, workplace

PATHS = (
    *(f"{i}.png" for i in range(4)),
    *TRAPS,
    *("", ".", "..", "/", "~nobody/0.png", "~/0.png", "/dev/zero", "/dev/stdin", "/proc/self/fd/0", "/etc/passwd"),
    *("../0.png", "up/up/0.png", "up/" * 50 + "0.png", "x" * 5000, "x/" * 2500, "./0.png", "0.png/", "0.png/x", "0"),
    *("http://localhost/0.png", "file:///etc/passwd", "0.png\0", "0\n.png", "\x1b[31m.png", "\ud800.png", "C:\\0.png"),
)
LABELS = (
    *("0", "1", "2", "0.0", "-1", "9" * 400, "1e400", "nan", "None", "", " ", "=1+1", "@SUM(A1)", "\x1b[2J", "\u202e1"),
    *("\ud800", "\0", "a\nb", "tlx: 0", "x" * 5000, "é", "e\u0301", "\u2028"),
)
HEADERS = (
    ("path", "label"), ("path", "label", "split"), ("label", "path", "is_train"), ("path", "path"), ("id", "breed", ""),
    ("path", "label", "label"), ("0.png", "0"), ("a", "b"), ("", ""), ("\x1b[31m", "label"), ("path", "l" * 5000),
)  # fmt: skip
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "utf-7")
commands = st.sampled_from(COMMANDS)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A table that is right but for some of its cells, in any encoding."""
    header = draw(st.sampled_from(HEADERS[:3]) | st.sampled_from(HEADERS))
    rows: list[list[str]] = [list(header)]
    hostile = draw(places)
    for i in range(draw(st.sampled_from((SAMPLES, SAMPLES, SAMPLES, 0, 1, 5)))):
        row = {"path": f"{i}.png", "label": str(i % 2)}
        last = header[-1] == "is_train"
        extra, cells = (("1" if last else "train") if i < 16 else ("0" if last else "test")), 9
        if i in hostile:
            row = {"path": draw(st.sampled_from(PATHS) | st.text()), "label": draw(st.sampled_from(LABELS) | st.text())}
            extra = draw(st.sampled_from(("train", "test", "val", "1", "0", "", "x")))
            cells = draw(st.just(9) | st.integers(0, 9))
        rows.append([row.get(name, row["path"] if name == "id" else extra) for name in header][:cells])
    text = io.StringIO()
    quoting: Any = draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    end = draw(st.sampled_from(("\n", "\r\n", "\r")))
    csv.writer(
        text, delimiter=draw(st.sampled_from(",;\t|:")), quoting=quoting, escapechar="\\", lineterminator=end
    ).writerows(rows)
    return text.getvalue().encode(draw(st.sampled_from(ENCODINGS)), errors="replace")


@hostile_inputs
@given(
    content=st.binary() | tables() | tables().flatmap(mutated),
    command=commands,
    on_bad=st.sampled_from(("error", "skip")),
)
def test_a_table(content: bytes, command: str, on_bad: str, run_dir: Path, tmp_path: Path) -> None:
    with workplace(tmp_path) as folder:
        traps(folder)
        (folder / "x.csv").write_bytes(content)
        use("table", command, run_dir, "x.csv", folder, "--on-bad-image", on_bad)


class Executes:
    """Unpickling it would run a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


DTYPES = (
    *("u1", "i8", "f4", "f2", "f8", ">i4", "?", "c8", "S3", "U2", "M8[s]", "m8[D]", "V4", "g", "u8"),
    *("S0", "U0", "V0", "O", "u1,f4", "(2,2)u1"),
)
SHAPES = (
    (8, 4, 4),
    (8, 4, 4, 3),
    (8, 3, 4, 4),
    (8, 4, 4, 2),
    (8,),
    (),
    (0,),
    (8, 1),
    (8, 2),
    (0, 4, 4),
    (8, 0, 4),
    (1,) * 9,
)
MEMBERS = ("images", "labels", "x_train", "y_train", "x_test", "y_test", "x_val", "classes")
HEADERS_OF_ARRAYS = (
    "{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 4, 4), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (-8, -4, 4), }",
    "{'descr': '|u1', 'fortran_order': True, 'shape': (True, 8, 4, 4), }",
    "{'descr': '|S0', 'fortran_order': False, 'shape': (%d,), }",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (%d, 4, 4), }",
    "{'descr': [], 'fortran_order': False, 'shape': (%d, 4, 4), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (8,), }",
    "{'descr': [('a', [('b', '|u1', (9, 9))], (%d,))], 'fortran_order': False, 'shape': (8,), }",
    "{'descr': '<U%d', 'fortran_order': False, 'shape': (8,), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "(" * 90 + ")" * 90 + "), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "-" * 5000 + "8,), }",
    "__import__('os').system('touch executed')",
)


@st.composite
def arrays(draw: st.DrawFn, name: str) -> bytes:
    """A .npy file: right, or with another type, shape or header."""
    kind = draw(st.sampled_from(("right",) * 6 + ("values", "type", "header", "bytes")))
    shape: tuple[int, ...] = (SAMPLES, 4, 4) if name[0] in "ix" else (2,) if name == "classes" else (SAMPLES,)
    array: Any = np.arange(int(np.prod(shape))).reshape(shape)
    array = np.array(["a", "b"]) if name == "classes" else array.astype(np.uint8) % (256 if name[0] in "ix" else 2)
    if kind == "values":
        numbers = (float("nan"), float("inf"), -1.0, 0.0, 1.0, 1e300, 2.0**63, 300.0)
        array = np.array(draw(st.lists(st.sampled_from(numbers), min_size=array.size, max_size=array.size))).reshape(
            shape
        )
    elif kind == "type":
        shape = draw(st.sampled_from(SHAPES))
        dtype = np.dtype(draw(st.sampled_from(DTYPES)))
        array = np.full(shape, Executes()) if dtype.hasobject else np.zeros(shape, dtype)
    file = io.BytesIO()
    np.save(file, np.asfortranarray(array) if draw(st.booleans()) else array, allow_pickle=True)
    content = file.getvalue()
    if kind == "header":
        text = draw(st.sampled_from(HEADERS_OF_ARRAYS)).replace(
            "%d", str(draw(st.sampled_from((8, 2**31, 2**62, 2**70))))
        )
        content = b"\x93NUMPY\x02\0" + len(text).to_bytes(4, "little") + text.encode() + bytes(128)
    return draw(mutated(content)) if kind == "bytes" else content


@st.composite
def archives_of_arrays(draw: st.DrawFn) -> bytes:
    """An .npz file with members missing, doubled, packed too well, or encrypted by their flags."""
    names = draw(st.sampled_from((MEMBERS[:2], MEMBERS[2:6])))
    names += tuple(draw(st.lists(st.sampled_from((*MEMBERS, "other", "../x")), max_size=2)))
    names = names[draw(st.sampled_from((0, 0, 0, 1))) :]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw(st.sampled_from((0, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)))) as archive:
        for name in names:
            suffix = draw(st.sampled_from((".npy",) * 20 + ("", ".npy/")))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of members that come twice
                archive.writestr(name + suffix, draw(arrays(name)))
    content = file.getvalue()
    if draw(st.sampled_from((False, False, True))):
        content = content.replace(b"PK\3\4\x14\0\0", b"PK\3\4\x14\0\1")
    return content


@hostile_inputs
@given(content=archives_of_arrays() | archives_of_arrays().flatmap(mutated) | st.binary(), command=commands)
def test_arrays(content: bytes, command: str, run_dir: Path, tmp_path: Path) -> None:
    with workplace(tmp_path) as folder:
        (folder / "x.npz").write_bytes(content)
        use("arrays", command, run_dir, "x.npz", folder)


@st.composite
def parquets(draw: st.DrawFn) -> bytes:
    """A Parquet file of photos, paths or rubbish, with labels of many kinds, and what the Hub writes about both."""
    photo, rubbish = png(), st.sampled_from((b"", b"x", None))
    hostile = draw(places)
    photos = [draw(rubbish) if i in hostile else photo for i in range(SAMPLES)]
    kind = draw(st.sampled_from(("bytes", "bytes", "struct", "struct", "paths", "numbers", "nested")))
    values: Any = {
        "bytes": photos,
        "struct": [{"bytes": photo, "path": draw(st.sampled_from((None, "0.png", "/dev/zero")))} for photo in photos],
        "paths": [draw(st.sampled_from(PATHS[:-2])) if i in hostile else f"{i}.png" for i in range(SAMPLES)],
        "numbers": list(range(SAMPLES)),
        "nested": [[photo] for photo in photos],
    }[kind]
    label: list[Any] = draw(
        st.sampled_from(
            (
                *([0, 1], [0, 1], ["0", "1"], [0.0, 1.0], [0.5, float("nan")], [None, None], [-1, 2**62]),
                *([True, False], [b"0", b"1"], [[0], [1]], ["\x1b[31m", "\u2028"], ["x" * 50_000, "y"]),
            )
        )
    )
    names = draw(
        st.sampled_from((*(("image", "label"),) * 4, ("a", "b"), ("image", "image"), ("label", "image"), ("", "\x1b")))
    )
    features = draw(
        st.sampled_from(
            (
                {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}},
                {"label": {"_type": "ClassLabel", "names": [1, None, ["x"], {}]}},
                {"label": {"_type": "ClassLabel", "names": "ab"}, "image": None},
                {"label": {"_type": "ClassLabel", "names": []}},
                [],
                None,
            )
        )
    )
    text = draw(st.sampled_from((json.dumps({"info": {"features": features}}), "[" * 100_000, "{", "\0")))
    table = pa.Table.from_arrays([pa.array(values), pa.array(label * (SAMPLES // 2))], names=list(names))
    table = table.replace_schema_metadata({"huggingface": text}) if draw(st.booleans()) else table
    file = io.BytesIO()
    parquet.write_table(table, file, compression=draw(st.sampled_from(("snappy", "none", "gzip", "zstd"))))
    return file.getvalue()


@hostile_inputs
@given(content=parquets() | parquets().flatmap(mutated) | st.binary(), command=commands)
def test_parquet(content: bytes, command: str, run_dir: Path, tmp_path: Path) -> None:
    with workplace(tmp_path) as folder:
        traps(folder)
        (folder / "x.parquet").write_bytes(content)
        use("Parquet", command, run_dir, "x.parquet", folder)


JSONS = (
    *("0", '"1"', "null", "true", "[]", "{}", "nan", "1e999", '{"label": 0}', '{"label": {}}', '{"label": []}'),
    *("[" * 100_000, '{"label":' * 50_000, "9" * 5000, '{"x": 1}', '"\\ud800"', "\0", "\x1b[31m", "\u0663", "1_0"),
)


@st.composite
def shards(draw: st.DrawFn) -> bytes:
    """A tar of samples, with odd labels, odd names and members that are no files."""
    file = io.BytesIO()
    format = draw(st.sampled_from((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))
    with tarfile.open(fileobj=file, mode="w", format=format, errors="surrogateescape") as archive:
        hostile = draw(places)
        for i in range(SAMPLES):
            extension = draw(st.sampled_from(("cls", "cls", "json")))
            usual = f'{{"label": {i % 2}}}' if extension == "json" else str(i % 2)
            text, odd = usual, None
            if i in hostile:
                text = draw(st.just(usual) | st.sampled_from(JSONS))
                odd = draw(st.sampled_from((None,) * 6 + ("../0", "/0", "0", "", ".", "a/.b", "\x1b[31m", "x" * 90)))
            label = text.encode(errors="surrogatepass")
            for name, content in ((".png", png()), (f".{extension}", label)):
                member = tarfile.TarInfo((f"{i}" if odd is None else odd) + name)
                member.size = len(content)
                if i in hostile and draw(st.integers(0, 4)) == 0:
                    member.type = draw(st.sampled_from((b"1", b"2", b"3", b"4", b"6", b"7", b"S", b"Z")))
                    member.linkname = draw(st.sampled_from(("/etc/passwd", "../x", "0.png")))
                archive.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return file.getvalue()


@hostile_inputs
@given(
    content=shards() | shards().flatmap(mutated),
    names=st.sampled_from((None, "classes.txt", "classes.json", "class_to_idx.json")),
    text=st.sampled_from(
        (*JSONS, "a\nb", '["a", "b"]', '{"a": 0, "b": 1}', '{"0": [], "1": {}}', '["a", []]', '{"0": "a"}')
    ),
    command=commands,
)
def test_shards(content: bytes, names: str | None, text: str, command: str, run_dir: Path, tmp_path: Path) -> None:
    with workplace(tmp_path) as folder:
        (folder / "x.tar").write_bytes(content)
        if names:
            (folder / names).write_bytes(text.encode(errors="surrogatepass"))
        use("shards", command, run_dir, "x.tar", folder)
