"""Tutorial 6. Engines that no backend of tlx knows: NumPy by hand, and where they are installed JAX and ONNX Runtime.

Each engine's script in engines/ is copied beside capture_writer.py into an empty folder and runs there without tlx. It
reads the reference's capture and writes its own, as it should and with three planted faults.

    python examples/porting/6_other_engines.py                        # NumPy alone, 15 s
    make parity-engines                                               # all three, in an environment of their own
"""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from tlx.proof import capture_writer
from tlx.proof.compare import compare
from tlx.proof.prove import capture_module
from tlx.proof.report import Report

ENGINES = Path(__file__).parent / "engines"
RECIPE = {"strategy": "full", "lr": 0.05, "schedule": "step", "step_size": 1, "epochs": 4, "image_size": 16}
# Runs a script that may import from its own folder and from nowhere else but its Python's packages.
ALONE = (
    "import runpy, sys; sys.path.insert(0, '.'); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], {}, '__main__')"
)
# The scripts, the precisions that they compute in, and what each one's faults are.
SCRIPTS = {
    "numpy_engine.py": {
        "float64": (
            "the convolution pads by its edge",
            "the gradient of the mean is not divided",
            "the rate drops a step late",
        )
    },
    "jax_engine.py": {
        "float64": ("GELU in place of the last ReLU", "the loss is summed", "Nesterov's momentum"),
        "float32": ("GELU in place of the last ReLU", "the loss is summed", "BatchNorm's eps is 1e-3"),
    },
    "onnx_engine.py": {
        "float32": ("BatchNorm's eps is 1e-3", "a square weight is used transposed", "LeakyReLU in place of ReLU")
    },
}


def captured(python: str, script: str, precision: str, fault: str, reference: Path, home: Path) -> Path:
    """Run an engine's script alone, with a fault or without, and return the folder of its capture."""
    home.mkdir()
    shutil.copy(ENGINES / script, home)
    shutil.copy(capture_writer.__file__, home)
    command = [python, "-I", "-c", ALONE, script, str(reference), "capture", fault, precision]
    subprocess.run(command, cwd=home, check=True)
    return home / "capture"


def row(report: Report, precision: str, fault: str) -> str:
    """One line of the table."""
    engine = report.candidate.partition(" (")[0]
    failed = [stage.id for stage in report.stages if stage.passed is False]
    passed = ", ".join(stage.id for stage in report.stages if stage.passed)
    message = report.first or f"equal in {passed}"
    cells = (engine, precision, fault or "(none)", report.verdict.name, ", ".join(failed[:1]) or "-", message)
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="the interpreter that has JAX and ONNX Runtime")
    python = parser.parse_args().python
    if python is not None:
        found = shutil.which(python)
        if found is None:
            parser.error(f"--python {python}: there is no such program")
        python = os.path.abspath(found)  # engines run elsewhere; the link itself, by which it finds its packages
    torch.manual_seed(0)
    right = []
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        network = runpy.run_path(str(ENGINES / "network.py"))["Network"]()
        capture_module(network, home / "reference", quick=True, **RECIPE)
        print("| engine | precision | planted fault | verdict | found in | message |")
        print("|---|---|---|---|---|---|")
        for script, precisions in SCRIPTS.items():
            if python is None and script != "numpy_engine.py":
                continue
            for precision, faults in precisions.items():
                for number, fault in enumerate(("", *faults)):
                    folder = home / f"{script} {precision} {number}"
                    with_packages = sys.executable if script == "numpy_engine.py" else python
                    written = captured(str(with_packages), script, precision, fault, home / "reference", folder)
                    report = compare(home / "reference", written)
                    print(row(report, precision, fault), flush=True)
                    right.append(report.verdict.name == ("DIFFERENT" if fault else "EQUAL"))
    print(f"\n{sum(right)} of {len(right)} judged rightly")
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
