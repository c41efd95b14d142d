"""Exported files, loaded by the printed code in processes of their own that have no tlx."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.runs.classify import classify
from tlx.runs.finished import restore
from tlx.runs.inputs import Notes, find_inputs

TOLERANCE = 1e-4  # of float32 logits, relative to the largest one
RUNNER = """
import json, sys, warnings
warnings.simplefilter("ignore")
sys.modules["tlx"] = None  # so that importing it would fail
results = []
for code in json.load(sys.stdin):
    names = {"__name__": "__main__"}
    exec(compile(code, "exported", "exec"), names)
    logits = names["logits"]
    results.append([list(names["classes"]), (logits if hasattr(logits, "dtype") and not hasattr(logits, "detach")
                    else logits.detach().numpy()).tolist()])
print(json.dumps(results), file=sys.stderr)
"""


def classified(codes: Iterable[str], folder: Path) -> list[tuple[list[str], NDArray[Any]]]:
    """Run printed code in one fresh process, in a folder with photo.jpg; return the classes and logits of each."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps([*codes]),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stderr.splitlines()[-1])
    predicted = done.stdout.splitlines()
    for (classes, logits), name in zip(results, predicted, strict=True):
        assert name == classes[int(np.argmax(logits))]
    return [(classes, np.asarray(logits)) for classes, logits in results]


def own_logits(run_dir: str | Path, photo: Path, **objects: Any) -> NDArray[np.float64]:
    """Return what tlx itself computes of a photo, in float32 on the CPU: [1, classes]."""
    run = restore(run_dir, None, single=True, **objects)
    ((_, logits),) = next(classify(run, find_inputs(photo, Notes(), 10**6)))
    assert isinstance(logits, np.ndarray)
    return logits[None]


def distance(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    """Return the largest difference of two logits, relative to the largest logit."""
    assert expected.shape == actual.shape
    return float(np.abs(expected - actual).max() / np.abs(expected).max())


def values(path: Path) -> Mapping[str, NDArray[Any]]:
    """Return the arrays of a .safetensors file."""
    from safetensors.numpy import load_file

    return load_file(path)
