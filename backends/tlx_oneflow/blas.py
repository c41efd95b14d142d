"""A better BLAS for OneFlow, without a compiler: its own, in the wheel, has one thread, and SciPy's wheel has another.

OneFlow multiplies matrices by `cblas_sgemm` and `cblas_dgemm`, which it calls through its procedure linkage table.
These two entries are pointed at SciPy's functions of the same signature; no other library is touched. Before they are
kept, products are compared with NumPy's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

FUNCTIONS = ("cblas_sgemm", "cblas_dgemm")
PREFIX = "scipy_"  # of the names in SciPy's build, with 32-bit integers as OneFlow has them
JUMPS, JUMPS_SIZE, SYMBOLS, STRINGS = 23, 2, 6, 5  # tags of a dynamic section (System V ABI, "Dynamic Section")
JUMP = np.dtype([("offset", "<u8"), ("info", "<u8"), ("addend", "<i8")])  # Elf64_Rela
SYMBOL_BYTES = 24  # of Elf64_Sym, whose first word is the place of its name
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-13}


class LinkMap(ctypes.Structure):
    """The head of what glibc knows of a loaded library (link.h)."""

    _fields_ = (("base", ctypes.c_uint64), ("name", ctypes.c_char_p), ("dynamic", ctypes.c_uint64))


def install(flow: Any) -> str:
    """Give a loaded OneFlow the better BLAS, if there is one; returns the name of the one it multiplies with."""
    own = "OneFlow's own single-threaded BLAS"
    path = shared_library("scipy", "scipy.libs/libscipy_openblas-*.so")
    mine = shared_library("oneflow", "oneflow.libs/liboneflow-*.so")
    if path is None or mine is None:
        return f"{own}: no SciPy wheel with OpenBLAS is installed"
    better = ctypes.CDLL(str(path))
    if not all(hasattr(better, PREFIX + name) for name in FUNCTIONS):
        return f"{own}: {path.name} lacks {PREFIX}{FUNCTIONS[0]}"
    table = entries(ctypes.CDLL(str(mine)), FUNCTIONS)
    if set(table) != set(FUNCTIONS):
        return f"{own}: {mine.name} does not call it through a table"
    before = {name: entry.value for name, entry in table.items()}
    point(table, {name: ctypes.cast(getattr(better, PREFIX + name), ctypes.c_void_p).value for name in FUNCTIONS})
    if not (error := worst_error(flow)) <= 1:  # NaN is an error too
        point(table, before)
        return f"{own}: products of {path.name} are {error:.1g} times further from NumPy's than they may be"
    version = getattr(better, f"{PREFIX}openblas_get_config")
    version.restype = ctypes.c_char_p
    return " ".join(["SciPy's", *version().decode().split()[:2]])


def shared_library(distribution: str, pattern: str) -> Path | None:
    """A library that an installed distribution brings beside its package."""
    try:
        site = Path(str(metadata.distribution(distribution).locate_file("")))
    except metadata.PackageNotFoundError:
        return None
    return next(iter(sorted(site.glob(pattern))), None)


def entries(library: ctypes.CDLL, names: tuple[str, ...]) -> dict[str, ctypes.c_uint64]:
    """The entries of a loaded library's table of calls, by the names of the functions that they lead to."""
    link = LinkMap.from_address(library._handle)
    tags = dict(dynamic_section(link.dynamic))
    if not {JUMPS, JUMPS_SIZE, SYMBOLS, STRINGS} <= tags.keys():
        return {}
    jumps = np.frombuffer(memoryview((ctypes.c_char * tags[JUMPS_SIZE]).from_address(tags[JUMPS])), JUMP)
    wanted = {name.encode(): name for name in names}
    longest = max(map(len, wanted)) + 1
    by_name = {}
    for offset, symbol in zip(jumps["offset"].tolist(), (jumps["info"] >> 32).tolist(), strict=True):
        place = ctypes.c_uint32.from_address(tags[SYMBOLS] + SYMBOL_BYTES * symbol).value
        name = ctypes.string_at(tags[STRINGS] + place, longest).partition(b"\0")[0]
        if name in wanted:
            by_name[wanted[name]] = ctypes.c_uint64.from_address(link.base + offset)
    return by_name


def dynamic_section(address: int) -> Iterator[tuple[int, int]]:
    """Yield tag and value of each entry of a dynamic section (link.h), up to its end."""
    while (pair := tuple((ctypes.c_uint64 * 2).from_address(address)))[0]:
        yield pair[0], pair[1]
        address += 16


def point(entries: Mapping[str, ctypes.c_uint64], functions: Mapping[str, int | None]) -> None:
    """Let each entry of a table of calls lead to another address."""
    for name, entry in entries.items():
        entry.value = functions[name] or 0


def worst_error(flow: Any) -> float:
    """The largest error of a few products, in units of what is tolerated; each operand also transposed."""
    rng = np.random.default_rng(0)
    errors = []
    for dtype, tolerance in TOLERANCE.items():
        a, b = rng.standard_normal((257, 513)).astype(dtype), rng.standard_normal((513, 130)).astype(dtype)
        expected = a.astype(np.float64) @ b.astype(np.float64)
        for left in (False, True):
            for right in (False, True):
                x, y = flow.tensor(a.T.copy() if left else a), flow.tensor(b.T.copy() if right else b)
                got = flow.matmul(x, y, transpose_a=left, transpose_b=right).numpy()
                errors.append(np.abs(got - expected).max() / np.abs(expected).max() / tolerance)
    return float(np.max(errors))
