"""Whole runs over several real processes: each of them makes the same calls of `tlx.run`, one after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from support.processes import free_port, outcomes, variables
from tlx.backend import Array

PROGRAM = """
import json, sys
import tlx
if __name__ == "__main__":
    for fields in json.loads(sys.argv[1]):
        try:
            result = tlx.run(**fields, quiet=True)
        except tlx.TlxError as error:
            print(error, flush=True)
            continue
        print("ended", result.run_dir, flush=True)
"""


def spread(size: int, calls: Sequence[dict[str, Any]], seconds: float = 300) -> list[str]:
    """Make calls of `tlx.run` in so many processes; return what each of these printed."""
    ended = processes(size, ["-c", PROGRAM, json.dumps(calls)], seconds)
    assert not any(code for code, _, _ in ended), [error[-3000:] for _, _, error in ended]
    return [told for _, told, _ in ended]


def processes(size: int, arguments: Sequence[str], seconds: float = 300) -> list[tuple[int, str, str]]:
    """Start Python so many times; return how each process ended, and what it printed to stdout and stderr."""
    port, children = free_port(), []
    for rank in range(size):
        environ = {"OMP_NUM_THREADS": "1", **os.environ, **(variables(rank, size, port) if size > 1 else {})}
        children.append(subprocess.Popen([sys.executable, *arguments], env=environ, stdout=-1, stderr=-1, text=True))
    try:
        return outcomes(children, seconds)
    finally:
        for child in children:
            child.kill()
            child.wait()


def weights(folder: Path) -> dict[str, Array]:
    """The weights that a run left."""
    return dict(load_file(folder / "model.safetensors"))


def distance(one: dict[str, Array], other: dict[str, Array]) -> float:
    """The largest difference between two models, relative to the largest number."""
    assert one.keys() == other.keys()
    largest = max(float(np.abs(array).max()) for array in other.values())
    return max(float(np.abs(one[name] - other[name]).max()) for name in one) / largest


def history(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a run, without their times."""
    epochs = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for epoch in epochs:
        del epoch["seconds"]
        epoch.get("fit", {}).pop("seconds", None)
    return epochs


def correct(epoch: dict[str, Any], part: str) -> int | None:
    """How many images of a part were right, as an integer."""
    if epoch[f"{part}_accuracy"] is None:
        return None
    return round(float(epoch[f"{part}_accuracy"]) * int(epoch[f"{part}_images"]))
