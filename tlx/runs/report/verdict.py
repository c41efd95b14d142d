"""What a run's accuracy means, in plain words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tlx.runs.report.contents import Contents
from tlx.runs.report.figures import interval
from tlx.runs.report.judged import Judged
from tlx.runs.report.several import shown_of

NBSP = "\u00a0"  # keeps a number and its unit on one line
PARTS = {"test": "test", "val": "validation"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The head of a page: one line, what it means, and what was trained on what."""

    line: str
    meaning: tuple[str, ...]
    trained: str


def main_part(contents: Contents) -> str | None:
    """Return the part by which a run is judged: the test part, or without one the validation part."""
    return next((part for part in PARTS if part in contents.parts or part in contents.several), None)


def verdict_of(contents: Contents) -> Verdict:
    """Say what came out."""
    summary, part = contents.summary, main_part(contents)
    if part is not None and part in contents.several:
        return _of_several(contents, part)
    if summary.test_accuracy is not None and part != "test":  # an earlier tlx kept no predictions
        line = f"{percent(summary.test_accuracy)} of the test images are classified correctly"
        return Verdict(line, (), trained(contents))
    if part is None:
        known = summary.val_accuracy
        line = "There was no image to judge the model by"
        if known is not None:
            line = f"{percent(known)} of the validation images are classified correctly"
        return Verdict(line, (), trained(contents))
    judged = contents.parts[part]
    accuracy = float(judged.correct.mean())
    line = (
        f"{percent(accuracy)} of {count(len(judged), f'{PARTS[part]} image')} {verb(len(judged))} classified correctly"
    )
    return Verdict(line, tuple(_meaning(judged, accuracy, part, contents)), trained(contents))


def _of_several(contents: Contents, part: str) -> Verdict:
    shown = shown_of(contents.several[part], contents.classes, 0)
    found, images = shown.figures, len(contents.several[part])
    if found["average_precision"] is None:
        line = f"No class applies to any of {count(images, f'{PARTS[part]} image')}, so nothing can be ranked"
        return Verdict(line, (), trained(contents))
    occurring = sum(row["images"] > 0 for row in found["classes"])
    said = [
        f"That is the mean over {count(occurring, 'class', 'classes')} of the average precision. Ranking the images at "
        f"random would come to {shown.random:.3f}.",
        f"With a threshold for each class, micro F1 is {found['micro_f1']:.3f} and macro F1 {found['macro_f1']:.3f}; "
        f"all labels are right for {percent(shown.exact)} of the images.",
    ]
    if part == "val":
        said.append(
            "There is no test part; these images also chose the epoch and the thresholds, so figures are optimistic."
        )
    line = f"The mean average precision (mAP) on {count(images, f'{PARTS[part]} image')} is "
    return Verdict(f"{line}{found['average_precision']:.3f}", tuple(said), trained(contents))


def _meaning(judged: Judged, accuracy: float, part: str, contents: Contents) -> list[str]:
    images, wrong = len(judged), int((~judged.correct).sum())
    low, high = interval(accuracy, images)
    if not wrong:
        said = ["None of them is wrong."]
    else:
        rate = images / wrong
        often = f", about 1 in {rate:.0f}" if wrong > 1 and rate >= 1.95 else ""
        said = [f"{count(wrong, 'image')} {verb(wrong)} wrong{often}."]
    said.append(
        f"Of many more images like these it would get between {percent(low)} and {percent(high)} right "
        f"(95{NBSP}% confidence)."
    )
    counts = np.bincount(judged.labels, minlength=len(contents.classes))
    common = int(counts.argmax())
    share = counts[common] / images
    said.append(f"Always answering “{shortened(contents.classes[common])}” would get {percent(share)} right.")
    if part == "val":
        said.append("There is no test part; these images also chose the epoch, so the figure is slightly optimistic.")
    return said


def trained(contents: Contents) -> str:
    """Say what was trained, on what, for how long."""
    summary = contents.summary
    images = summary.epochs[-1].train_images
    on = f"{contents.data} ({count(len(contents.classes), 'class', 'classes')}"
    on += f", {count(images, 'training image')})" if images else ")"
    weights = str(summary.recipe.get("weights", ""))
    named = weights.rstrip("/").rsplit("/", 1)[-1]
    start = {"none": "from random weights", "": ""}.get(weights, f"from the weights {named}")
    text = f"{summary.model}, strategy {summary.strategy}, {start}{', ' if start else ''}trained on {on}"
    if summary.fitted:
        return f"{text} in {clock(summary.seconds)}; chosen: {summary.chosen}."
    epochs = len(summary.epochs)
    kept = f"; epoch {summary.best_epoch} is kept" if epochs > 1 else ""
    return f"{text}, {count(epochs, 'epoch')} in {clock(summary.seconds)}{kept}."


def shortened(text: str, most: int = 60) -> str:
    """Return the beginning of a text that is too long for a sentence."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def percent(share: float) -> str:
    """Write a share as a percentage: of all 100 %, and only then."""
    text = f"{100 * share:.1f}"
    if text == "100.0":
        return f"100{NBSP}%" if share == 1 else f"99.9{NBSP}%"
    return f"0{NBSP}%" if share == 0 else f"{text}{NBSP}%"


def count(number: int, one: str, more: str = "") -> str:
    """Write a number with its noun."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def verb(number: int) -> str:
    """Return is or are."""
    return "is" if number == 1 else "are"


def clock(seconds: float) -> str:
    """Write a time as people say it."""
    if seconds < 100:
        text = f"{1000 * seconds:.0f}" if seconds < 0.1 else f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}"
        return f"{text}{NBSP}{'ms' if seconds < 0.1 else 's'}"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
