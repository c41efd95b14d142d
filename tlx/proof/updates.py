"""P5: the optimizer's updates from drawn gradients, beside the update rules in NumPy float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tlx import rng
from tlx.backend import Array, Hyper, OptimizerSpec
from tlx.backend.optimizers import RULES
from tlx.conformance.reference import clip_by_norm
from tlx.errors import TlxError
from tlx.proof.artifact import Capture
from tlx.proof.inputs import measured
from tlx.proof.measure import distances, sketch, unbundle
from tlx.proof.result import SIDES, Cause, Row, Side, Stage

LIMIT = 1e-12
# Five updates: whether only the last group trains, the factor of the rates, and the norm that gradients are clipped to,
# which is also below most of their elements, so that clipping by value is another thing than not to clip.
SCRIPT = ((True, 1.0, None), (False, 1.0, None), (False, 0.5, None), (True, 0.5, None), (False, 0.5, 2.0**-8))


def compare_updates(a: Capture, b: Capture) -> Stage:
    """P5: both sides beside NumPy after each of the updates from the same gradients."""
    rows = [row for side, c in zip(SIDES, (a, b), strict=True) for row in _rows(c, side)]
    optimizer = a.records["P5/script"].facts["optimizer"]
    return measured("P5", LIMIT, rows, {"optimizer": optimizer, "updates": len(a.stage("P5/update"))})


def _rows(c: Capture, side: Side) -> list[Row]:
    rows = [_row(side, *found) for found in update_errors(c)]
    wrong = next((i for i, row in enumerate(rows) if not row.passed), None)
    if wrong is not None and rows[wrong].clipped is not None:
        rows[wrong] = replace(rows[wrong], cause=_clipped_as(c))
    return rows


def _row(side: Side, number: int, name: str, slot: str, error: float, max_norm: float | None) -> Row:
    passed = error <= LIMIT
    return Row(
        kind="update", path=name, slot=slot, error=error, passed=passed, side=side, number=number + 1, clipped=max_norm
    )


Clip = Callable[[Mapping[str, Array], float, Sequence[Sequence[str]]], Mapping[str, Array]]


def _by_norm(gradients: Mapping[str, Array], max_norm: float, groups: Sequence[Sequence[str]]) -> Mapping[str, Array]:
    return clip_by_norm(gradients, max_norm)


def _not(gradients: Mapping[str, Array], max_norm: float, groups: Sequence[Sequence[str]]) -> Mapping[str, Array]:
    return gradients


def _by_value(gradients: Mapping[str, Array], max_norm: float, groups: Sequence[Sequence[str]]) -> Mapping[str, Array]:
    return {name: np.clip(g, -max_norm, max_norm) for name, g in gradients.items()}


def _by_group(gradients: Mapping[str, Array], max_norm: float, groups: Sequence[Sequence[str]]) -> Mapping[str, Array]:
    parts = ({name: gradients[name] for name in group if name in gradients} for group in groups)
    return {name: g for part in parts for name, g in clip_by_norm(part, max_norm).items()}


def _by_array(gradients: Mapping[str, Array], max_norm: float, groups: Sequence[Sequence[str]]) -> Mapping[str, Array]:
    return _by_group(gradients, max_norm, [[name] for name in gradients])


# What people do instead of clipping the joint norm.
MISTAKES: Mapping[Cause, Clip] = {
    "clipped not at all": _not,
    "clipped by value": _by_value,
    "clipped by group": _by_group,
    "clipped by array": _by_array,
}


def _clipped_as(c: Capture) -> Cause | None:
    """Return which mistake gives what a side's update gave; None where none of those that are known does."""
    for cause, clip in MISTAKES.items():
        if all(error <= LIMIT for *_, error, _ in update_errors(c, clip)):
            return cause
    return None


def drawn_gradient(name: str, update: int, shape: tuple[int, ...]) -> Array:
    """Draw a float64 gradient of size about 1e-2 that float32 holds exactly: the same on every backend."""
    drawn: Array = (2 * rng.uniform(update, f"parity/gradient/{name}", shape) - 1).astype(np.float32)
    return drawn.astype(np.float64) * 2.0**-6


def update_errors(c: Capture, clip: Clip = _by_norm) -> Iterator[tuple[int, str, str, float, float | None]]:
    """Yield of each update: its number from 0, a parameter or buffer, its slot or "", the distance, and the clip norm.

    `clip` is how gradients are clipped.
    """
    values: dict[str, Array] = {n: a.astype("float64") for n, a in c.records["P1"].arrays().items()}
    script = c.records["P5/script"].facts
    state: dict[str, dict[str, Array]] = {}
    for number, record in enumerate(c.stage("P5/update")):
        trains = set(record.facts["trains"])
        names_known = all(name in values for names in script["groups"] for name in names)
        if not names_known or len(record.facts["hyper"]) != len(script["groups"]):
            problem = f"{c.folder}: the groups of P5/script do not fit its weights or {record.key}"
            raise TlxError(problem, fix="capture anew")
        gradients: Mapping[str, Array] = {
            name: drawn_gradient(name, number, values[name].shape)
            for names in script["groups"]
            for name in names
            if name in trains
        }
        if (max_norm := record.facts.get("max_norm")) is not None:
            gradients = clip(gradients, max_norm, script["groups"])
        for names, (lr, decay) in zip(script["groups"], record.facts["hyper"], strict=True):
            for name in names:
                if name in gradients:
                    old = state.get(name, {})
                    values[name], state[name] = step(script, values[name], gradients[name], old, lr, decay)
        for kind, arrays in (("values", values), ("slots", flat(state))):
            actual = unbundle(record.facts[kind], record.array(kind))
            expected = {name: (array.shape, sketch(array)) for name, array in arrays.items()}
            for key, error in distances(expected, actual).items():
                parameter, slot = split_slot(key) if kind == "slots" else (key, "")
                yield number, parameter, slot, error, max_norm


def step(
    script: Any, p: Array, g: Array, slots: dict[str, Array], lr: float, weight_decay: float
) -> tuple[Array, dict[str, Array]]:
    """Take one step of a capture's optimizer by the rule in NumPy; returns the new parameter and the new slots."""
    name = script["optimizer"]
    if name not in RULES:
        raise TlxError(f"tlx.backend.optimizers has no update rule for {name!r}, so P5 cannot be judged")
    # A scalar that the capture does not record, or records as null, has the spec's default.
    scalars = {scalar: script[scalar] for scalar in RULES[name].scalars if script.get(scalar) is not None}
    if "betas" in scalars:
        scalars["betas"] = tuple(scalars["betas"])
    return RULES[name](OptimizerSpec(name, **scalars), p, g, slots, Hyper(lr, weight_decay))


def flat(state: dict[str, dict[str, Array]]) -> dict[str, Array]:
    """Name the arrays of an optimizer's state as a backend's `dump_optimizer` does: "parameter/slot"."""
    return {f"{name}/{slot}": array for name, slots in state.items() for slot, array in slots.items()}


def split_slot(key: str) -> tuple[str, str]:
    """Return the parameter and the slot of a key of `dump_optimizer`."""
    parameter, _, slot = key.rpartition("/")
    return parameter, slot
