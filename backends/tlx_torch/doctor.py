"""What torch and torchvision need of an environment, read from metadata: neither is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import metadata

from tlx.backend.registry import Check, installed, pip_install, requirement


def check() -> list[Check]:
    """Check this environment."""
    versions = installed(["torch", "torchvision", "numpy"])
    needs = metadata.requires("torchvision") or [] if "torchvision" in versions else []
    return diagnose(versions, needs)


def diagnose(versions: Mapping[str, str], torchvision_needs: Iterable[str]) -> list[Check]:
    """Check these versions; `torchvision_needs` are the requirements in torchvision's metadata."""
    missing = [name for name in ("torch", "torchvision") if name not in versions]
    checks = [Check(name, versions[name]) for name in ("torch", "torchvision") if name in versions]
    if missing:
        fix = pip_install(*(requirement(name, extra="torch") for name in missing))
        what = " and ".join(missing)
        return [*checks, Check(what, "missing", f"{what} not installed", fix)]
    torch, torchvision = versions["torch"], versions["torchvision"]
    problem = ""
    for need in torchvision_needs:
        pin = re.match(r"torch\s*\(?\s*(==|>=)\s*([\d.]+)", need)
        if pin and not _meets(_release(torch), pin[1], _release(pin[2])):
            problem = f"torchvision {torchvision} needs torch {pin[1]}{pin[2]}, found {torch}"
    # The registry's torchvision links the CUDA libraries; beside a CPU-only torch its operators do not load.
    if torch.endswith("+cpu") and "+" not in torchvision:
        problem = f"torch {torch} is a CPU-only build and torchvision {torchvision} is not"
    if problem:
        # NumPy stays as it is: another backend in this environment may depend on its version.
        keep = [f"numpy=={versions['numpy']}"] if "numpy" in versions else []
        fix = pip_install("--upgrade", "--force-reinstall", "torch", "torchvision", *keep)
        checks[1] = Check("torchvision", torchvision, problem, fix)
    return checks


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _meets(found: tuple[int, ...], operator: str, wanted: tuple[int, ...]) -> bool:
    return found[: len(wanted)] == wanted if operator == "==" else found >= wanted
