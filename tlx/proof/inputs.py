"""P0, P1 and P2: whether both sides were given the same recipe, weights and batches, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tlx.backend import Array
from tlx.data.fingerprint import is_first
from tlx.models.pixels import IMAGENET
from tlx.proof.artifact import MODULE, Capture, readable
from tlx.proof.measure import relative, sha256
from tlx.proof.result import Row, Side, Stage

ABSENT = "nothing"
# How each batch entered the network in a capture of an earlier tlx, which does not say it.
_EARLIER = {"mean": list(IMAGENET.mean), "std": list(IMAGENET.std), "interpolation": IMAGENET.interpolation}


def compare_manifests(a: Capture, b: Capture) -> Stage:
    """P0: what must be equal for a comparison to mean anything."""
    first = any(is_first(capture.manifest["must"]["data"]) for capture in (a, b))
    left, right = (_must(capture, first) for capture in (a, b))
    if a.engine or b.engine:
        left, right = _stated_by_both(a, b, left, right)
    rows = tuple(
        Row(
            kind="field",
            path=str(key),
            error=math.inf,
            passed=False,
            values=(readable(left[key]) if key in left else ABSENT, readable(right[key]) if key in right else ABSENT),
        )
        for key in sorted({*left, *right})
        if left.get(key) != right.get(key)
    )
    facts = {"equal": len({*left, *right}) - len(rows), "not_run": list(a.manifest.get("not_run", ()))}
    return Stage("P0", float(len(rows)), 0, not rows, rows, facts)


def _must(capture: Capture, first: bool) -> dict[str, Any]:
    """What must be equal; with the fingerprint that tlx 0.1.0 made where the other capture has no other."""
    must = {name: value for name, value in capture.manifest["must"].items() if name != "stages"}
    if first and not is_first(must["data"]):
        must["data"] = capture.manifest.get("first_data", must["data"])
    return must


def _stated_by_both(
    a: Capture, b: Capture, left: Mapping[str, Any], right: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what both sides say, where an engine wrote one and may say less; and which capture it started from."""
    stated = [
        name for name in left if name in right and all(side[name] not in ("", [], MODULE) for side in (left, right))
    ]
    ours, theirs = ({name: side[name] for name in stated} for side in (left, right))
    if b.engine and b.manifest["replayed"] is not None:
        ours["weights and batches"], theirs["weights and batches"] = a.manifest["inputs"], b.manifest["replayed"]
    return ours, theirs


def compare_weights(a: Capture, b: Capture) -> Stage:
    """P1: names, shapes, dtypes and bytes of every array after loading."""
    left, right = a.records["P1"].arrays(), b.records["P1"].arrays()
    rows = [_weight_row(name, left.get(name), right.get(name)) for name in union(left, right)]
    listings = [list(c.records["P1"].facts["specs"]) for c in (a, b)]
    own = a.manifest["must"]["model"] == MODULE  # a port may register its layers in another order, or write its own
    if listings[0] != listings[1] and not own and all(row.passed for row in rows):
        rows.append(Row(kind="listing", error=math.inf, passed=False))
    return counted("P1", rows, {"arrays": len(left)})


def _weight_row(name: str, x: Array | None, y: Array | None) -> Row:
    if x is None or y is None:
        return Row(kind="weight", path=name, error=math.inf, passed=False, missing=absent_side(x, y))
    if x.shape != y.shape or x.dtype != y.dtype:
        shown = f"{x.dtype} {list(x.shape)}", f"{y.dtype} {list(y.shape)}"
        return Row(kind="weight", path=name, error=math.inf, passed=False, values=shown)
    if sha256(x) == sha256(y):
        return Row(kind="weight", path=name, error=0.0, passed=True)
    cause: Any = "transposed" if _is_transposed(x, y) else None
    return Row(kind="weight", path=name, error=relative(x, y) or math.inf, passed=False, cause=cause)


def _is_transposed(x: Array, y: Array) -> bool:
    return x.ndim >= 2 and x.shape[0] == x.shape[1] and bool(np.array_equal(np.swapaxes(x, 0, 1), y))


def compare_batches(a: Capture, b: Capture) -> Stage:
    """P2: samples, labels, random streams and pixels of every batch."""
    left, right = ({r.key.removeprefix("P2/"): {**_EARLIER, **r.facts} for r in c.stage("P2")} for c in (a, b))
    rows = [_batch_row(key, left.get(key), right.get(key), left) for key in union(left, right)]
    images = sum(len(facts["labels"]) for facts in left.values())
    served = bool(a.manifest["planned"] or b.manifest["planned"])
    return counted("P2", rows, {"batches": len(left), "images": images, "served": served})


def _batch_row(
    key: str, x: Mapping[str, Any] | None, y: Mapping[str, Any] | None, reference: Mapping[str, Mapping[str, Any]]
) -> Row:
    """Compare the facts of one batch, and explain what differs; `reference` holds all batches of the reference."""
    if x is None or y is None:
        return Row(kind="batch", path=key, error=math.inf, passed=False, missing=absent_side(x, y))
    differing = tuple(name for name in x if x[name] != y.get(name))
    if not differing:
        return Row(kind="batch", path=key, error=0.0, passed=True)
    return Row(
        kind="batch", path=key, error=math.inf, passed=False, differing=differing, **_cause(differing, x, y, reference)
    )


def _cause(
    differing: tuple[str, ...],
    x: Mapping[str, Any],
    y: Mapping[str, Any],
    reference: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the facts of a `Row` that explain why a batch differs."""
    if "indices" in differing:
        ours, theirs = set(x["indices"]), set(y["indices"])
        if sorted(x["indices"]) == sorted(y["indices"]):
            return {"cause": "reordered"}
        if theirs < ours:
            return {"cause": "dropped", "samples": tuple(sorted(ours - theirs))}
        twin = next((key for key, facts in reference.items() if facts["indices"] == y["indices"]), None)
        return {"cause": "another batch", "twin": twin} if twin else {"cause": "another stream"}
    if "labels" in differing:
        pairs = zip(x["indices"], x["labels"], y["labels"], strict=False)
        samples = tuple(index for index, label, other in pairs if label != other)
        return {"cause": "label", "samples": samples[:1]} if samples else {"cause": "label count"}
    return {"cause": "content"}


def union(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """Return the names of both sides: the reference's in their order, then what only the candidate has."""
    return [*left, *(name for name in right if name not in left)]


def absent_side(x: Any, y: Any) -> Side:
    """Return the side whose value is None."""
    return "candidate" if y is None else "reference"


def counted(id: str, rows: list[Row], facts: Mapping[str, Any]) -> Stage:
    """Make a stage of rows that must be equal in every bit: its figure is the number of those that are not."""
    if not rows:
        return Stage(id, math.inf, None, False)
    failed = sum(not row.passed for row in rows)
    return Stage(id, float(failed), None, not failed, tuple(rows), facts)


def measured(id: str, limit: float, rows: list[Row], facts: Mapping[str, Any] | None = None) -> Stage:
    """Make a stage of rows that each have a distance: its figure is the largest."""
    if not rows:
        return Stage(id, math.inf, limit, False)
    return Stage(id, max(row.error for row in rows), limit, all(row.passed for row in rows), tuple(rows), facts or {})
