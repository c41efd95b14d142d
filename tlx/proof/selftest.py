"""The checker is checked: it must find every fault that people really make, planted in one of two equal backends."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tlx.backend import Backend
from tlx.proof.capture import capture
from tlx.proof.compare import compare
from tlx.proof.faults import faults
from tlx.proof.module_faults import network
from tlx.proof.pair import drawn_images
from tlx.proof.report import Report
from tlx.proof.result import Verdict
from tlx.recipe import Recipe

STAGES = ("P1", "P2", "P3", "P4", "P5", "P6", "P7")  # all gates in float64; P8 and P9 would only cost time
FIELDS: dict[str, Any] = {
    "strategy": "head_then_full",
    "schedule": "step",
    "step_size": 1,
    "epochs": 4,
    "lr": 0.05,
    "backbone_lr": 0.02,
    "decay_on": "weights",
    "label_smoothing": 0.1,
    "clip_norm": 1.0,
    "micro_batch": 4,
    "warmup": 0.5,
    "ema": 0.99,
    "augment": "flips",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What `tlx parity` made of a fault; the name is empty for a pair without one."""

    name: str
    report: Report

    @property
    def stage(self) -> str:
        """The first stage that failed."""
        return next((stage.id for stage in self.report.stages if stage.passed is False), "-")

    @property
    def right(self) -> bool:
        """Whether a fault was found, or a pair without one judged equal."""
        return (self.report.verdict == Verdict.EQUAL) == (not self.name)


def selftest(backend: Backend) -> Iterator[Finding]:
    """Compare a backend with itself, then with each fault that can be planted in it; yield what was found."""
    recipes = {name: _recipe(backend, name) for name in ("sgd", "adamw")}
    with TemporaryDirectory(prefix="tlx-selftest-") as scratch:
        home = Path(scratch)
        for name, recipe in recipes.items():
            capture(recipe, backend, home / name, quick=True, stages=STAGES)
            yield _finding("", recipe, backend, home / name, home / f"{name}-again")
        for number, fault in enumerate(faults(backend)):
            broken = backend if fault.plant is None else fault.plant(backend)
            recipe, clean = recipes[fault.optimizer], home / fault.optimizer
            yield _finding(fault.name, recipe, broken, clean, home / str(number), fault.feed)


def show(backend: Backend, *, json: bool = False) -> int:
    """Print the table of `selftest`, or one JSON object; return 1 where a fault was missed or a clean pair blamed."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from tlx.console import Console, styled

    findings = []
    table = Table("planted fault", "result", "stage", "message", box=SIMPLE_HEAD)
    for finding in selftest(backend):
        findings.append(finding)
        result = "right" if finding.right else styled("WRONG", "bold red")
        table.add_row(finding.name or "none", result, finding.stage, finding.report.first or "equal")
    wrong = [finding for finding in findings if not finding.right]
    if json:
        rows = [{"fault": f.name, "right": f.right, "stage": f.stage, "first": f.report.first} for f in findings]
        print(jsonlib.dumps({"backend": backend.name, "wrong": len(wrong), "findings": rows}))
        return int(bool(wrong))
    planted = sum(bool(finding.name) for finding in findings)
    console = Console()
    console.print(table)
    console.print(
        f"{backend.name}: {planted} faults and {len(findings) - planted} clean pairs, {len(wrong)} judged wrong"
    )
    return int(bool(wrong))


def _finding(
    name: str, recipe: Recipe, backend: Any, clean: Path, out: Path, feed: Callable[[Any], Any] = lambda x: x
) -> Finding:
    started = time.perf_counter()
    capture(recipe, backend, out, clean, quick=True, stages=STAGES, feed=feed)
    report = compare(clean, out)
    return Finding(name, replace(report, seconds=time.perf_counter() - started))


def _recipe(backend: Backend, optimizer: str) -> Recipe:
    fields = {**FIELDS, "optimizer": optimizer, "backend": backend.name}
    models = backend.capabilities().models
    if "tiny-mlp" in models:
        return Recipe(**fields, model="tiny-mlp", weights="none", data=drawn_images(5, 8), image_size=16)
    net = network(backend.fw)  # type: ignore[attr-defined]
    return Recipe(**fields, model=net, head="fc", data=drawn_images(5, 16), image_size=32)
