"""tlx on this machine's GPU, written down as one JSON file: conformance, parity with the CPU, kills and speed.

    make gpu                                        # or: python scripts/gpu.py -o gpu.json
    python scripts/gpu.py -o x.json --only speed    # a part of it
    python scripts/gpu.py -o x.json --device cpu    # tries this script itself, where there is no GPU

Without a GPU it says so and ends with exit code 2; where a part fails, with 1. PyTorch must be installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
TLX = [sys.executable, "-m", "tlx"]
KILLS = 5
DIGITS = ["--data", "digits", "--backend", "torch", "--weights", "none", "--limit-train", "300", "--limit-test", "100"]
SPEED, TRIED = (4096, 224, 256, 3), (64, 64, 32, 2)  # images, their size, batch and epochs: on a GPU, and else
Report = dict[str, Any]


def main() -> int:
    """Run the parts, write the file after each, and say in a line what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", choices=PARTS, action="append")
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("gpu: PyTorch is not installed; make setup installs it", file=sys.stderr)
        return 2
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu: PyTorch sees no GPU here, so there is nothing to measure", file=sys.stderr)
        return 2
    cuda = options.device == "cuda"
    report: Report = {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "devices": torch.cuda.device_count() if cuda else 1,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
        "commit": _output(["git", "rev-parse", "HEAD"]).strip(),
    }
    for name in options.only or PARTS:
        started = time.perf_counter()
        part = PARTS[name](options.device)
        report[name] = {**part, "seconds": round(time.perf_counter() - started, 1)}
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: {'passed' if part['passed'] else 'FAILED'} in {report[name]['seconds']:.0f} s", flush=True)
    return int(not all(report[name]["passed"] for name in options.only or PARTS))


def conformance(device: str) -> Report:
    """Run the suite that every backend must pass, with its models on the device."""
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "tests/conformance/test_backends.py"]
    done = _run(command, TLX_BACKENDS="torch", TLX_CONFORMANCE_DEVICE=device)
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    return {
        "passed": done.returncode == 0,
        "counts": counts,
        "failures": re.findall(r"^FAILED (.*)$", done.stdout, re.M),
    }


def parity(device: str) -> Report:
    """Compare the CPU with the device in float64, on the recipe of `tlx parity`."""
    with tempfile.TemporaryDirectory() as folder:
        reference, candidate = f"{folder}/cpu", f"{folder}/device"
        capture = [*TLX, "parity", "capture", "--quick", "--data", "digits", "--backend", "torch", "--weights", "none"]
        steps = (
            [*capture, "--device", "cpu", "-o", reference],
            [*capture, "--device", device, "-o", candidate, "--reference", reference],
            [*TLX, "parity", "compare", reference, candidate, "--json"],
        )
        for command in steps:
            done = _run(command)
            if done.returncode and command is not steps[-1]:
                return {"passed": False, "error": done.stderr[-2000:]}
    return {"passed": done.returncode == 0, "report": json.loads(done.stdout) if done.stdout else done.stderr[-2000:]}


def kills(device: str) -> Report:
    """Kill runs at random moments, let them go on, and compare the model's bytes with those of a run that was not."""
    quiet = subprocess.DEVNULL
    moments: list[float] = []
    equal: list[bool] = []
    with tempfile.TemporaryDirectory() as folder:
        start = [*TLX, "run", *DIGITS, "--device", device, "--image-size", "64"]
        start += ["--epochs", "3", "--save-seconds", "0"]
        started = time.perf_counter()
        whole = _run([*start, "--out", f"{folder}/whole"])
        seconds = time.perf_counter() - started
        if whole.returncode:
            return {"passed": False, "error": whole.stderr[-2000:]}
        expected = Path(folder, "whole", "model.safetensors").read_bytes()
        for number in range(KILLS if device == "cuda" else 1):
            run = f"{folder}/{number}"
            moments.append(round(random.uniform(0, seconds), 2))
            with subprocess.Popen([*start, "--out", run], cwd=ROOT, stdout=quiet, stderr=quiet) as process:
                try:
                    process.wait(moments[-1])
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
            model = Path(run, "model.safetensors")
            if not model.is_file():
                begun = Path(run, "manifest.json").is_file()
                _run([*TLX, "run", "--resume", run] if begun else [*start, "--out", run])
            equal.append(model.is_file() and model.read_bytes() == expected)
    return {"passed": all(equal), "killed_after_seconds": moments, "of_seconds": round(seconds, 2), "equal": equal}


def speed(device: str) -> Report:
    """Train ResNet-18 whole on noise, in each precision that the device has; the first epoch is not counted."""
    import tlx
    from tlx.backend.registry import load

    rates: dict[str, float] = {}
    images, size, batch, epochs = SPEED if device == "cuda" else TRIED
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, size, size, 3), np.uint8)
    data = {"train": (pixels, rng.integers(0, 10, images)), "test": (pixels[:32], np.arange(32) % 10)}
    for precision in load("torch").capabilities().precisions[device]:
        if precision == "float64":
            continue
        with tempfile.TemporaryDirectory() as folder:
            fields: dict[str, Any] = {"image_size": size, "batch_size": batch, "epochs": epochs, "val_fraction": 0.0}
            result = tlx.run(
                **fields,
                **{"backend": "torch", "model": "resnet18", "weights": "none", "strategy": "full", "data": data},
                **{"device": device, "precision": precision, "out": f"{folder}/run", "quiet": True},
            )
        rates[precision] = round(median(images / epoch["seconds"] for epoch in result.history[1:]), 1)
    shape = {"model": "resnet18", "images": images, "size": size, "batch": batch, "epochs": epochs}
    return {"passed": True, **shape, "images_per_second": rates}


PARTS: dict[str, Callable[[str], Report]] = {
    "conformance": conformance,
    "parity": parity,
    "kills": kills,
    "speed": speed,
}


def _run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _output(command: list[str]) -> str:
    return _run(command).stdout


if __name__ == "__main__":
    sys.exit(main())
