"""The sentence that says where two captures first differ and what that means, made from the facts of a `Difference`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from tlx.proof.result import Alone, Between, Difference, Outside, Row, Stage
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
    if row.kind == "size":
        return f"At {row.size} px the candidate cannot run, and the reference can: {row.stopped.rstrip('.')}."
    if row.kind == "loss":
        return f"Every module's output is equal and the loss is not ({note(row)}): the loss function differs."
    if row.kind == "correct":
        return f"Outputs and loss are equal and the count of correct predictions is not ({note(row)})."
    lead = f"{_symptom(difference.stage, row)} ({name(row)}: {_error(row)})"
    replay = difference.replay
    if replay is None:
        return lead + "."
    if isinstance(replay, Outside):
        return f"{lead}: {_outside(replay)}."
    if isinstance(replay, Between):
        return f"{lead}: {_between(replay)}."
    return f"{lead}. {_alone(replay)}"


def _error(row: Row) -> str:
    return f"{row.error:.1e}" if math.isfinite(row.error) or not note(row) else note(row)


def _symptom(stage: Stage, row: Row) -> str:
    evaluating = stage.id == "P3"
    if row.kind == "gradient":
        return "Outputs and loss are equal and gradients are not: the backward pass differs"
    if row.kind == "buffer":
        return "Outputs and loss are equal and running statistics are not"
    whose = "the logits" if row.kind == "logits" else f"that of {row.path}"
    return f"{'In eval mode the' if evaluating else 'The'} first output that differs is {whose}"


def _alone(alone: Alone) -> str:
    reference, candidate = alone.classes
    kind = reference if reference == candidate else f"{reference}, in the candidate {candidate}"
    words = f"{alone.path or 'The whole model'} ({kind})"
    if alone.calls > 1:
        words += f", in call {alone.call} of {alone.calls},"
    given = f"gives another {alone.quantity} ({alone.error:.1e})"
    if alone.replay == "different":
        words = f"Replayed alone, {words.rstrip(',')}, fed the reference's own input, {given}"
    elif alone.replay == "equal":
        words += f" {given} from an equal input, and is equal when it is replayed alone: its mode or state differs"
    else:
        words += f" {given} from an equal input; it was not replayed{f': {alone.why}' if alone.why else ''}"
    others = {0: "", 1: "; so does another module"}
    if alone.replay == "different":
        others[0] = "; every other module by itself is equal"
    words += others.get(alone.others, f"; so do {alone.others} other modules") + "."
    if alone.transposed:
        words += " With its square weight transposed it is equal: the weight is used transposed."
    return words


def _outside(outside: Outside) -> str:
    if outside.where == "input":
        return "what enters the model differs, as by resizing, the order of channels or normalisation"
    if outside.where == "logits":
        return "the model's own output is equal, so what is made of it afterwards differs"
    if outside.where == "loss gradient":
        return "already the gradient that enters the model from the loss differs"
    ours, theirs = outside.calls
    if ours != theirs:
        return f"{outside.path} is called {_times(ours)} in the reference, {_times(theirs)} in the candidate"
    return f"replayed alone, {outside.path} is equal: what becomes of its statistics afterwards differs"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _between(between: Between) -> str:
    """Name the stretch, whose code it is, and the modules in it that were not compared."""
    own = between.within and between.path == between.within  # what the module around the stretch returns
    end = f"what {between.path} returns" if own else between.path or "the logits"
    if between.previous:
        words = f"the fault lies between {between.previous} and {end}"
    else:
        words = f"the fault lies in {between.path} itself" if own else f"the fault lies before {end}"
        if not between.path:
            words = "the fault lies in the model's own code, outside its modules"
    if between.within and (between.previous or not own):
        words += f", in the code of {between.within} itself"
    if between.swapped:
        words += f": the inputs of {between.path} are swapped"
    if between.including:
        words += f", or in {between.path}, which could not be judged by itself"
    modules = [", ".join(f"{path} ({kind})" for path, kind in side) for side in (between.reference, between.candidate)]
    if not any(modules):
        return words
    reference, candidate = (side or "functions without a module" for side in modules)
    return f"{words}: {reference} in the reference, {candidate} in the candidate"


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
