"""What a comparison comes to: the choice by validation, and what the chosen do on the test part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tlx.comparison.cells import Outcome
from tlx.comparison.plan import Arm, Candidate, Cell
from tlx.comparison.resampling import Answers, By, paired_interval
from tlx.comparison.statistics import holm, mcnemar, mean_and_spread


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A candidate with its figures, which lie between 0 and 1; what it does not have is None.

    Spreads are those of the accuracies, or of mAP where several labels may apply to an image.
    """

    candidate: Candidate
    outcomes: tuple[Outcome, ...]  # of its cells
    val_accuracy: float | None  # the mean over the seeds that are finished
    val_spread: float | None  # the sample standard deviation over them, of `val_score`
    val_loss: float | None
    seconds: float | None  # the mean
    chosen: bool = False  # the best of its arm
    best: bool = False  # of all with as many shots
    test_accuracy: float | None = None  # the mean over the seeds
    test_spread: float | None = None
    val_balanced_accuracy: float | None = None  # the means over the seeds; None where a seed has none
    val_macro_f1: float | None = None
    test_balanced_accuracy: float | None = None
    test_macro_f1: float | None = None
    test_accuracies: tuple[float, ...] = ()  # of the seeds; or each one's mAP, as `test_score`
    val_average_precision: float | None = None  # mAP, where several labels may apply to an image
    test_average_precision: float | None = None

    @property
    def finished(self) -> int:
        """How many of its cells are."""
        return sum(outcome.state == "finished" for outcome in self.outcomes)

    @property
    def val_score(self) -> float | None:
        """The mean accuracy on the validation part, or mAP where several labels may apply to an image."""
        return self.val_accuracy if self.val_average_precision is None else self.val_average_precision

    @property
    def test_score(self) -> float | None:
        """The same on the test part."""
        return self.test_accuracy if self.test_average_precision is None else self.test_average_precision

    @property
    def per_second(self) -> float | None:
        """The mean validation score divided by the mean seconds."""
        return self.val_score / self.seconds if self.val_score is not None and self.seconds else None


@dataclass(frozen=True, slots=True)
class PairedTest:
    """The best candidate against another chosen one, on the same test images.

    McNemar's test counts images that are right or wrong, so it is None where several labels may apply to an image.
    """

    arm: Arm
    images: int  # of the first seed, which McNemar's test looks at
    by: By  # the figure of which `difference` is
    difference: float  # of the means over the seeds: the best minus the other
    low: float
    high: float
    best_alone: int | None = None  # images that the best alone has right
    other_alone: int | None = None
    exact: float | None = None
    mid_p: float | None = None
    holm: float | None = None  # the mid-p, corrected for all tests of the comparison


def entries_of(candidates: Sequence[Candidate], outcomes: Mapping[str, Outcome], by: By = "accuracy") -> list[Entry]:
    """Return each candidate with its figures, in the order of the plan, and what was chosen by validation.

    Each arm's best is chosen, and the best of these, of each number of shots one; only candidates of which every cell
    is finished take part. The highest mean of the figure `by` wins, then the lowest mean loss, then the earlier one.
    """
    checked = _of_one_data(candidates, outcomes)
    entries = [_entry(candidate, [checked[cell.name] for cell in candidate.cells]) for candidate in candidates]
    whole = [e for e in entries if e.finished == len(e.outcomes) and figure_of(e, by) is not None]
    chosen: dict[Arm, Entry] = {}
    ranked = sorted(whole, key=lambda entry: rank(entry, by))
    for entry in ranked:
        chosen.setdefault(entry.candidate.arm, entry)
    best: dict[int | None, Entry] = {}
    for entry in chosen.values():  # the first is the best
        best.setdefault(entry.candidate.arm.shots, entry)
    return [replace(e, chosen=e in chosen.values(), best=e in best.values()) for e in entries]


def figure_of(entry: Entry, by: By) -> float | None:
    """Return the mean of what the choice is by."""
    value: float | None = getattr(entry, f"val_{by}")
    return value


def rank(entry: Entry, by: By) -> tuple[float, float]:
    """Return by what entries are ordered, the best first."""
    value = figure_of(entry, by)
    return (1.0 if value is None else -value), entry.val_loss or 0.0


