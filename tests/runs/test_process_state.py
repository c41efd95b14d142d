"""What a run leaves in its process: nothing that docs/runs.md does not name."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.backends import each_backend
from tlx.errors import TlxError

SMALL: dict[str, Any] = {
    **{"data": "digits", "strategy": "scratch", "weights": "none", "image_size": 32, "epochs": 1, "lr": 0.01},
    **{"limit_train": 40, "limit_test": 20, "batch_size": 20, "val_fraction": 0, "precision": "float32"},
    **{"quiet": True, "augment": "none", "workers": 2},
}
MODELS = {"loopback": "tiny-mlp", "torch": "squeezenet1_1", "oneflow": "squeezenet1_1"}


def of_framework(name: str) -> dict[str, Any]:
    if name == "loopback":
        return {}
    if name == "oneflow":
        flow = sys.modules["oneflow"]
        return {"dtype": str(flow.get_default_dtype()), "grad": flow.is_grad_enabled()}
    torch = sys.modules["torch"]
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    return {
        "random": torch.get_rng_state().numpy().tobytes(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark),
        "precision": (cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, precision),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled()),
    }


def snapshot(name: str) -> dict[str, Any]:
    """What others in this process may depend on."""
    numpy: Any = np.random.get_state(legacy=False)
    root = logging.getLogger()
    return {
        "environment": dict(os.environ),
        "random": random.getstate(),
        "numpy": (numpy["state"]["key"].tobytes(), numpy["state"]["pos"]),
        "numpy errors": np.geterr(),
        "warnings": list(warnings.filters),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "folder": os.getcwd(),
        "umask": [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Umask")],
        "logging": (root.level, list(root.handlers), logging.root.manager.disable),
        "streams": (sys.stdout, sys.stderr, sys.stdin, sys.excepthook, sys.unraisablehook, threading.excepthook),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "files": sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in open_files()),
        "recursion": sys.getrecursionlimit(),
        **of_framework(name),
    }


def open_files() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]


@pytest.mark.parametrize("name", each_backend("loopback", "torch", "oneflow"))
def test_a_run_leaves_its_process_as_it_was(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {**SMALL, "backend": name, "model": MODELS[name]}
    tlx.run(**fields, out=str(tmp_path / "first"))  # imports what is needed
    before = snapshot(name)
    result = tlx.run(**fields, out=str(tmp_path / "second"))
    tlx.evaluate(result.run_dir, quiet=True)
    tlx.predict(result.run_dir, np.zeros((2, 8, 8), np.uint8), quiet=True)
    assert snapshot(name) == before
    with pytest.raises(TlxError), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of NumPy's overflow
        tlx.run(**{**fields, "lr": 1e30, "epochs": 3}, out=str(tmp_path / "wrong"))
    assert snapshot(name) == before

    def stop(event: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        tlx.run(**fields, out=str(tmp_path / "stopped"), on_event=stop)
    assert snapshot(name) == before


FIRST = """
import json, os, random, sys, tlx
before = dict(os.environ)
tlx.run(**json.loads(sys.argv[1]))
print(json.dumps(sorted(name for name in os.environ if os.environ[name] != before.get(name))))
print(json.dumps(sorted(before.keys() - os.environ.keys())))
"""


@pytest.mark.parametrize("name", each_backend("loopback", "torch", "oneflow"))
def test_the_first_run_sets_the_variables_that_the_documents_name(name: str, tmp_path: Path) -> None:
    fields = {**SMALL, "backend": name, "model": MODELS[name], "out": str(tmp_path / "run")}
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "ONEFLOW_", "GLOG"))}
    environment = {key: value for key, value in environment.items() if "BLAS" not in key and "CUDA" not in key}
    done = subprocess.run(
        [sys.executable, "-c", FIRST, json.dumps(fields)], env=environment, capture_output=True, text=True, check=True
    )
    added, gone = map(json.loads, done.stdout.splitlines()[-2:])
    documents = (Path(tlx.__file__).parents[1] / "docs" / "runs.md").read_text()
    assert not gone and all(f"`{variable}`" in documents for variable in added), added


FORK = """
import json, os, sys, tlx
from tlx.backend import registry
registry.load(sys.argv[2])
child = os.fork()
if child == 0:
    try:
        tlx.run(**json.loads(sys.argv[1]))
    except tlx.TlxError as error:
        print(error, flush=True)
        os._exit(7)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("name", each_backend("loopback", "torch", "oneflow"))
def test_a_forked_process_is_told_to_be_spawned_where_it_would_hang(name: str, tmp_path: Path) -> None:
    fields = {**SMALL, "backend": name, "model": MODELS[name], "out": str(tmp_path / "run")}
    command = [sys.executable, "-c", FORK, json.dumps(fields), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    if name == "loopback":
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 7, done.stderr
    assert "was forked after" in done.stdout and "get_context('spawn')" in done.stdout and done.stdout.count("\n") == 1
    assert not (tmp_path / "run").exists()
