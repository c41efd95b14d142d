"""The words of a comparison: every sentence, title and note, made from the facts of `tlx.proof.result`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from tlx.proof.result import Row, Stage, Verdict

TITLES = {
    "P0": "manifest",
    "P1": "weights",
    "P2": "data",
    "P3": "forward in eval mode",
    "P4": "forward and backward",
    "P5": "update, against NumPy",
    "P6": "trajectory",
    "P7": "metrics",
    "P8": "one float32 step",
    "P9": "float32 loss curve",
    "P10": "final accuracy",
}
MEASURES = {
    "P0": "differing facts",
    "P1": "differing arrays",
    "P2": "differing batches",
    "P3": "relative L2",
    "P4": "relative L2",
    "P5": "relative L2",
    "P6": "relative L2",
    "P7": "differing counts",
    "P8": "d32 / own scatter",
    "P9": "relative loss",
    "P10": "margin shown",
}
VERDICTS = {
    Verdict.EQUAL: "every stage that ran is within its limit",
    Verdict.DIFFERENT: "the two do not compute the same",
    Verdict.NOT_COMPARABLE: "the two were not asked for the same",
    Verdict.UNDERPOWERED: "too little was run to show equality or a difference",
}
# Known differences between the backends, and what tlx does about each.
DECLARED = (
    "scalars such as rates and momentum are float32-exact, as OneFlow rounds them",
    "BatchNorm in training: OneFlow sums in float32, so there tlx uses float64",
    "gradients are None between steps, as OneFlow's zeros would move frozen arrays",
    "Adam, AdamW, RMSprop: OneFlow's own differ, so tlx writes them in tensors",
    "order, augmentation, first values, dropout masks: drawn by the core alone",
    "dampening is 0 and BatchNorm's momentum never None, as the backends differ",
)
QUANTITIES = {
    **{"loss": "loss", "correct": "correct count", "hyper": "rates and decays"},
    **{"scales": "weights of the micro-batches", "max_norm": "norm that gradients are clipped to"},
}


def title(stage: Stage) -> str:
    """Name what a stage compares."""
    return TITLES[stage.id]


def measure(stage: Stage) -> str:
    """Name what a stage's figure is."""
    if stage.facts.get("float32"):
        return "error / own scatter"
    if stage.id == "P6" and stage.facts.get("scatter", False):
        return "x own scatter" if stage.enough else "steps"
    counts_steps = stage.id == "P6" and not stage.enough and "random" not in stage.facts
    return "steps" if counts_steps else MEASURES[stage.id]


def figure(value: float | None) -> str:
    """Write an error in two digits."""
    if value is None:
        return "-"
    if value and not 0.01 <= abs(value) < 1000 and math.isfinite(value):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.2g}" if abs(value) < 100 or not math.isfinite(value) else f"{value:.0f}"


def limit(stage: Stage) -> str:
    """Write what a stage's figure is compared with."""
    if stage.limit is not None:
        return f"{stage.limit:g}".replace("e-0", "e-")
    return "-" if stage.passed is None else "exact"


def outcome(stage: Stage) -> str:
    """Name a stage's result by a word, so that nothing depends on its colour."""
    if not stage.enough:
        return "underpowered"
    if stage.passed is None:
        return "not run" if stage.figure is None else "advisory"
    return "pass" if stage.passed else "FAIL"


def array(row: Row) -> str:
    """Name the array that a row is about: a parameter, a buffer, or "parameter/slot" of the optimizer."""
    return f"{row.path}/{row.slot}" if row.slot else row.path


def name(row: Row) -> str:
    """Name the place that a row measures."""
    words = NAMES[row.kind](row) if row.kind in NAMES else row.path
    return words if row.size is None or row.kind == "size" else f"{words} at {row.size} px"


