"""What oneflow and flowvision need of an environment, read from metadata and folders: neither is imported.

Each finding was seen with oneflow 0.9.0; most of them would otherwise end the process or fail far from their cause.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from tlx.backend.registry import Check, installed, pip_install, requirement
from tlx_oneflow.gpus import Gpu, gpus

# What the wheel links and does not ship; its RPATH looks for them beside itself in site-packages.
LIBRARIES = {
    "nvidia-cudnn-cu11": ("libcudnn_cnn_infer.so.8", "libcudnn_cnn_train.so.8", "libcudnn_ops_infer.so.8"),
    "nvidia-cublas-cu11": ("libcublas.so.11", "libcublasLt.so.11"),
}
FLOWVISION = "0.2.1"


def check() -> list[Check]:
    """Check this environment."""
    versions = installed(["oneflow", "flowvision", "numpy", "protobuf"])
    return diagnose(versions, missing_libraries() if "oneflow" in versions else (), gpus=gpus())


def diagnose(
    versions: Mapping[str, str],
    lacking: Iterable[str] = (),
    python: tuple[int, int] = sys.version_info[:2],
    machine: tuple[str, str] = (platform.system(), platform.machine()),
    gpus: Iterable[Gpu] = (),
) -> list[Check]:
    """Check these versions, on this Python and machine; `lacking` names the CUDA libraries that were not found."""
    found = ".".join(map(str, python))
    checks = [Check("Python", found), Check("machine", " ".join(machine))]
    if python > (3, 10):
        checks[0] = Check("Python", found, f"oneflow has no wheel for Python {found}, only up to 3.10", "make setup")
    if machine != ("Linux", "x86_64"):
        problem = f"oneflow has wheels for Linux x86_64 only, not for {' '.join(machine)}"
        checks[1] = Check("machine", " ".join(machine), problem, "run tlx on Linux x86_64, or with another backend")
    if any(check.problem for check in checks):
        return checks  # nothing that can be installed here would help
    if "oneflow" not in versions:
        pins = [_pin(name) for name in ("oneflow", "flowvision", *LIBRARIES, "numpy")]
        return [*checks, Check("oneflow", "missing", "oneflow is not installed", _build_and_install(*pins))]
    checks.append(Check("oneflow", versions["oneflow"]))
    flowvision = versions.get("flowvision", "missing")
    if flowvision == FLOWVISION:
        checks.append(Check("flowvision", flowvision))
    else:
        problem = "is not installed" if flowvision == "missing" else f"{flowvision} does not import with oneflow 0.9"
        checks.append(
            Check(
                "flowvision",
                flowvision,
                f"flowvision {problem}; {FLOWVISION} does",
                _build_and_install(_pin("flowvision")),
            )
        )
    for name, limit, effect in (
        ("numpy", 2, "ends the process when oneflow is imported"),
        ("protobuf", 4, "breaks the import of oneflow"),
    ):
        version = versions.get(name, "missing")
        if version.split(".")[0].isdigit() and int(version.split(".")[0]) < limit:
            checks.append(Check(name, version))
        else:
            problem = f"{name} {version} {effect}" if name in versions else f"{name} is not installed"
            checks.append(Check(name, version, problem, pip_install(f"{name}<{limit}")))
    return [*checks, _libraries(list(lacking)), *map(_gpu, gpus)]


def missing_libraries() -> list[str]:
    """Return the CUDA-11 libraries that the loader would not find for oneflow, where it is installed."""
    site = Path(str(metadata.distribution("oneflow").locate_file("")))
    folders = [site / "nvidia/cublas/lib", site / "nvidia/cudnn/lib"]
    folders += [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    wanted = [library for libraries in LIBRARIES.values() for library in libraries]
    lacking = [library for library in wanted if not any((folder / library).is_file() for folder in folders)]
    return [library for library in lacking if library not in _loader_cache()] if lacking else []


def _loader_cache() -> str:
    try:
        return subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def _libraries(lacking: list[str]) -> Check:
    if not lacking:
        return Check("CUDA-11 libraries", "found")
    problem = f"oneflow loads {lacking[0]} even without a GPU, and it is not there"
    return Check("CUDA-11 libraries", "missing", problem, pip_install(*(_pin(name) for name in LIBRARIES)))


def _gpu(gpu: Gpu) -> Check:
    """Say what oneflow can do with a GPU; that it cannot is no problem on the CPU."""
    found = f"{gpu.name}, sm_{gpu.capability[0]}{gpu.capability[1]}"
    if not gpu.usable:
        found += ": oneflow 0.9.0 has code for sm_60 to sm_86 and no PTX, so it runs on the CPU only; torch can use it"
    return Check("GPU", found)


def _pin(name: str) -> str:
    return requirement(name, extra="oneflow")


def _build_and_install(*requirements: str) -> str:
    # flowvision is published as source only and needs pkg_resources to build, which setuptools 82 dropped.
    # Build constraints would do as well, but a file is not always at hand and older pips ignore them.
    return f"{pip_install('setuptools<82', 'wheel')} && {pip_install('--no-build-isolation', *requirements)}"
