"""The update rules in NumPy float64 beside what a stack made of the same gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tlx.backend import Array
from tlx.conformance import reference as oracle
from tlx.errors import TlxError
from tlx.proof.artifact import Capture
from tlx.proof.measure import distances, sketch, unbundle


def update_errors(c: Capture) -> Iterator[tuple[int, str, float]]:
    """Yield update, name (of a parameter, buffer or "parameter/slot") and distance to the oracle."""
    from tlx.proof.capture import drawn_gradient

    values: dict[str, Array] = {n: a.astype("float64") for n, a in c.records["P1"].arrays().items()}
    script = c.records["P5/script"].facts
    state: dict[str, dict[str, Array]] = {}
    for number, record in enumerate(c.stage("P5/update")):
        trains = set(record.facts["trains"])
        for names, (lr, decay) in zip(script["groups"], record.facts["hyper"], strict=True):
            for name in names:
                if name in trains:
                    g = drawn_gradient(name, number, values[name].shape)
                    values[name], state[name] = step(script, values[name], g, state.get(name, {}), lr, decay)
        for kind, expected in (("values", values), ("slots", flat(state))):
            numbers = record.array(kind)
            assert numbers is not None
            found = unbundle(record.facts[kind], numbers)
            wanted = {name: (array.shape, sketch(array)) for name, array in expected.items()}
            for name, error in distances(wanted, found).items():
                yield number, name, error


def step(
    script: Any, p: Array, g: Array, state: dict[str, Array], lr: float, weight_decay: float
) -> tuple[Array, dict[str, Array]]:
    name = script["optimizer"]
    if name == "sgd":
        return oracle.sgd_step(p, g, state, lr=lr, weight_decay=weight_decay, momentum=script["momentum"])
    rule = getattr(oracle, f"{name}_step", None)
    if rule is None:
        raise TlxError(f"tlx.conformance.reference has no update rule for {name!r}, so P5 cannot be judged")
    if name == "rmsprop":
        options = {k: script[k] for k in ("alpha", "momentum", "eps") if script[k] is not None}
    else:
        options = {"betas": tuple(script["betas"]), "eps": script["eps"]}
    made: tuple[Array, dict[str, Array]] = rule(p, g, state, lr=lr, weight_decay=weight_decay, **options)
    return made


def flat(state: dict[str, dict[str, Array]]) -> dict[str, Array]:
    return {f"{name}/{slot}": array for name, slots in state.items() for slot, array in slots.items()}
