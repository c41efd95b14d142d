"""What the cache keeps of a source: filled once, whole or not at all, by one process at a time."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from tlx.atomic import write_json
from tlx.download import ANOTHER_CACHE, cache_folder, unwritable
from tlx.errors import DataError, TlxError

RECORD = "record.json"
SEAL = "digest"  # of all else in a record: labels are in it, of which a damaged one would go unseen
Record = dict[str, Any]  # what a folder of the cache holds, under "content", and where that came from


def safe(name: str) -> str:
    """Return a name that a file of the cache may have."""
    return re.sub(r"[^\w.-]+", "_", name)[-80:].lstrip(".") or "data"


def home_of(name: str, key: str) -> Path:
    """Return the folder in the cache that belongs to an address or a path."""
    return cache_folder() / "data" / f"{safe(name)}-{hashlib.sha256(os.fsencode(key)).hexdigest()[:16]}"


def facts_of(file: Path) -> list[int]:
    """Return what changes when a file does, even where someone restores the time of its last change."""
    facts = file.stat()
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]


def filled(home: Path, wanted: Callable[[Record], bool], fill: Callable[[], Record]) -> Record:
    """Return the record of a folder of the cache, after filling it if it is not what is wanted.

    The record is written last, so a folder without one was not filled to the end. One process at a time fills it.
    """
    if (record := _read_record(home)) and wanted(record):
        return record
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / ".lock"):
            if not (record := _read_record(home)) or not wanted(record):
                record = fill()
                write_json(home / RECORD, {**record, SEAL: _digest(record)})
            return record
    except DataError:
        raise
    except OSError as error:
        raise unwritable(home, error) from error
    except TlxError as error:  # of the record
        raise DataError(error.problem.rstrip("."), fix=ANOTHER_CACHE) from error


def _read_record(home: Path) -> Record:
    """Return what was written down when the folder was filled; nothing where it was not, or not to the end."""
    try:
        record: Record = json.loads((home / RECORD).read_text(encoding="utf-8"))
        seal = record.pop(SEAL, None)  # tlx 0.1 wrote none
        return record if seal in (None, _digest(record)) and (home / record["content"]).exists() else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _digest(record: Record) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
