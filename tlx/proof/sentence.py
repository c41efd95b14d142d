"""The sentence that says where two captures first differ and what that means, made from the facts of a `Difference`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from tlx.proof.result import Alone, Between, Difference, Outside, Row, Stage
from tlx.proof.words import array, beside, farthest, name, note, stopped, summary, title


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
    if row.kind == "dropout":
        return _dropout(row)
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
    if row.clipped is not None:
        what = CLIPPED.get(row.cause or "", "neither by value, nor each group or array by itself, nor not at all")
        return (
            f"Updates from equal gradients are equal until gradients are clipped to a joint norm of {row.clipped:.4g}: "
            f"the clipping differs ({name(row)}: {row.error:.1e}); the {row.side}'s gradients are {what}."
        )
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


CLIPPED = {
    "clipped not at all": "not clipped at all",
    "clipped by value": "clipped by value",
    "clipped by group": "clipped by the norm of each group",
    "clipped by array": "clipped by the norm of each array",
}


def _departure(stage: Stage, row: Row) -> str:
    if row.kind == "locked":
        return _from_own_state(stage, row)
    number = stage.rows.index(row)
    if row.missing or row.kind == "end":
        return f"Equal until {name(row)}: {stopped(row).rstrip('.')}."
    if locked := [other for other in stage.rows if other.kind == "locked"]:
        lead = f"Each of {len(locked)} steps is equal where both start from the reference's own state"
        if row.number == 0:
            return (
                f"{lead}, and the first step of the run is not ({_wrong(row, ': ', '')}): what it begins with differs."
            )
        carried = "what differs is carried from step to step, or acts between those steps"
        return f"{lead}, and the free run departs at {name(row)}: {_wrong(row, ' (', ')')}; {carried}."
    if number == 0:
        return f"The first step already differs ({_wrong(row, ': ', '')}), though all of P1 to P5 is equal."
    words = f"Equal until {name(row)}" + (f", where {', '.join(row.events)}" if row.events else "")
    return f"{words}. First wrong: {_wrong(row, ' (', ')')}."


def _from_own_state(stage: Stage, row: Row) -> str:
    """Say which steps differ that both sides take from the same state, and which part of the step."""
    locked = [other for other in stage.rows if other.kind == "locked"]
    at = locked.index(row)
    if row.missing:
        return f"Started from the reference's own states, {stopped(row).rstrip('.')}."
    where = f", where {', '.join(to_blame)}," if (to_blame := _to_blame(locked, at)) else ""
    what = f"{_wrong(row, ' (', ')')}{_part(row, locked)}"
    words = f"From the reference's own state, step {row.number}{where} differs: {what}."
    wrong, right = ([str(r.number) for r in locked if r.passed is passed] for passed in (False, True))
    if not right:
        return f"{words} So does each other of {len(locked)} steps." if len(locked) > 1 else words
    others = f" So {'do steps' if len(wrong) > 2 else 'does step'} {_few(wrong[1:])}." if wrong[1:] else ""
    return f"{words}{others} Equal: {'steps' if len(right) > 1 else 'step'} {_few(right)}."


def _to_blame(locked: Sequence[Row], first: int) -> list[str]:
    """Return what happens at each wrong step and at no right one, if right ones lie on both sides of the first."""
    if not 0 < first < len(locked) - 1 or not locked[first + 1].passed:
        return []
    return [
        event for event in locked[first].events if all((event in other.events) is not other.passed for other in locked)
    ]


def _few(numbers: Sequence[str]) -> str:
    return ", ".join(numbers[:6]) + (f" and {len(numbers) - 6} more" if len(numbers) > 6 else "")


def _part(row: Row, locked: Sequence[Row]) -> str:
    """Name the part of a step that differs, of which all that comes before is equal."""
    if row.quantity == "gradients" and row.parts > 1 and not any(r.passed for r in locked if r.parts > 1):
        whole = "the loss is equal, as is the backward pass of a whole batch"
        return f"; {whole}: the weights of the {row.parts} micro-batches differ"
    if row.quantity == "values" and row.factor is not None:
        times = f"{row.factor:.4g} times the reference's"
        return f"; the optimizer's state is equal, and the update is {times}: its rate differs"
    return {
        "gradients": "; the loss is equal: the backward pass differs, or what a step leaves behind for the next",
        "slots": "; loss and gradients are equal: the update differs",
        "values": "; loss, gradients and the optimizer's state are equal: the update differs",
        "average": "; the weights are equal: the moving average differs",
    }.get(row.quantity or "", "")


def _wrong(row: Row, before: str, after: str) -> str:
    """Name what is farthest apart at a step, and how far, or why that is no number."""
    if math.isfinite(row.error):
        apart = f"{row.error:.1e}" if row.scatter is None else beside(row)
        return f"{farthest(row)}{before}{apart}{after}"
    if row.quantity in ("gradients", "values", "slots", "average"):
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
