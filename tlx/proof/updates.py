"""P5: the optimizer's updates from drawn gradients, beside the update rules in NumPy float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tlx import rng
from tlx.backend import Array, Hyper, OptimizerSpec
from tlx.backend.optimizers import RULES
from tlx.errors import TlxError
from tlx.proof.artifact import Capture
from tlx.proof.inputs import measured
from tlx.proof.measure import distances, sketch, unbundle
from tlx.proof.result import SIDES, Row, Stage

LIMIT = 1e-12
# Four updates: whether only the last group trains, and the factor of the rates.
SCRIPT = ((True, 1.0), (False, 1.0), (False, 0.5), (True, 0.5))


def compare_updates(a: Capture, b: Capture) -> Stage:
    """P5: both sides beside NumPy after each of four updates from the same gradients."""
    rows = [
        Row(kind="update", path=name, slot=slot, error=error, passed=error <= LIMIT, side=side, number=number + 1)
        for side, c in zip(SIDES, (a, b), strict=True)
        for number, name, slot, error in update_errors(c)
    ]
    optimizer = a.records["P5/script"].facts["optimizer"]
    return measured("P5", LIMIT, rows, {"optimizer": optimizer, "updates": len(a.stage("P5/update"))})


def drawn_gradient(name: str, update: int, shape: tuple[int, ...]) -> Array:
    """Draw a float64 gradient of size about 1e-2 that float32 holds exactly: the same on every backend."""
    drawn: Array = (2 * rng.uniform(update, f"parity/gradient/{name}", shape) - 1).astype(np.float32)
    return drawn.astype(np.float64) * 2.0**-6


def update_errors(c: Capture) -> Iterator[tuple[int, str, str, float]]:
    """Yield the number of each update from 0, a parameter or buffer, its optimizer slot or "", and the distance."""
    values: dict[str, Array] = {n: a.astype("float64") for n, a in c.records["P1"].arrays().items()}
    script = c.records["P5/script"].facts
    state: dict[str, dict[str, Array]] = {}
    for number, record in enumerate(c.stage("P5/update")):
        trains = set(record.facts["trains"])
        names_known = all(name in values for names in script["groups"] for name in names)
        if not names_known or len(record.facts["hyper"]) != len(script["groups"]):
            problem = f"{c.folder}: the groups of P5/script do not fit its weights or {record.key}"
            raise TlxError(problem, fix="capture anew")
        for names, (lr, decay) in zip(script["groups"], record.facts["hyper"], strict=True):
            for name in names:
                if name in trains:
                    g = drawn_gradient(name, number, values[name].shape)
                    values[name], state[name] = step(script, values[name], g, state.get(name, {}), lr, decay)
        for kind, arrays in (("values", values), ("slots", flat(state))):
            actual = unbundle(record.facts[kind], record.array(kind))
            expected = {name: (array.shape, sketch(array)) for name, array in arrays.items()}
            for key, error in distances(expected, actual).items():
                parameter, slot = split_slot(key) if kind == "slots" else (key, "")
                yield number, parameter, slot, error


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
