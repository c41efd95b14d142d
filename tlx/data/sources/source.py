"""A data set as it is published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tlx.data.images import Images


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A data set as it is published, before any selection."""

    name: str
    classes: tuple[str, ...]
    parts: Mapping[str, Images]  # "train" and any of "val", "test"; or "all", of which the test part is drawn
    notes: list[str] = field(default_factory=list)
