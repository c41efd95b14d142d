"""The sentence about the first difference where an engine outside tlx wrote a capture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from tlx.proof.result import Row, Stage
from tlx.proof.words import QUANTITIES, against, array, figure, name

SCALED = {
    "gradients": "each that differs is {factor:.6g} times the reference's, as by clipping or by the scale of the loss",
    "slots": "the optimizer's state is {factor:.6g} times the reference's",
    "values": "the update of all that differs is {factor:.6g} times the reference's, as by another rate",
    "average": "the average moves {factor:.6g} times as far",
}


def _size(stage: Stage, row: Row) -> str:
    """Say how far apart a row is."""
    return f"{figure(row.error)} times the reference's own scatter" if stage.facts["float32"] else f"{row.error:.1e}"


def _weights(stage: Stage, row: Row) -> str:
    if row.missing:
        return f"The weights differ: {row.path} is missing in the {row.missing}."
    return f"The weights differ after loading: {row.path} ({against(row) or figure(row.error)})."


def _outputs(stage: Stage, row: Row) -> str:
    """Name the output that differs first, and the last one before it that both captures hold and that is equal."""
    mode = "In eval mode" if stage.id == "P3" else "In training mode"
    if row.kind == "loss":
        words = f"Every recorded output is equal and the loss is not ({against(row, '.9g')}): the loss function differs"
        ours, theirs = row.values or (0.0, 0.0)
        times = theirs / ours if ours else 0.0
        whole = round(times) if 1.5 < times < 1e6 else 0
        return f"{words}; it is {whole} times the reference's." if abs(times - whole) < 1e-5 * times else f"{words}."
    if row.kind in ("gradient", "buffer"):
        which = "the gradients are not" if row.kind == "gradient" else "running statistics are not"
        words = f"What was recorded of the forward pass is equal and {which}: first {name(row)} ({_size(stage, row)})"
        back = [other.path for other in stage.rows[: stage.rows.index(row)] if other.kind == row.kind]
        return (
            f"{words}, going back from {back[-1]}, which is equal." if back and row.kind == "gradient" else f"{words}."
        )
    before = [other for other in stage.rows[: stage.rows.index(row)] if other.kind == "output"]
    lead = f"{mode} the first output that differs is {name(row) if row.kind == 'logits' else f'that of {row.path}'}"
    known = [number for number, other in enumerate(before) if not other.missing]
    equal = before[known[-1]].path if known else ""
    unknown = [other.path for other in before[known[-1] + 1 if known else 0 :] if other.missing == "candidate"]
    within = f"in {row.path}, or " if row.path else ""
    where = f"after {equal}, the last output before it that is equal" if equal else "in what enters it"
    words = f"{lead} ({_size(stage, row)}): the fault lies {within}{where}"
    return f"{words}; not recorded: {', '.join(unknown[:6])}." if unknown else f"{words}."


def _loop(stage: Stage, row: Row) -> str:
    lead = f"Equal until {name(row)}" if row.number else "The first step already differs"
    if row.events:
        lead += f", where {', '.join(row.events)}"
    return f"{lead}. First wrong: {_what(row)}."


def _what(row: Row) -> str:
    if row.quantity == "hyper":
        return f"the rate, {_rates(*(row.values or (0.0, 0.0)))}"
    if row.quantity == "loss":
        return f"the loss ({against(row, '.9g')}), before any update of this step"
    of = {"gradients": f"gradient of {row.path}", "average": f"average of {row.path}"}
    place = of.get(row.quantity or "", QUANTITIES.get(row.quantity or "", array(row)))
    size = "missing or not finite on one side" if math.isinf(row.error) else f"{row.error:.1e}"
    factor = (row.values or (1.0, 1.0))[1]
    scaled = SCALED[row.quantity].format(factor=factor) if row.values and row.quantity in SCALED else ""
    return f"{place} ({size}){f'; {scaled}' if scaled else ''}"


def _rates(reference: Any, candidate: Any) -> str:
    words = f"{reference} against {candidate}"
    if (
        isinstance(reference, float)
        and isinstance(candidate, float)
        and abs(reference - candidate) < abs(reference) * 1e-6
    ):
        return f"{reference!r} against {candidate!r}: one of them is rounded to float32, see float32_exact"
    return words


ENGINE: Mapping[str, Callable[[Stage, Row], str]] = {"P1": _weights, "P3": _outputs, "P4": _outputs, "P6": _loop}
