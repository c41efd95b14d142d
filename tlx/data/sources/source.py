"""What a source of data gives, and what a kind of source is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tlx.data.images import Images


class Dataset(Protocol):
    """A sequence of (image, label), such as a data set of the framework's own."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


KEEP = "keep"  # an `on_bad_image` beside error and skip: missing photos stay, for whoever lists or drops them by name

DataLike = str | Path | Mapping[str, Any] | tuple[Any, ...] | Dataset  # whatever a recipe's `data` may be


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A data set as it is published, before any selection."""

    name: str
    classes: tuple[str, ...]
    parts: Mapping[str, Images]  # "train" and any of "val", "test"; or "all", of which the test part is drawn
    notes: list[str] = field(default_factory=list)
    bad: Mapping[str, Mapping[int, str]] = field(default_factory=dict)  # by part: samples of no use, and what is wrong
    stand_in: bool = False  # "test" is the validation part of the publisher, who has no other


@dataclass(frozen=True, slots=True)
class Contents:
    """What lies inside an archive or at an address: the file or folder at `path` is read as if `data` had named it."""

    path: Path
    name: str  # of the data set
    notes: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of data source: how it is recognised, and how it is read.

    It is recognised by its own name as a text (`suffix` and `recognises` absent), as a file with a suffix, or by a
    test; only tests see an address, a text with ``://``. Whether its images are photos of many sizes or of one size,
    they say themselves: `Images.size`.

    Attributes:
        name: of a published data set, what a recipe writes; otherwise a short word.
        help: what a recipe may write, such as "a folder of photos".
        read: takes what it was recognised by (a name, a Path or a Python object) and the recipe's `data_root`, which
            may be None; returns the data. Mistakes in the data are DataErrors, which name what is wrong and where.
        suffix: of the file's name, in lower case with its dot.
        recognises: takes a Path or a Python object that is neither text nor a path.
    """

    name: str
    help: str
    read: Callable[..., Source | Contents]
    suffix: str | tuple[str, ...] = ""
    recognises: Callable[[Any], bool] | None = None
    options: tuple[str, ...] = ()

    def matches(self, candidate: Any) -> bool:
        """Whether a Path or a Python object is of this kind."""
        if self.suffix:
            return isinstance(candidate, Path) and candidate.name.lower().endswith(self.suffix) and candidate.is_file()
        return self.recognises is not None and self.recognises(candidate)

    @property
    def named(self) -> bool:
        """Whether it is recognised by its name alone."""
        return not self.suffix and self.recognises is None
