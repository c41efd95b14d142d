"""`tlx doctor`: for each backend what works, what is missing, and the one command that fixes it."""

from __future__ import annotations

import json as jsonlib
import platform
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

from tlx.backend import registry
from tlx.backend.registry import Check, Entry
from tlx.errors import TlxError, one_line
from tlx.streams import stderr

if TYPE_CHECKING:
    from tlx.console import Console

# An import takes seconds on a warm disk; a minute or more from a cold network disk.
TIMEOUT = 180.0
_WHAT = "trial in a process of its own"
_TRIAL = "import sys; from tlx.backend.doctor import trial; trial(sys.argv[1])"


@dataclass(frozen=True, slots=True)
class Report:
    """One backend: what its checks found and, if they found nothing wrong, whether it really runs."""

    entry: Entry
    trial: Check | None  # None if a check already failed, so that trying would only repeat it

    @property
    def problem(self) -> Check | None:
        """What keeps the backend from working, or None if it works."""
        return self.entry.problem or (self.trial if self.trial and self.trial.problem else None)

    @property
    def state(self) -> str:
        """``"works"``, ``"broken"`` or ``"not installed"``."""
        if not self.entry.installed:
            return "not installed"
        return "broken" if self.problem else "works"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        checks = [*self.entry.checks, *([self.trial] if self.trial else [])]
        versions = dict(self.entry.versions)
        return {"name": self.entry.name, "state": self.state, "versions": versions, "checks": [*map(asdict, checks)]}


def doctor() -> list[Report]:
    """Check every backend that is not hidden and try those that should work, each in a process of its own."""
    return [examine(entry) for entry in registry.available() if not entry.hidden]


def examine(entry: Entry) -> Report:
    """Check one backend. It runs in another process, because a framework may end the process that imports it."""
    if entry.problem or not entry.installed:
        return Report(entry, None)
    command = [sys.executable, "-c", _TRIAL, entry.name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return _failed(entry, f"{entry.name} did not answer within {TIMEOUT:.0f} s", "hangs")
    outcome = _outcome(done.stdout)
    message = outcome.get("problem") or one_line(done.stderr)
    if done.returncode < 0:
        return _failed(entry, f"{entry.name} ends the process by {signal.Signals(-done.returncode).name} ({message})")
    if done.returncode > 0:
        return _failed(entry, f"{entry.name} ends the process with status {done.returncode} ({message})")
    if outcome.get("problem"):
        return _failed(entry, outcome["problem"], fix=outcome["fix"])
    return Report(entry, Check(_WHAT, ", ".join(part for part in ("passed", outcome["remark"]) if part)))


def trial(name: str) -> None:
    """Load a backend in this process, let its framework compute, and print the outcome: a line of JSON, the last."""
    outcome = {"problem": "", "fix": "", "remark": ""}
    try:
        registry.load(name).capabilities()
        module = import_module(next(entry.module for entry in registry.available() if entry.name == name))
        if hasattr(module, "smoke"):
            outcome["remark"] = module.smoke() or ""
    except TlxError as error:
        outcome |= {"problem": error.problem, "fix": error.fix}
    except Exception as error:
        outcome["problem"] = one_line(f"{type(error).__name__}: {error}")
    print(f"\n{jsonlib.dumps(outcome)}", flush=True)


def _outcome(stdout: str) -> dict[str, str]:
    """What `trial` printed; nothing if the process ended before it could."""
    try:
        return dict(jsonlib.loads(stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        return {}


def _failed(entry: Entry, problem: str, state: str = "failed", fix: str = "") -> Report:
    return Report(entry, Check(_WHAT, state, problem, fix or registry.reinstall(entry)))


def print_report(console: Console, reports: list[Report]) -> None:
    """Print the reports, each fix alone on its line so that it can be copied."""
    from tlx.console import styled

    console.print(
        f"tlx {metadata.version('tlx')}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {sys.executable}",
        soft_wrap=True,
    )
    colours = {"works": "green", "broken": "red", "not installed": "yellow"}
    for report in reports:
        versions = ", ".join(f"{name} {version}" for name, version in report.entry.versions.items())
        console.print()
        console.print(styled(report.entry.name, "bold"), styled(report.state, colours[report.state]), f" {versions}")
        for check in (*report.entry.checks, *([report.trial] if report.trial else [])):
            if not check.problem:
                console.print(f"  ok    {check.what}: {check.found}", soft_wrap=True)
                continue
            console.print(f"  wrong {check.problem}", style=colours[report.state], soft_wrap=True)
            console.print(f"        fix: {check.fix}", soft_wrap=True)


def main(*, json: bool = False) -> int:
    """Print the report, or one line of JSON. Returns 0 if every installed backend works and there is one, else 1."""
    from tlx.console import Console

    console = Console()
    with Console(file=stderr()).status("Trying each backend in a process of its own"):
        reports = doctor()
    works = any(report.state == "works" for report in reports)
    if json:
        print(jsonlib.dumps({"backends": [report.to_dict() for report in reports]}))
    else:
        print_report(console, reports)
        if not works:
            console.print()
            console.print("No framework works here: fix one of the above.")
    return int(not works or any(report.state == "broken" for report in reports))
