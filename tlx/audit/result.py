"""What a check of a data set found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tlx.data import Images
from tlx.errors import printable

Severity = Literal["serious", "warning", "note"]
Decision = Literal["keep", "drop", "relabel"]
SHOWN = 3  # images that a line names

# In the order in which they are shown: what is said of so many images, and how much it matters.
KINDS: dict[str, tuple[Severity, str]] = {
    "unreadable": ("serious", "cannot be read"),
    "truncated": ("serious", "are cut off in the middle"),
    "two_labels": ("serious", "are the same image under different labels"),
    "leak": ("serious", "are in two parts: copies or links"),
    "near_leak": ("warning", "look like images of another part"),
    "near_two_labels": ("warning", "look alike under different labels"),
    "label": ("warning", "may have a wrong label"),
    "duplicate": ("warning", "are copies or links within a part"),
    "near_duplicate": ("warning", "look like others of their part"),
    "absent_class": ("warning", "classes have no image in a part"),
    "few": ("warning", "classes have few training images"),
    "imbalance": ("warning", "classes differ much in their number of images"),
    "plain": ("warning", "are of one colour only"),
    "tiny": ("warning", "are tiny"),
    "extreme": ("warning", "are very long or very wide"),
    "alike_classes": ("note", "pairs of classes are confused most"),
    "grey": ("note", "are grey"),
    "cmyk": ("note", "are CMYK, as for print"),
    "deep": ("note", "have more than 8 bits a channel"),
    "alpha": ("note", "have an alpha channel, which is dropped"),
    "animated": ("note", "are animated, of which the first frame is used"),
    "rotated": ("note", "are turned upright by their EXIF orientation"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One image with a problem, as the file of decisions lists it.

    Attributes:
        problem: one of `KINDS`.
        part: of the data: train, val, test, or all where it has no parts.
        path: the name of the image, unique within its part.
        index: its place in the part.
        label: its class.
        suggested: the class that it more likely has, or "".
        sure: for a suspected label, how sure that is, from 0 to 1.
        group: the number of its group among the images that are alike.
        decision: what is proposed.
        content: the hash of the photo's bytes, or of an array's pixels, in hex; "" where it cannot be read.
        detail: what is wrong, or how the images of a group are the same.
    """

    problem: str
    part: str
    path: str
    index: int
    label: str
    suggested: str = ""
    sure: float | None = None
    group: int | None = None
    decision: Decision = "keep"
    content: str = ""
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the values by their names."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of problem: how much it matters, what is to be said of it, and the images, if it is about images.

    `count` is how many images or classes have it; of a property that most images share, `rows` is empty.
    """

    kind: str
    count: int
    text: str
    rows: tuple[Row, ...] = ()

    @property
    def severity(self) -> Severity:
        """How much it matters; what is serious spoils a run."""
        return KINDS[self.kind][0]

    @property
    def groups(self) -> list[list[Row]]:
        """The images by their groups, where they have some."""
        by_number: dict[int, list[Row]] = {}
        for row in self.rows:
            if row.group is not None:
                by_number.setdefault(row.group, []).append(row)
        return list(by_number.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the values by their names."""
        rows = [row.to_dict() for row in self.rows]
        return {"kind": self.kind, "severity": self.severity, "count": self.count, "text": self.text, "images": rows}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Check:
    """What `tlx.check` returns.

    Attributes:
        data: the name of the data.
        classes: its classes.
        counts: by part, how many images each class has.
        problems: the worst first.
        notes: what reading the data says: see `tlx.load_data`.
        skipped: what was not checked, and why.
    """

    data: str
    classes: tuple[str, ...]
    counts: dict[str, list[int]]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    parts: dict[str, Images] = field(default_factory=dict)

    @property
    def serious(self) -> bool:
        """Whether something would spoil a run."""
        return any(problem.severity == "serious" for problem in self.problems)

    @property
    def images(self) -> int:
        """How many images there are."""
        return sum(map(sum, self.counts.values()))

    @property
    def rows(self) -> list[Row]:
        """All images with a problem; one that has several comes several times."""
        return [row for problem in self.problems for row in problem.rows]

    def problem(self, kind: str) -> Problem | None:
        """Return one kind of problem, or None where there is none."""
        return next((problem for problem in self.problems if problem.kind == kind), None)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {
            "data": self.data,
            "images": self.images,
            "classes": list(self.classes),
            "counts": self.counts,
            "serious": self.serious,
            "problems": [problem.to_dict() for problem in self.problems],
            "notes": list(self.notes),
            "skipped": list(self.skipped),
        }

    def __repr__(self) -> str:
        kinds = ", ".join(f"{problem.kind} {problem.count:,}" for problem in self.problems) or "no problem"
        return printable(f"<Check of {self.data}: {self.images:,} images, {kinds}>")


def listed(names: Sequence[str]) -> str:
    """Return the first few names."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
