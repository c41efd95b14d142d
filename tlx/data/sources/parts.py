"""Files that are parts of a data set by their names, such as ``train-00000-of-00002.parquet``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from tlx.data.sources.folder import ROLES, is_litter, part_of
from tlx.errors import DataError

Part = TypeVar("Part")


def role(name: str) -> str | None:
    """Which of train, val and test a name says; None: another one, or none."""
    part = part_of(name)
    return part if part in ROLES else None


def files_in(folder: Path, suffix: str) -> list[Path]:
    """Return the files with a suffix in a folder, or where it has none, in the folders in it, or in those in these."""
    for depth in ("", "*/", "*/*/"):
        files = [file for file in folder.glob(f"{depth}*{suffix}") if file.is_file()]
        visible = [file for file in files if not any(is_litter(step) for step in file.relative_to(folder).parts)]
        if visible:
            return sorted(visible)
    return []


def files_of_parts(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Sort files by the part that the first word of their names says, or else their folders' names.

    Where only one part is named, or none, all are "all".

    Raises:
        DataError: some names say a part and others do not, or none says train.
    """
    parts: dict[str, list[Path]] = {}
    for file in sorted(files):
        first = file.name.replace("_", "-").replace(".", "-").partition("-")[0]
        parts.setdefault(role(first) or role(file.parent.name) or "", []).append(file)
    if len(parts) == 1:
        return {"all": next(iter(parts.values()))}
    if "" in parts:
        named = next(name for name in parts if name)
        raise DataError(
            f"{parts[''][0]} is of no part by its name, but {parts[named][0]} is of {named}",
            fix="begin the names of all with train, val or test, or of none",
        )
    if "train" not in parts:
        raise DataError(f"{next(iter(parts.values()))[0].parent} has {' and '.join(parts)} files, but none of train.")
    return parts


def with_test(parts: dict[str, Part]) -> dict[str, Part]:
    """Where there is a validation part and no other, it is the test part, as in a folder of photos."""
    if "val" in parts and "test" not in parts:
        return {"train": parts["train"], "test": parts["val"]}
    return parts
