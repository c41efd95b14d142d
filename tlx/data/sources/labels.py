"""Labels as they are passed in Python (text, one-hot, from 1, -1 and 1, in a column), brought to class numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.data.sources.pixels import as_numpy, describe
from tlx.errors import DataError

EXPECTED = "a class number or a name"
LARGEST = 2**53  # beyond that float64 and int64 would not agree; no class has such a number
LISTED = 10  # classes that a text spells out before it counts


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """Labels of a part before the parts are compared.

    Attributes:
        values: int64 [N] or text [N]; at the samples in `bad` they mean nothing.
        rows: the labels as rows of 0 and 1, int64 [N, classes], where they came as such.
        names: what the data set itself calls the numbers that it returns, if it does.
        bad: the samples without a usable label: index, and what is wrong.
    """

    values: NDArray[Any]
    names: Mapping[int, str] | None = None
    bad: dict[int, str] = field(default_factory=dict)
    rows: NDArray[np.int64] | None = None

    @property
    def several(self) -> bool:
        """Whether a row holds more than a single 1, so that each class is asked for by itself."""
        return self.rows is not None and bool((self.rows.sum(axis=1) > 1).any())

    @property
    def is_text(self) -> bool:
        """Whether the labels are names."""
        return bool(self.values.dtype.kind == "U")

    @property
    def present(self) -> NDArray[Any]:
        """The usable labels, each once, ascending."""
        usable = np.ones(len(self.values), dtype=bool)
        usable[list(self.bad)] = False
        present: NDArray[Any] = np.unique(self.values[usable])
        return present


def read_labels(raw: Any, part: str, notes: list[str], unusable: Mapping[int, str] | None = None) -> Labels:
    """Read labels of one kind: numbers, text, booleans, one-hot rows, or one of these in a column.

    Args:
        raw: an array, a tensor, or a sequence with one label for each sample.
        part: names the part in errors and notes.
        notes: takes what was done that a user should know.
        unusable: samples whose labels do not matter, and what is wrong with them.

    Raises:
        DataError: they are labels of no kind.
    """
    if isinstance(raw, np.ma.MaskedArray):
        raw = list(raw)  # a plain array would hold what lies below the mask
    array, bad = as_numpy(raw), dict(unusable or {})
    if array is None or array.dtype == object:
        array = _gather(list(raw) if array is None else list(array), part, bad)
    if array.ndim > 1 and array.shape[1:] == (1,) * (array.ndim - 1):
        notes.append(f"{part}: labels {list(array.shape)} were taken as [{len(array)}]")
        array = array.reshape(-1)
    kind = array.dtype.kind
    if array.ndim not in (1, 2) or kind not in "biufUS" or (array.ndim == 2 and kind in "US"):
        raise DataError(
            f"{part}: labels are {array.dtype} {list(array.shape)}; expected one class number or name for each image"
        )
    if kind in "US":
        return _text(array, part, bad)
    if array.ndim == 2:
        return _one_hot(array, part, bad, notes)
    if kind == "b":
        notes.append(f"{part}: labels are booleans: False is class 0 and True is class 1")
    if kind == "f":
        whole = np.isfinite(array) & (np.floor(array) == array)
        for i in np.flatnonzero(~whole):
            bad.setdefault(int(i), f"{part}: label {array[i]} of sample {i} is not a whole number; expected {EXPECTED}")
        array = np.where(whole, array, 0)
        if len(bad) < len(array):
            notes.append(f"{part}: labels are whole numbers of type {array.dtype}: taken as integers")
    large = np.abs(array.astype(np.float64)) > LARGEST
    for i in np.flatnonzero(large):
        bad.setdefault(int(i), f"{part}: label {array[i]} of sample {i} is too large for a class number")
    return Labels(np.where(large, 0, array).astype(np.int64), bad=bad)


def _gather(labels: Sequence[Any], part: str, bad: dict[int, str]) -> NDArray[Any]:
    """Make one array of separate labels; those unlike most others are added to `bad`."""
    plain = [None if i in bad else _plain(label) for i, label in enumerate(labels)]
    kinds = [_kind(label) for label in plain]
    usable = Counter(kind for kind in kinds if kind)
    if not usable:
        first = next((i for i in range(len(labels)) if i not in bad), None)
        raise DataError(
            next(iter(bad.values()), f"{part}: there are no labels")
            if first is None
            else f"{part}: the label of sample {first} is {describe(labels[first])}; expected {EXPECTED}"
        )
    usual = usable.most_common(1)[0][0]
    others = f"expected {EXPECTED}" if len(usable) == 1 else f"most others are {usual}"
    for i, kind in enumerate(kinds):
        if kind != usual:
            bad.setdefault(i, f"{part}: the label of sample {i} is {describe(labels[i])}; {others}")
    filler = plain[kinds.index(usual)]
    return np.array([label if kind == usual else filler for label, kind in zip(plain, kinds, strict=True)])


def _plain(label: Any) -> Any:
    """A number or a text as it is, anything else as an array if it can be one."""
    try:
        array = as_numpy(np.asarray(label) if isinstance(label, (list, tuple)) else label)
    except (DataError, ValueError):  # ragged lists, among others
        return None
    return label if array is None else array[()] if array.ndim == 0 else array


def _kind(label: Any) -> str:
    """Name the kind of a label, or "" if it is of none."""
    if isinstance(label, (str, bytes)):
        return "text"
    if isinstance(label, (bool, int, float, np.bool_, np.integer, np.floating)):
        return "numbers" if not isinstance(label, int) or abs(label) <= LARGEST else ""
    if isinstance(label, np.ndarray) and label.dtype.kind in "biuf":
        return f"arrays {list(label.shape)}"
    return ""


def _text(array: NDArray[Any], part: str, bad: dict[int, str]) -> Labels:
    if array.dtype.kind == "S":
        try:
            array = np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{part}: labels are bytes that are not UTF-8", fix="pass them as text") from error
    for i in np.flatnonzero(np.char.strip(array) == ""):
        bad.setdefault(int(i), f"{part}: the label of sample {i} is empty; expected {EXPECTED}")
    return Labels(array, bad=bad)


def _one_hot(array: NDArray[Any], part: str, bad: dict[int, str], notes: list[str]) -> Labels:
    several = bool(((array == 0) | (array == 1)).all() and (array.sum(axis=1) > 1).any())
    if several:
        notes.append(f"{part}: labels are {list(array.shape)} of 0 and 1: several classes may apply to an image")
        return Labels(np.zeros(len(array), np.int64), bad=bad, rows=array.astype(np.int64))
    right = ((array == 1).sum(axis=1) == 1) & ((array == 0).sum(axis=1) == array.shape[1] - 1)
    if not right.any() and bad:
        raise DataError(next(iter(bad.values())))
    if not right.any():
        raise DataError(
            f"{part}: labels are {array.dtype} {list(array.shape)}, and their rows are not one-hot",
            fix="pass one class number for each image, such as labels.argmax(axis=1); or 0 and 1, where several apply",
        )
    for i in np.flatnonzero(~right):
        bad.setdefault(int(i), f"{part}: the label of sample {i} is not one-hot, as the others are: a single 1 among 0")
    notes.append(f"{part}: labels are one-hot {list(array.shape)}: the place of the 1 is the class")
    return Labels(array.argmax(axis=1), bad=bad, rows=np.where(right[:, None], array, 0).astype(np.int64))


def columns_of(
    parts: Mapping[str, Labels], given: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]], dict[str, dict[int, str]]]:
    """Do what `number_labels` does where several labels may apply: a column is a class, and rows stay as they are."""
    width = max(labels.rows.shape[1] for labels in parts.values() if labels.rows is not None)
    for part, labels in parts.items():
        found = "class numbers" if labels.rows is None else f"rows of {labels.rows.shape[1]}"
        if labels.rows is None or labels.rows.shape[1] != width:
            raise DataError(f"{part}: labels are {found}, but others are rows of {width} labels of 0 and 1")
    if given is not None and len(given) != width:
        raise DataError(f"data['classes'] holds {len(given)} names, but labels are rows of {width} classes")
    names = tuple(str(i) for i in range(width)) if given is None else given
    rows = {part: labels.rows for part, labels in parts.items() if labels.rows is not None}
    return names, rows, {part: labels.bad for part, labels in parts.items() if labels.bad}


def number_labels(
    parts: Mapping[str, Labels], given: tuple[str, ...] | None, notes: list[str]
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]], dict[str, dict[int, str]]]:
    """Number the classes of all parts alike.

    A number means what its own data set calls it, so parts that number their classes differently are matched by name.

    Args:
        parts: the labels of each part, that for training first.
        given: the names that the user gave, in the order that numbers them.
        notes: takes what was done that a user should know.

    Returns:
        The names of the classes; the class of each sample, by part; and the samples without one, by part.

    Raises:
        DataError: the parts do not have the same classes.
    """
    if any(labels.several for labels in parts.values()):
        return columns_of(parts, given)
    named = next((labels.names for labels in parts.values() if labels.names), None)
    kinds = {part: "text" if labels.is_text else "numbers" for part, labels in parts.items()}
    if named is None and given is None and len(set(kinds.values())) > 1:
        listed = ", ".join(f"{part} has {kind}" for part, kind in kinds.items())
        raise DataError(f"data: the labels of the parts differ in kind: {listed}", fix="use the same in every part")
    if named:
        parts = {part: _named(labels, part, named, notes) for part, labels in parts.items()}
    parts = {part: _from_zero(labels, parts, given, notes) for part, labels in parts.items()}
    named = next((labels.names for labels in parts.values() if labels.names), None)
    classes = given
    if named and given and any(set(v.names.values()) != set(given) for v in parts.values() if v.names):
        parts = _renamed(parts, named, given, notes)
    elif classes is None:
        classes = _of_values(parts) if named is None else _in_use(named, parts, notes)
    assert classes is not None
    numbers, bad = {}, {}
    for part, labels in parts.items():
        numbers[part], bad[part] = _number(labels, classes, part, next(iter(parts)))
        if named and labels.names and any(named.get(n, name) != name for n, name in labels.names.items()):
            notes.append(f"{part} numbers its classes differently from the rest: they were matched by name")
    return classes, numbers, {part: wrong for part, wrong in bad.items() if wrong}


def _named(labels: Labels, part: str, names: Mapping[int, str], notes: list[str]) -> Labels:
    """Give the names of another part to numbers without names."""
    if labels.is_text or labels.names:
        return labels
    notes.append(f"{part} does not name its classes: its numbers were taken as those of the rest")
    return Labels(labels.values, names, labels.bad)


def _renamed(
    parts: Mapping[str, Labels], names: Mapping[int, str], given: tuple[str, ...], notes: list[str]
) -> dict[str, Labels]:
    """Put the names that the user gave in the place of those of the data set."""
    own = _listed([names[number] for number in sorted(names)])
    if len(names) != len(given) or any(labels.is_text or labels.names != names for labels in parts.values()):
        raise DataError(
            f"data['classes'] names {_listed(given)}, but the data set itself has {own}",
            fix="leave 'classes' out, or name the classes as the data set does",
        )
    notes.append(f"classes were renamed: {own} became {_listed(given)}")
    table = dict(zip(sorted(names), given, strict=True))
    return {part: Labels(labels.values, table, labels.bad) for part, labels in parts.items()}


def _from_zero(labels: Labels, parts: Mapping[str, Labels], given: tuple[str, ...] | None, notes: list[str]) -> Labels:
    """Bring labels 1 .. K, or -1 and 1, to 0 .. K - 1, where all parts that are numbered alike agree."""
    alike = {p: o for p, o in parts.items() if not o.is_text and o.names == labels.names}
    present = np.unique(np.concatenate([other.present for other in alike.values()])) if alike else np.array([])
    names = given if labels.names is None else [labels.names[n] for n in sorted(labels.names)]
    if labels.is_text or not len(present) or (labels.names and sorted(labels.names) != list(range(len(labels.names)))):
        return labels
    first = labels is next(iter(alike.values()))
    count = len(present) if names is None else len(names)
    if present.tolist() == [-1, 1] and count == 2:
        shifted, what = (labels.values + 1) // 2, "-1 and 1 became the classes 0 and 1"
    elif count > 1 and present[0] >= 1 and present[-1] == count:
        shifted, what = labels.values - 1, f"1 .. {count} became the classes 0 .. {count - 1}"
    else:
        return labels
    if first:
        notes.append(f"labels {what}" + ("" if names is None else f": {_listed(names)}"))
    return Labels(shifted, labels.names or (None if names else dict(enumerate(map(str, present)))), labels.bad)


def _in_use(named: Mapping[int, str], parts: Mapping[str, Labels], notes: list[str]) -> tuple[str, ...]:
    """The classes that a data set names, without those that no part has: a subset of a data set may lack some."""
    names = tuple(named[number] for number in sorted(named))
    used: set[str] = set()
    for labels in parts.values():
        present = labels.present.tolist()
        used.update(present if labels.names is None else (labels.names.get(number, "") for number in present))
    unused = [name for name in names if name not in used]
    if not unused or len(unused) == len(names):
        return names
    notes.append(f"{len(unused)} of {len(names)} classes have no image and were left out: {_listed(unused)}")
    return tuple(name for name in names if name in used)


def _of_values(parts: Mapping[str, Labels]) -> tuple[str, ...]:
    """The classes of labels that nobody named: the texts of the first part in order, or the numbers."""
    labels = next(iter(parts.values()))
    if labels.is_text:
        return tuple(map(str, labels.present))
    top = max((int(other.present[-1]) for other in parts.values() if len(other.present)), default=-1)
    if top >= len(labels.values):
        raise DataError(
            f"data: label {top} among {len(labels.values)} training images", fix="number the classes from 0"
        )
    return tuple(str(i) for i in range(top + 1))


def _number(
    labels: Labels, classes: tuple[str, ...], part: str, first: str
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Find each label's place in `classes`."""
    place = {name: i for i, name in enumerate(classes)}
    bad = dict(labels.bad)
    if labels.is_text:
        table = {name: place.get(name, -1) for name in map(str, np.unique(labels.values))}
        expected = f"is not a class of {first}: {_listed(classes)}"
    elif labels.names is None:
        table = {number: number if 0 <= number < len(classes) else -1 for number in np.unique(labels.values).tolist()}
        expected = f"is not in 0 .. {len(classes) - 1}"
    else:
        strange = sorted({labels.names.get(n, classes[0]) for n in labels.present.tolist()} - set(classes))
        if strange:
            raise DataError(
                f"{part} has classes that {first} does not have: {_listed(strange)}. {first} has {_listed(classes)}",
                fix="use data sets of the same classes, or leave those images out",
            )
        table = {n: place.get(labels.names.get(n, ""), -1) for n in np.unique(labels.values).tolist()}
        expected = f"is not in {min(labels.names)} .. {max(labels.names)}"
    distinct, inverse = np.unique(labels.values, return_inverse=True)
    numbers = np.array([table[value] for value in distinct.tolist()], dtype=np.int64)[inverse]
    for i in np.flatnonzero(numbers < 0):
        value = labels.values[i] if not labels.is_text else repr(str(labels.values[i]))
        bad.setdefault(int(i), f"{part}: label {value} of sample {i} {expected}")
    numbers[list(bad)] = -1
    return numbers, bad


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
