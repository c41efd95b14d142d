"""What each record of a capture, and its manifest, has to say: a stranger may have written them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, get_args

from tlx.backend import OptimizerSpec
from tlx.backend.preprocess import Interpolation
from tlx.errors import TlxError
from tlx.runs.facts import shortened

Check = Callable[[Any], bool]
_LARGEST = 1 << 62  # of a count, an index or a size: what int64 holds


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _real(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # so no NaN, no infinity, and a float


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _hex(value: Any) -> bool:
    """Whether it is a float that `float.hex` wrote; it may be infinite or NaN."""
    try:
        return isinstance(value, str) and isinstance(float.fromhex(value), float)
    except (ValueError, OverflowError):
        return False


def _some(check: Check, count: int | None = None) -> Check:
    return lambda value: isinstance(value, list) and count in (None, len(value)) and all(map(check, value))


def _labels(value: Any) -> bool:
    """Whether it holds the class of each image, or of each the 0 or 1 of every class."""
    if not isinstance(value, list) or not value or not isinstance(value[0], list):
        return _some(_whole)(value)
    return _some(_some(lambda one: type(one) is int and one in (0, 1), len(value[0])))(value)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _entry(value: Any) -> bool:
    """Whether it is an array of a layout: its name, its shape, and how many numbers stand for it."""
    name, shape, length = value if isinstance(value, list) and len(value) == 3 else (None, None, None)
    return _text(name) and _some(_whole)(shape) and _whole(length)


def _rates(value: Any) -> bool:
    """Whether it is the rate and the decay of a group, of which the decay may not be known."""
    return _some(_or_none(_hex), 2)(value) and value[0] is not None


def _distances(value: Any) -> bool:
    """Whether it holds a distance by the name of each output."""
    return isinstance(value, dict) and all(map(_hex, value.values()))


_mapping: Check = lambda value: isinstance(value, dict)  # noqa: E731
_truth: Check = lambda value: isinstance(value, bool)  # noqa: E731
_list: Check = lambda value: isinstance(value, list)  # noqa: E731
_texts, _layout = _some(_text), _some(_entry)

_DRAW = {
    **{"path": _text, "call": _whole, "function": _truth, "p": lambda value: _real(value) and 0 <= value <= 1},
    **{"shape": _some(_whole), "after": _text, "around": _texts},
}
_draw: Check = lambda value: (  # noqa: E731
    isinstance(value, dict) and value.keys() == _DRAW.keys() and all(_DRAW[name](value[name]) for name in _DRAW)
)

MANIFEST: Mapping[str, Check] = {
    "must": _mapping,
    "recipe": _mapping,
    "backend": _text,
    "versions": _mapping,
    "device": _text,
    "precisions": _texts,
    "planned": _truth,
    "replayed": _or_none(_text),
    "inputs": _text,
    "loss?": _text,
}
# What a capture by tlx/proof/capture_writer.py has besides.
ENGINE_MANIFEST: Mapping[str, Check] = {"engine": _text, "precision": lambda value: value in ("float64", "float32")}
MUST: Mapping[str, Check] = {"model": _text, "stages": _texts, "classes": _texts, "data": _text}
_VISIT = {"path": _text, "kind": _text, "call?": _whole, "depth?": _whole}
_REPLAY = {"forward?": _layout, "gradients?": _layout, "buffers?": _layout, "transposed?": _layout}
_SIZE = r"(/@\d{1,6})?"  # of the image, where it is not the recipe's
_STEP = {
    **{"loss": _hex, "correct": _whole, "hyper": _some(_some(_hex, 2)), "events": _texts},
    **{"scales?": _some(_hex), "max_norm?": _or_none(_hex)},
    **{"values?": _layout, "slots?": _layout, "average?": _layout},
}
_BATCH = {
    **{"indices": _some(_whole), "labels": _labels, "stream": _some(_whole, 3), "size": _whole},
    **{"mean?": _some(_real, 3), "std?": _some(lambda value: _real(value) and value > 0, 3)},
    "interpolation?": lambda value: value in get_args(Interpolation),
}
# By the pattern of its key, the facts that a record has; those behind "?" may be missing.
RECORDS: tuple[tuple[str, Mapping[str, Check]], ...] = (
    (r"P1", {"specs": _list}),
    (r"P2/(train|val|test)/\d{4,9}/\d{4,9}", {**_BATCH, "pixels": _text, "targets?": _or_none(_text)}),
    (rf"P[34]{_SIZE}/visit/\d{{4,9}}", _VISIT),
    (rf"P3{_SIZE}/logits|P4{_SIZE}/buffers", {}),
    (r"P4/draws", {"draws": _some(_draw)}),
    (r"P[34]/random", {"path": _text, "kind": _text, "before": _texts}),
    (rf"P4{_SIZE}/gradients", {"gradients?": _layout}),
    (rf"P4{_SIZE}/loss", {"loss": _hex, "correct": _whole}),
    (rf"P[34]{_SIZE}/replay/\d{{4,9}}", {"path": _text, "call?": _whole, "why?": _text, **_REPLAY}),
    (r"P[34]/@\d{1,6}/error", {"text": _text}),
    (r"P5/script", {"optimizer": _text, "groups": _some(_texts)}),
    (
        r"P5/update/\d{1,9}",
        {
            **{"hyper": _some(_some(_real, 2)), "trains": _texts, "values": _layout, "slots": _layout},
            "max_norm?": _or_none(_real),
        },
    ),
    (r"P[69]/error|P6/locked/error", {"text": _text, "moved?": _truth}),
    (r"P6/(envelope/\d{1,9}/)?\d{4,9}", _STEP),
    (r"P6/start/\d{4,9}", {"digest": _text, "sketch": _layout}),
    (r"P6/(locked|scatter/\d{1,9})/\d{4,9}", {**_STEP, "start": _text, "gradients": _layout}),
    (r"P6/validated", {"losses": _some(_hex), "correct": _some(_whole)}),
    (r"P7/model", {"digest": _text}),
    (r"P7/\d{4,9}", {"correct": _whole, "labels": _labels, "model?": _text}),
    (r"P8/(float64|float32|float32-nudged)/\d{1,9}", {"gradients": _layout, "buffers": _layout}),
    (r"P9/(plain|nudged)/\d{4,9}", {"loss": _hex}),
    # For engines outside tlx: what enters the network, and how far float32 moves the reference's own outputs.
    (r"P3/input|P4/input/\d{1,9}", {}),
    (r"P3/float32", {"outputs": _distances, "logits": _hex}),
    (r"P4/float32", {"outputs": _distances}),
)
_ENGINE_STEP = {"loss": _hex, "hyper?": _some(_rates), "values?": _layout, "slots?": _layout}
_ENGINE_STEP |= {"gradients?": _layout, "average?": _layout, "events?": _texts}
# The records of a capture by an engine, where they say less than tlx's own.
ENGINE_RECORDS: tuple[tuple[str, Mapping[str, Check]], ...] = (
    (r"P[34]/visit/\d{4,9}", {**_VISIT, "call?": _whole}),
    (r"P4/loss", {"loss": _hex}),
    (r"P8/(float64|float32)/\d{1,9}", {"loss?": _hex, "gradients": _layout, "buffers": _layout}),
    (r"P6/input/\d{4,9}", {}),
    (r"P6/(envelope/\d{1,9}/)?\d{4,9}", _ENGINE_STEP),
)


def check_manifest(where: str, manifest: Mapping[str, Any]) -> None:
    """Raise TlxError, naming it, where a fact of the manifest is of another kind than it has to be."""
    _check(where, "", manifest, MANIFEST)
    if "engine" in manifest:
        _check(where, "", manifest, ENGINE_MANIFEST)
    _check(where, "must.", manifest["must"], MUST)
    _check(where, "", manifest, {"not_run?": _texts})


def check_record(where: str, key: str, facts: Mapping[str, Any], engine: bool = False) -> None:
    """Raise TlxError where a record has an unknown key, or a fact is missing or of another kind.

    `engine` says that no tlx wrote the capture.
    """
    known = (*ENGINE_RECORDS, *RECORDS) if engine else RECORDS
    checks = next((checks for pattern, checks in known if re.fullmatch(pattern, key)), None)
    if checks is None:
        raise TlxError(f"{where}: this tlx knows no record {shortened(key)}", fix="capture anew")
    _check(where, f"{key}, ", facts, checks)
    if key == "P5/script":
        defaults = asdict(OptimizerSpec("sgd"))
        for name, default in defaults.items():
            if name != "name" and facts.get(name) is not None and not _like(default, facts[name]):
                raise TlxError(f"{where}: {key}, {name} is damaged: it is {shortened(facts[name])}", fix="capture anew")


def _check(where: str, place: str, facts: Mapping[str, Any], checks: Mapping[str, Check]) -> None:
    for name, check in checks.items():
        plain = name.removesuffix("?")
        if plain not in facts and plain == name:
            raise TlxError(f"{where}: {place}{plain} is missing", fix="capture anew")
        if plain in facts and not check(facts[plain]):
            raise TlxError(f"{where}: {place}{plain} is damaged: it is {shortened(facts[plain])}", fix="capture anew")


def _like(default: Any, value: Any) -> bool:
    """Whether a scalar of an optimizer is of the kind that its default is."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, (tuple, list)):
        return _some(_real, len(default))(value) and all(0 <= number <= 1 for number in value)
    return _real(value) and math.fabs(value) <= 1e6