NAMES: Mapping[str, Callable[[Row], str]] = {
    "listing": lambda row: "order and roles",
    "size": lambda row: f"images of {row.size} px",
    "logits": lambda row: "logits",
    "loss": lambda row: "loss",
    "correct": lambda row: "correct count",
    "buffer": lambda row: f"buffer {row.path}",
    "gradient": lambda row: f"gradient {row.path}",
    "dropout": lambda row: f"dropout {row.path}".strip(),
    "update": lambda row: f"{row.side}, update {row.number}{' (clipped)' * (row.clipped is not None)}: {array(row)}",
    "locked": lambda row: f"step {row.number} from the reference's own state",
    "step": lambda row: f"step {row.number}",
    "end": lambda row: "end",
    "count": lambda row: f"batch {row.number}: count of the {row.side}",
    "predictions": lambda row: f"batch {row.number}: predictions",
    "batches": lambda row: "batches",
    "envelope": lambda row: f"{row.path}: d32 over the envelope",
    "ratio": lambda row: f"{row.path}: G = d32 / d64",
    "pair": lambda row: f"pair {row.number}",
    "mean": lambda row: "mean difference",
    "margin if equal": lambda row: "smallest margin, had the means been equal",
    "margin": lambda row: "smallest margin that could be shown",
}


def note(row: Row) -> str:
    """Say what else is known about a row; empty where that is nothing."""
    if row.kind in ("step", "locked"):
        return _step_note(row)
    if row.kind == "size":
        return f"the {row.missing} cannot run: {row.stopped}"
    if row.missing:
        return "run as a module on one side only" if row.kind == "output" else f"missing in the {row.missing}"
    return NOTES[row.kind](row) if row.kind in NOTES else ""


def against(row: Row, form: str = "") -> str:
    """Set the reference's value beside the candidate's."""
    return " against ".join(format(value, form) for value in row.values or ())


def _weight(row: Row) -> str:
    return "transposed" if row.cause == "transposed" else against(row)


def _batch(row: Row) -> str:
    if row.passed:
        return ""
    samples = ", ".join(map(str, row.samples))
    causes = {
        "reordered": "the same samples in another order",
        "dropped": f"without sample {samples}",
        "another batch": f"the samples of the reference's {row.twin}",
        "another stream": "other samples, as from another random stream",
        "label": f"the label of sample {samples}",
        "label count": "the number of labels",
    }
    return causes.get(row.cause or "", ", ".join(row.differing))


OUTPUTS = {
    "made up for": "shared out otherwise within a module whose output is equal",
    "laid out": "the same numbers in another order of axes",
    "shape": "another shape",
    "not finite": "not finite",
    "empty": "empty",
}


def _output(row: Row) -> str:
    flips = f"{row.flips} signs flipped" if row.flips else ""
    return "; ".join(filter(None, (OUTPUTS.get(row.cause or "", ""), flips)))


def _step_note(row: Row) -> str:
    parts = [f"boundary: {', '.join(row.events)}"] if row.events else []
    if row.missing:
        parts.append(stopped(row))
    elif row.band is not None:
        parts.append(f"band {row.band:.1e}")
    elif row.silent:
        parts.append(f"shows nothing: the reference's own runs are {row.scatter or 0.0:.1e} apart")
    elif not row.passed:
        parts.append(farthest(row))
    if row.scatter is not None and row.apart is not None and not row.silent:
        parts.append(beside(row))
    return "; ".join(parts)


def farthest(row: Row) -> str:
    """Name what is farthest apart at a step."""
    whose = {"gradients": "gradient ", "average": "moving average of "}.get(row.quantity or "", "")
    return QUANTITIES.get(row.quantity or "", f"{whose}{array(row)}")


def beside(row: Row) -> str:
    """Set the distance at a step beside the reference's own scatter."""
    return f"{row.apart or 0.0:.1e} apart, the reference from itself {row.scatter or 0.0:.1e}"


def stopped(row: Row) -> str:
    """Say which side stopped, before which step, and why."""
    why = f": {row.stopped}" if row.stopped else ""
    return f"the {row.missing} stopped before {name(row)}{why}" if row.missing else f"the {row.side} stopped{why}"


def _predictions(row: Row) -> str:
    pairs = zip(row.samples, row.margins, strict=True)
    return ", ".join(f"sample {sample}: margin {margin:.1e}" for sample, margin in pairs)


def _scatter(row: Row) -> str:
    d = row.distances
    if d is None:
        return ""
    words = f"d32 {d.d32:.1e}, d64 {d.d64:.1e}, the reference's own scatter {d.scatter:.1e}"
    return f"{words}, {d.outside} of {d.batches} batches outside" if d.outside else words


def _change(row: Row, form: str) -> str:
    reference, candidate = row.values or (0.0, 0.0)
    return format(candidate - reference, form)


