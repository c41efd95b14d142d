"""Plain values, arrays and bytes, altered in every way that a stranger could; and a folder for one input."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from support.hostile import INPUTS, hostile_inputs

fewer_inputs = settings(hostile_inputs, max_examples=INPUTS * 2 // 5)  # of each of fifteen targets that run whole jobs

Place = tuple[str | int, ...]
DEEP = "[" * 100_000 + "]" * 100_000
MISSING, EXTRA = "<missing>", "<extra>"  # alterations that are no value

NUMBERS = [0, 1, -1, 2, 7, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**300, 10**400, 10**4000]
FLOATS = [0.0, -0.0, 0.5, 1.5, -1.0, 1e-300, 1e300, math.inf, -math.inf, math.nan]
TEXTS = [
    *("", "nan", "0x1.8p+0", "-inf", "\x1b[31mred\r\n", "\ud800", "\x00", "a/b", "../..", "/dev/zero", "x" * 5000),
    *("centre", "shrink", "photos", "loopback", "tiny-mlp", "0" * 64, "fc.weight", "\u202e", "[red]"),
]
scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(-3, 40),
    st.sampled_from(FLOATS),
    st.floats(),
    st.sampled_from(TEXTS),
    st.text(max_size=8),
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@contextmanager
def workplace(tmp_path: Path) -> Iterator[Path]:
    """A folder for one input, which is gone after it."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        yield Path(name)


def places(value: Any, above: Place = ()) -> list[Place]:
    """Where something lies within JSON: the keys that lead to each value, the whole included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [above, *(place for key, item in inner for place in places(item, (*above, key)))]


@st.composite
def alterations(draw: st.DrawFn, value: Any) -> Any:
    """A copy of JSON in which one to three values are others, are missing, or have company."""
    for _ in range(draw(st.sampled_from((1, 1, 1, 1, 2, 3)))):
        place = draw(st.sampled_from(places(value)))
        new = draw(values | st.sampled_from((MISSING, EXTRA)))
        value = altered(value, place, new)
    return value


def altered(value: Any, place: Place, new: Any) -> Any:
    """A copy in which what lies at a place is `new`, MISSING, or has EXTRA beside it."""
    if not place:
        return {} if new in (MISSING, EXTRA) else new
    value = copy.deepcopy(value)
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    if new == MISSING:
        del holder[place[-1]]
    elif new == EXTRA and isinstance(holder, dict):
        holder[f"{place[-1]}+"] = holder[place[-1]]
    elif new == EXTRA:
        holder.append(holder[place[-1]])
    else:
        holder[place[-1]] = new
    return value


def to_json(value: Any) -> bytes:
    """JSON as Python writes it, with NaN and lone surrogates."""
    return json.dumps(value).encode()


DTYPES = ("<f8", "<f4", "<f2", "<i8", "<i4", "<u8", "|u1", "|b1")


@st.composite
def arrays(draw: st.DrawFn, array: NDArray[Any], dtypes: tuple[str, ...] = DTYPES) -> NDArray[Any]:
    """An array of another dtype, shape or count, or with other numbers in it."""
    kind = draw(st.sampled_from(("dtype", "flat", "deeper", "scalar", "empty", "cut", "longer", "number", "deep")))
    if kind == "dtype":
        with np.errstate(all="ignore"):
            return array.astype(draw(st.sampled_from(dtypes)))
    if kind == "flat":
        return array.ravel()
    if kind == "deeper":
        return array[None]
    if kind == "deep":
        return array.reshape((1,) * (31 - array.ndim) + array.shape)
    if kind == "scalar":
        return np.array(array.ravel()[0] if array.size else 0, array.dtype)
    if kind == "empty":
        return np.zeros(draw(st.sampled_from(((0,), (0, 3), (3, 0)))), array.dtype)
    if kind == "cut":
        return array[:-1] if array.ndim else array
    if kind == "longer":
        return np.concatenate([array, array]) if array.ndim else np.stack([array, array])
    changed = np.array(array)
    if changed.size and changed.dtype.kind == "f":
        changed.flat[0] = draw(st.sampled_from((np.nan, np.inf, float(np.finfo(changed.dtype).max), -1.0)))
    elif changed.size and changed.dtype.kind in "iu":
        changed.flat[0] = draw(st.sampled_from((0, 1, np.iinfo(changed.dtype).max)))
    return changed


@st.composite
def of_many(draw: st.DrawFn, named: dict[str, NDArray[Any]], dtypes: tuple[str, ...] = DTYPES) -> dict[str, Any]:
    """Named arrays of which one is another, is missing, has another name, or has company."""
    named = dict(named)
    name = draw(st.sampled_from(sorted(named)))
    kind = draw(st.sampled_from(("array", "array", "array", "missing", "renamed", "extra", "none")))
    other = draw(st.sampled_from(("", "x", f"{name}.x", "model/", "a" * 5000, "\x1b[31m\n", "." * 5000, "\u202e")))
    if kind == "array":
        named[name] = draw(arrays(named[name], dtypes))
    elif kind == "none":
        return {}
    elif kind == "extra":
        named[other] = named[name]
    elif kind == "missing":
        del named[name]
    else:
        named[other] = named.pop(name)
    return named


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some of them changed, left out, repeated or cut off."""
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, max(0, min(draw(st.sampled_from((64, 1024, len(content)))), len(content) - 1))))
        kind = draw(st.sampled_from(("change", "number", "remove", "repeat", "cut")))
        if kind == "change":
            content = content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[at + draw(st.integers(0, 8)) :]
        elif kind == "number":  # the largest and the smallest of each size
            number = draw(st.sampled_from((b"\xff", b"\x7f", b"\x80", b"\0", b"\xff" * 4, b"\xff" * 8, b"\0" * 8)))
            content = content[:at] + number + content[at + len(number) :]
        elif kind == "remove":
            content = content[:at] + content[at + draw(st.integers(1, 32)) :]
        elif kind == "repeat":
            content = content[: at + draw(st.integers(1, 64))] + content[at:]
        else:
            content = content[:at]
    return content
