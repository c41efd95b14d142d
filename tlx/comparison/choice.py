"""What a comparison comes to: the choice by validation, and what the chosen do on the test part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tlx.comparison.cells import Outcome
from tlx.comparison.plan import Arm, Candidate, Cell
from tlx.comparison.statistics import bootstrap, holm, mcnemar, mean_and_spread

By = Literal["accuracy", "balanced_accuracy", "macro_f1"]


class Answers(NamedTuple):
    """What a cell said of the test images."""

    names: tuple[str, ...]
    right: NDArray[np.bool_]  # whether each was classified correctly
    balanced_accuracy: float
    macro_f1: float


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A candidate with its figures. Accuracies lie between 0 and 1; what it does not have is None."""

    candidate: Candidate
    outcomes: tuple[Outcome, ...]  # of its cells
    val_accuracy: float | None  # the mean over the seeds that are finished
    val_spread: float | None  # the sample standard deviation over them
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
    test_accuracies: tuple[float, ...] = ()  # of the seeds

    @property
    def finished(self) -> int:
        """How many of its cells are."""
        return sum(outcome.state == "finished" for outcome in self.outcomes)

    @property
    def per_second(self) -> float | None:
        """The mean validation accuracy divided by the mean seconds."""
        return self.val_accuracy / self.seconds if self.val_accuracy is not None and self.seconds else None


@dataclass(frozen=True, slots=True)
class PairedTest:
    """The best candidate against another chosen one, on the same test images."""

    arm: Arm
    images: int  # of the seed that McNemar's test looks at
    best_alone: int  # images that the best alone has right
    other_alone: int
    exact: float
    mid_p: float
    holm: float  # the mid-p, corrected for all tests of the comparison
    difference: float  # of the mean test accuracies over the seeds: the best minus the other
    low: float
    high: float


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
    return replace(entry, val_balanced_accuracy=_mean(balanced), val_macro_f1=_mean(f1))


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
        accuracies = tuple(float(cell.right.mean()) for cell in known)
        accuracy, spread = mean_and_spread(accuracies)
        tested.append(
            replace(
                entry,
                test_accuracy=accuracy,
                test_spread=spread,
                test_balanced_accuracy=_mean([cell.balanced_accuracy for cell in known]),
                test_macro_f1=_mean([cell.macro_f1 for cell in known]),
                test_accuracies=accuracies,
            )
        )
    return tested


def paired_tests(entries: Sequence[Entry], answers: Mapping[str, Answers]) -> list[PairedTest]:
    """Compare the best candidate with each other chosen one that has as many shots.

    McNemar's test takes the first seed, which nothing chose; the interval is of the difference of the means over all
    seeds, with images drawn anew and the seeds as they are. Seeds that share their test images are drawn together.
    """
    tested = [entry for entry in entries if entry.test_accuracy is not None]
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
        first, second = (answer.right for answer in pairs[0])
        counts = mcnemar(first, second)
        difference, low, high = bootstrap(_differences(pairs))
        figures = (counts.first_alone, counts.second_alone, counts.exact, counts.mid_p, counts.mid_p)
        tests.append(PairedTest(other.candidate.arm, len(first), *figures, difference, low, high))
    corrected = holm([test.mid_p for test in tests])
    return [replace(test, holm=p) for test, p in zip(tests, corrected, strict=True)]


def _differences(pairs: Sequence[tuple[Answers, Answers]]) -> list[NDArray[np.float64]]:
    """The best minus the other, of each image; the mean over the seeds where they share their images."""
    each = [one.right.astype(np.float64) - two.right for one, two in pairs]
    same = all(one.names == pairs[0][0].names for one, _ in pairs)
    return [np.mean(each, axis=0)] if same else each
