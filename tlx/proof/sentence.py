"""The sentence that says where two captures first differ and what that means, made from the facts of a `Difference`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from tlx.proof.result import Alone, Between, Difference, Row, Stage
from tlx.proof.words import array, farthest, name, note, stopped, summary, title


def first_difference(difference: Difference | None) -> str:
    """Say where the first difference lies and what it means; empty where there is none."""
    if difference is None:
        return ""
    stage, row = difference.stage, difference.row
    if row is None:
        return f"{stage.id}, {title(stage)}: {summary(stage)}."
    return FIRST.get(stage.id, _plain)(difference, row)


LEADS = {
    "P1": "The weights differ after loading",
    "P2": "The backends are fed different data",
    "P7": "The metrics differ",
    "P9": "The float32 loss curves differ",
}


def _plain(difference: Difference, row: Row) -> str:
    return f"{LEADS[difference.stage.id]}: {name(row)}{f' ({note(row)})' if note(row) else ''}."


def _module(difference: Difference, row: Row) -> str:
    """Name the module that differs by itself, or the stretch between two that do not."""
    if row.kind == "dropout":
        return _dropout(row)
    if row.kind == "loss":
        return f"Every module's output is equal and the loss is not ({note(row)}): the loss function differs."
    if row.kind == "correct":
        return f"Outputs and loss are equal and the count of correct predictions is not ({note(row)})."
    lead = f"{_symptom(difference.stage, row)} ({name(row)}: {row.error:.1e})"
    one_sided = [name(other) for other in difference.stage.rows if other.kind == "output" and other.missing]
    if one_sided:
        lead += f"; {', '.join(one_sided)} cannot be compared, being a module on one side only"
    if difference.replay is None:
        return lead + "."
    if isinstance(difference.replay, Alone):
        return f"{lead}. Replayed alone, {_alone(difference.replay)}"
    between = _between(difference.replay, row)
    return f"{lead}. Replayed alone, every module that owns parameters is equal: {between}."


def _dropout(row: Row) -> str:
    where = row.path or "its outermost code"
    ours, theirs = row.values or ("", "")
    if row.missing is None:
        return f"In training {where} drops {ours} in the reference and {theirs} in the candidate."
    other = "reference" if row.missing == "candidate" else "candidate"
    return f"In training {where} drops {ours} in the {other}; the {row.missing} has no dropout that fits."


def _symptom(stage: Stage, row: Row) -> str:
    evaluating = stage.id == "P3"
    if row.kind == "gradient":
        return "Outputs and loss are equal and gradients are not: the backward pass differs"
    if row.kind == "buffer":
        return "Outputs and loss are equal and running statistics are not"
    if row.kind == "order":
        return f"{'In eval mode the' if evaluating else 'The'} modules run in another order"
    whose = "the logits" if row.kind == "logits" else f"that of {row.path}"
    return f"{'In eval mode the' if evaluating else 'The'} first output that differs is {whose}"


def _alone(alone: Alone) -> str:
    reference, candidate = alone.classes
    kind = reference if reference == candidate else f"{reference}, in the candidate {candidate}"
    words = f"{alone.path} ({kind}), fed the reference's own input, gives another {alone.quantity} ({alone.error:.1e})"
    others = {0: "every other module by itself is equal", 1: "so does another module"}
    words += f"; {others.get(alone.others, f'so do {alone.others} other modules')}."
    if alone.transposed:
        words += " With its square weight transposed it is equal: the weight is used transposed."
    return words


def _between(between: Between, row: Row) -> str:
    if between.input_equal:
        return f"what becomes of its {'statistics' if row.kind == 'buffer' else 'result'} afterwards differs"
    if not between.previous:
        return "what enters the model differs, as by resizing, the order of channels or normalisation"
    reference, candidate = (
        ", ".join(f"{path} ({kind})" for path, kind in modules) or "functions without a module"
        for modules in (between.reference, between.candidate)
    )
    where = f"between {between.previous} and {between.path or 'the logits'}, where no parameter is"
    if reference == candidate:
        return f"the fault lies {where}: {reference}"
    return f"the fault lies {where}: {reference} in the reference, {candidate} in the candidate"


def _update(difference: Difference, row: Row) -> str:
    wrong = [
        other
        for other in difference.stage.rows
        if not other.passed and (other.side, other.number) == (row.side, row.number)
    ]
    slots = sorted({other.slot for other in wrong if other.slot})
    what = f"optimizer slot {', '.join(slots)}" if slots else "the update of the values"
    arrays = len({array(other) for other in wrong})
    return (
        f"From equal gradients the optimizer departs from the NumPy formula: {name(row)} ({row.error:.1e}); "
        f"wrong after that update: {arrays} {'array' if arrays == 1 else 'arrays'}, {what}."
    )


def _trajectory(difference: Difference, row: Row) -> str:
    last = difference.stage.rows[-1]
    words = _departure(difference.stage, row)
    return words if last is row or not last.stopped else f"{words} Then {stopped(last).rstrip('.')}."


def _departure(stage: Stage, row: Row) -> str:
    number = stage.rows.index(row)
    if row.missing or row.kind == "end":
        return f"Equal until {name(row)}: {stopped(row).rstrip('.')}."
    if number == 0:
        return f"The first step already differs ({_wrong(row, ': ', '')}), though all of P1 to P5 is equal."
    words = f"Equal until {name(row)}"
    before = stage.rows[number - 1]
    if row.events:
        words += f", where {', '.join(row.events)}"
    elif before.events:
        words += f", just after {name(before)}, where {', '.join(before.events)}"
    return f"{words}. First wrong: {_wrong(row, ' (', ')')}."


def _wrong(row: Row, before: str, after: str) -> str:
    """Name what is farthest apart at a step, and how far, or why that is no number."""
    if math.isfinite(row.error):
        return f"{farthest(row)}{before}{row.error:.1e}{after}"
    if row.quantity in ("values", "slots"):
        return f"{farthest(row)}{before}missing or not finite on one side{after}"
    return farthest(row)


def _rounding(difference: Difference, row: Row) -> str:
    return f"One float32 step differs by more than rounding: {name(row)} is {row.error:.1e} ({note(row)})."


FIRST: Mapping[str, Callable[[Difference, Row], str]] = {
    "P0": lambda difference, row: f"Not comparable: {summary(difference.stage)}",
    "P3": _module,
    "P4": _module,
    "P5": _update,
    "P6": _trajectory,
    "P8": _rounding,
    "P10": lambda difference, row: "The final accuracies differ by more than the margin.",
}