NOTES: Mapping[str, Callable[[Row], str]] = {
    "field": lambda row: against(row),
    "weight": _weight,
    "listing": lambda row: "the backends list their parameters differently",
    "batch": _batch,
    "output": lambda row: _output(row),
    "logits": lambda row: OUTPUTS.get(row.cause or "", ""),
    "loss": lambda row: against(row, ".12g"),
    "correct": lambda row: "" if row.passed else against(row),
    "dropout": lambda row: "" if row.passed else against(row),
    "end": stopped,
    "predictions": _predictions,
    "batches": lambda row: against(row),
    "envelope": _scatter,
    "ratio": _scatter,
    "pair": lambda row: _change(row, "+.4f"),
    "mean": lambda row: _change(row, "+.5f"),
}


def summary(stage: Stage) -> str:
    """Say in one line what a stage compared, or why it was not run; empty where its rows say it all."""
    if stage.figure is None:
        return WHY_NOT.get(stage.facts.get("why", ""), "") or NOT_RUN.get(stage.id, "")
    if "random" in stage.facts:
        return f"random by itself, so no difference counts: {stage.facts['random']}"
    if not stage.rows and stage.id != "P0":
        return "nothing to compare"
    return SUMMARIES[stage.id](stage)


WHY_NOT = {
    "reference only": "only the reference has it",
    "candidate only": "only the candidate has it",
    "nothing shared": "both captures have the stage, but nothing in it under one name",
    "no scatter": "float32 needs the reference's own scatter, which its capture does not hold: capture it anew",
    "float32 loop": "rounding moves a float32 loop too far, unless both are float32 and the reference has nudged steps",
}
NOT_RUN = {
    "P2": "the batches are your own, and were given to both",
    "P7": "your own batches have no labels that the core knows",
    "P8": "not run on batches of your own",
    "P9": "left out by --quick and by batch=; it is no gate",
    "P10": "--seeds 5 or more trains whole runs for it",
}


def _manifest(stage: Stage) -> str:
    differing = "; ".join(f"{name(row)}: {note(row)}" for row in stage.rows[:3])
    return differing or "; ".join(filter(None, (f"{stage.facts['equal']} facts are equal", unplayed(stage))))


def unplayed(stage: Stage) -> str:
    """Say which parts of the recipe nothing was run for; empty where everything was."""
    names = stage.facts.get("not_run", ())
    return f"of the recipe, not run: {', '.join(names)}" if names else ""


def _data(stage: Stage) -> str:
    words = f"{stage.facts['batches']} batches, {stage.facts['images']} images"
    return words + ("; the batches of one capture were served to the other" if stage.facts["served"] else "")


def _sizes(stage: Stage) -> str:
    """List the image sizes that a pass was run at, and why it was not run at another one."""
    sizes, error = stage.facts.get("sizes", ()), stage.facts.get("one_size", "")
    words = f"; at {' and '.join(map(str, sizes))} px" if sizes else ""
    if error:
        words += f"; the reference takes one size only ({error})"
    elif stage.facts.get("not_run"):
        words += f"; at {' and '.join(map(str, stage.facts['not_run']))} px not run in the candidate"
    return words


def _steps(stage: Stage) -> str:
    facts, free = stage.facts, [row for row in stage.rows if row.kind == "step"]
    if not stage.enough and facts.get("why") == "stopped":
        return f"both stopped before step {facts['steps']}: {facts['stopped']}"
    if not stage.enough and facts.get("why") == "silent":
        alone = "no step was taken from the reference's own state, so capture the candidate with --reference"
        return f"{_silence(facts)}, and {alone}"
    if not stage.enough and facts.get("lost") is not None:
        return f"from step {facts['lost']} on the reference's own scatter hides all"
    if not stage.enough:
        return f"only {facts['steps']} of {facts['needed']} steps: more training images are needed"
    words = f"{facts['steps']} steps, {sum(bool(row.events) for row in free)} of them at a boundary"
    return "; ".join(filter(None, (words, strength(stage))))