def _entry(candidate: Candidate, outcomes: Sequence[Outcome]) -> Entry:
    accuracies = [o.val_accuracy for o in outcomes if o.val_accuracy is not None]
    losses = [o.val_loss for o in outcomes if o.val_loss is not None]
    seconds = [o.seconds for o in outcomes if o.seconds is not None]
    if not accuracies:
        return Entry(candidate, tuple(outcomes), None, None, None, None)
    mean, spread = mean_and_spread(accuracies)
    entry = Entry(candidate, tuple(outcomes), mean, spread, float(np.mean(losses)), float(np.mean(seconds)))
    finished = [o for o in outcomes if o.state == "finished"]
    balanced, f1 = [o.val_balanced_accuracy for o in finished], [o.val_macro_f1 for o in finished]
    entry = replace(entry, val_balanced_accuracy=_mean(balanced), val_macro_f1=_mean(f1))
    ranked = [o.val_average_precision for o in outcomes if o.val_average_precision is not None]
    if not ranked:
        return entry
    mean, spread = mean_and_spread(ranked)
    return replace(entry, val_average_precision=mean, val_spread=spread)


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where one has no value."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _of_one_data(candidates: Sequence[Candidate], outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Let those fail whose data were others than those of the first with the same seed and the same data fields."""
    first: dict[tuple[Any, ...], tuple[str, str]] = {}
    checked: dict[str, Outcome] = {}
    for cell in (cell for candidate in candidates for cell in candidate.cells):
        outcome = checked[cell.name] = outcomes[cell.name]
        if outcome.state != "finished":
            continue
        name, fingerprint = first.setdefault(_data_of(cell), (cell.name, outcome.fingerprint))
        if fingerprint != outcome.fingerprint:
            problem = f"its data were others than those of {name}; delete one of the two folders, and it runs again"
            checked[cell.name] = Outcome("failed", problem)
    return checked


def _data_of(cell: Cell) -> tuple[Any, ...]:
    # Of data in Python objects there is one for all cells.
    names = [f.name for f in cell.recipe.changed() if f.metadata["group"] == "Data" and f.name != "data"]
    return cell.recipe.seed, str(cell.recipe.to_dict()["data"]), *((name, getattr(cell.recipe, name)) for name in names)


def with_test(entries: Sequence[Entry], answers: Mapping[str, Answers]) -> list[Entry]:
    """Add the test accuracies of the candidates of which every cell's answers are there."""
    tested = []
    for entry in entries:
        cells = [answers.get(cell.name) for cell in entry.candidate.cells] if entry.chosen else [None]
        known = [cell for cell in cells if cell is not None]
        if len(known) < len(cells):
            tested.append(entry)
            continue
        figures = [cell.figures() for cell in known]
        score: By = "accuracy" if "accuracy" in figures[0] else "average_precision"
        scores = tuple(each[score] for each in figures)
        means: dict[str, Any] = {f"test_{name}": _mean([each[name] for each in figures]) for name in figures[0]}
        tested.append(replace(entry, **means, test_spread=mean_and_spread(scores)[1], test_accuracies=scores))
    return tested


def paired_tests(entries: Sequence[Entry], answers: Mapping[str, Answers], by: By = "accuracy") -> list[PairedTest]:
    """Compare the best candidate with each other chosen one that has as many shots.

    The interval is of the difference of the means of the figure `by` over all seeds, with images drawn anew and the
    seeds as they are. McNemar's test, of images with one label each, takes the first seed, which nothing chose.
    """
    tested = [entry for entry in entries if entry.test_accuracies]
    bests = {entry.candidate.arm.shots: entry for entry in tested if entry.best}
    tests = []
    for other in tested:
        if (best := bests.get(other.candidate.arm.shots)) is None or other is best:
            continue
        pairs = [
            (answers[one.name], answers[two.name])
            for one, two in zip(best.candidate.cells, other.candidate.cells, strict=True)
        ]
        if any(one.names != two.names for one, two in pairs):  # a grid over the data: no images in common
            continue
        first, second = pairs[0]
        test = PairedTest(other.candidate.arm, len(first.names), by, *paired_interval(pairs, by))
        if by != "average_precision":
            counts = mcnemar(first.right, second.right)
            alone = counts.first_alone, counts.second_alone
            test = replace(test, best_alone=alone[0], other_alone=alone[1], exact=counts.exact, mid_p=counts.mid_p)
        tests.append(test)
    corrected = iter(holm([test.mid_p for test in tests if test.mid_p is not None]))
    return [test if test.mid_p is None else replace(test, holm=next(corrected)) for test in tests]
