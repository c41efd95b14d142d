"""A recipe that trains in milliseconds, and hostile values to put into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import tomli
import tomli_w
from hypothesis import strategies as st

from tlx import Recipe

BASE: dict[str, Any] = {
    "backend": "loopback",
    "model": "tiny-mlp",
    "weights": "none",
    "image_size": 8,
    "epochs": 2,
    "batch_size": 16,
    "lr": 0.05,
    "val_fraction": 0,
    "data": "digits",
    "limit_train": 40,
    "limit_test": 20,
    "workers": 0,
    "feature_cache": "off",
}
FIELD_NAMES = [f.name for f in fields(Recipe)]
BIDI, ZERO_WIDTH = "gpj.\u202egnp", "a\u200bb"
NAMES = [
    *("", " ", ".", "..", "../x", "~", "~nobody", "~nobody/photos", "-", "--help", "none", "own", "<arrays>", "<x>"),
    *("os:system", "os.system", "tlx.cli:main", "subprocess:Popen", "__import__('os')", "$(id)", "`id`", "%s%n", "{0}"),
    *("[/]", "[red]", "[/red]", "[link=file:///etc]x[/link]", ":smile:", "<script>alert(1)</script>", "&lt;"),
    *("a\x1b[31mb", "a\rb", "a\bb", "a\nb", "\x1b]0;t\x07", "\x9b31m", "a\x00b", "\x7f", BIDI, ZERO_WIDTH, "\ufeffx"),
    *("x" * 300, "x" * 5000, "x/" * 3000, "\u00e9" * 200, "\U0001f468\u200d\U0001f469", "\u0000", "CON", "a:b", "a|b"),
    *("torch", "oneflow", "digits", "cifar10", "imagenet", "tiny-mlp", "fc", "full", "partial", "auto", "cuda", "cpu"),
    *("flips", "flips+flips", "rotate:" + "9" * 5000, "rotate:-1", "crop+resize", "256,-1", "1," * 3000, "1e999"),
    *("data.npz", "file:///etc/passwd", "recipe.toml", "/dev/zero", "/dev/full", "/proc/self/mem"),
    *("https://[", "https://", "https:///x", "ftp://x/y", "https://x#sha256=zz", "https://x#md6=1"),
]
texts = st.sampled_from(NAMES) | st.text(st.characters(exclude_characters="/"), max_size=30)  # no path to the user's
NUMBERS = [0, -1, 1, 2, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**400, -(10**400)]
numbers = st.sampled_from(NUMBERS) | st.integers(-5, 20)
floats = st.floats() | st.sampled_from([5e-324, 1e-40, 1e38, 3.4e38, 1.7e308, -0.0, 0.5, 0.9999999999])
times = st.dates() | st.times() | st.datetimes()
scalars = st.booleans() | numbers | floats | texts | times
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=8
)
LITERALS = [  # what a TOML writer would not write
    *("0x" + "f" * 5000, "0o" + "7" * 6000, "9" * 5000, "9" * 400, "-" + "9" * 5000, "1e99999", "-1e-99999", "1_0"),
    *("nan", "-nan", "+inf", "-inf", "0x7fffffffffffffff", '"\\u0000"', '"\\U0010ffff"', '"\\ud800"', "'''\n\n'''"),
    *("[" * 10_000 + "]" * 10_000, "{a=" * 10_000 + "1" + "}" * 10_000, "[" * 100 + "]" * 100, "[[[1]]]"),
    *("[" + "1," * 20_000 + "]", '"' + "x" * 20_000 + '"', "1979-05-27T07:32:00+00:00", "07:32:00", "[]", "{}"),
    *("[true, 1]", "[nan]", "{a = {b = {c = 1}}}", "true", "''", "'x\ty'", "", "=", '"'),
]


def literal(value: Any) -> str:
    """A value as TOML writes it."""
    return tomli_w.dumps({"x": value}).partition("=")[2] if not isinstance(value, dict) else _inline(value)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(key).strip()} = {_inline(item).strip()}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item).strip() for item in value) + "]"
    return literal(value)


literals = st.sampled_from(LITERALS) | values.map(_inline)


def recipe_text(altered: dict[str, str]) -> bytes:
    """The base recipe with some fields altered to TOML literals."""
    kept = tomli_w.dumps({name: value for name, value in BASE.items() if name not in altered})
    return (kept + "".join(f"{name} = {text}\n" for name, text in altered.items())).encode(errors="surrogatepass")


def value_of(text: str) -> Any:
    """What a TOML literal says; None where it is wrong."""
    try:
        return tomli.loads(f"x = {text}").get("x")
    except Exception:
        return None


def takes_long(name: str, value: Any) -> bool:
    """Whether a run with this field is in order, but would take longer than a test may."""
    return bool(name in ("epochs", "image_size") and isinstance(value, (int, np.integer)) and 64 < value < 2**63)


@contextmanager
def fresh_folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder for one input."""
    folder = Path(mkdtemp(dir=tmp_path))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Odd:
    """An object that refuses everything, but to be shown where a test fails."""

    def __float__(self) -> float:
        raise RuntimeError("no float")

    def __index__(self) -> int:
        raise RuntimeError("no index")

    def __len__(self) -> int:
        raise RuntimeError("no len")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = None  # type: ignore[assignment]


def nested() -> list[Any]:
    """A list in a list, 5,000 times."""
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    return value


OBJECTS: list[Any] = [
    *(None, Odd(), object(), Odd, float, lambda: 1, print, os, ..., NotImplemented, range(3), iter([1]), 1j),
    *(Decimal("sNaN"), Fraction(1, 3), 10**5000, np.float32(1), np.int64(3), np.bool_(True), np.datetime64(1, "s")),
    *(np.zeros(3), np.array(2), np.zeros((2, 3)), np.array(["a"], dtype=object), np.str_("x"), b"x", bytearray(b"x")),
    *(Path("x"), Path("/dev/null"), Path("x" * 5000), memoryview(b"x"), set(), frozenset("a"), [[]], {}, {1: 2}),
    *({"fc": 1}, {"train": 1}, {"train": ([], [])}, {"train": nested()}, nested(), (), ("a",), [None], [1, "a"]),
    *(["a", "a"], {"name": 1}, {"": {}}, "\ud800", ["\ud800"], {"train": ("x", [1])}, {"train": (np.zeros(3), [1])}),
]
anything = st.sampled_from(OBJECTS) | values