def strength(stage: Stage) -> str:
    """Say how strong a trajectory is as a proof, and what would make it stronger; empty where nothing is known."""
    facts = stage.facts
    if not facts.get("scatter"):
        return ""
    if not facts["locked"]:
        parts = ["no step was taken from the reference's own state"]
    else:
        steps = "1 step" if facts["locked"] == 1 else f"{facts['locked']} steps"
        parts = [f"{steps} from the reference's own state"]
        if "shown" in facts:
            parts[0] += f" would show a change of {figure(facts['shown'])} of an update"
        if facts.get("weak"):
            whose = f"{facts['weak']} of {facts['moved']} arrays"
            parts.append(f"of {whose}, such as {facts['weakest']}, they show nothing, as rounding makes the update")
    if facts["silent"] is not None:
        parts.append(_silence(facts))
    weak = facts.get("weak") or facts.get("shown", 1.0) > WEAK
    if weak and facts.get("stronger"):
        parts.append(f"more would show: {', '.join(facts['stronger'])}")
    return "; ".join(parts)


WEAK = 0.01  # of an array's update: if more than this could change unseen, say how to see more


def _silence(facts: Mapping[str, Any]) -> str:
    return f"the free run shows nothing from step {facts['silent']} on, where the reference's own runs part"


def _float32_step(stage: Stage) -> str:
    ratio = min(row.error for row in stage.rows if row.kind == "ratio")
    lacking = stage.facts["no_bfloat16"]
    why = f"{' and '.join(lacking)} has none" if len(lacking) == 1 else f"{' and '.join(lacking)} have none"
    return f"G = {ratio:.1e} (at least 1e4); bfloat16 not run: {why if lacking else 'only float32 is compared'}"


def _curve(stage: Stage) -> str:
    band = stage.rows[-1].band or 0.0
    words = f"{len(stage.rows)} steps; one float32 unit of the weights moves the reference's own loss by {band:.1e}"
    return "; ".join([words, *stage.facts["stopped"]])


READINGS = {
    "few": "too few seeds, {least} are the least: run more",
    "equivalent": "equivalent: the whole interval lies inside the margin",
    "different": "different: the whole interval lies outside the margin",
    "undecided": "undecided: the interval straddles the margin, so run more seeds",
}


def _accuracy(stage: Stage) -> str:
    facts = stage.facts
    interval = f"{facts['level']:g} % interval {facts['low']:+.4f} .. {facts['high']:+.4f}"
    difference = f"candidate minus reference {facts['mean']:+.4f}, {interval}, margin {stage.limit:g}"
    return f"{facts['pairs']} paired seeds: {difference}; {READINGS[facts['reading']].format(least=facts['least'])}"


SUMMARIES: Mapping[str, Callable[[Stage], str]] = {
    "P0": _manifest,
    "P1": lambda stage: f"{stage.facts['arrays']} arrays",
    "P2": _data,
    "P3": lambda stage: f"{len(stage.rows)} outputs{_sizes(stage)}",
    "P4": lambda stage: f"{len(stage.rows)} outputs, losses, buffers and gradients; everything trains{_sizes(stage)}",
    "P5": lambda stage: (
        f"{stage.facts['optimizer']}, {stage.facts['updates']} updates, "
        "groups frozen and unfrozen between them, the last one clipped, against NumPy"
    ),
    "P6": _steps,
    "P7": lambda stage: f"{stage.facts['batches']} batches of the test part",
    "P8": _float32_step,
    "P9": _curve,
    "P10": _accuracy,
}


def side(manifest: Mapping[str, Any]) -> str:
    """Name the backend of a capture, with its version and device."""
    backend = str(manifest["backend"])
    how = ", float32: judged by the reference's own scatter" if manifest.get("precision") == "float32" else ""
    count = manifest.get("processes")
    over = f"in {count} processes" if isinstance(count, int) else ""
    words = (backend, str(manifest["versions"].get(backend, "")), f"({manifest['device']}{how})", over)
    return " ".join(filter(None, words))


def subject(recipe: Mapping[str, Any], steps: int, boundaries: int) -> str:
    """Say what was compared: model, strategy, data, and how long."""
    crossing = f"{steps} steps, {boundaries} of them at a boundary"
    if not recipe:
        return f"a loop by hand; {crossing}"
    strategy = recipe.get("strategy")
    named = strategy.get("name") if isinstance(strategy, Mapping) else strategy
    if "data" not in recipe:
        return f"{recipe.get('model')}, everything trains, your own batch, {recipe.get('optimizer')}; {steps} steps"
    sizes = f"batches of {recipe.get('batch_size')} at {recipe.get('image_size')} px"
    model, data, optimizer = (recipe.get(field) for field in ("model", "data", "optimizer"))
    return f"{model}, strategy {named}, {data}, {optimizer}; {sizes}, {crossing}"
