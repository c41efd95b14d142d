"""A comparison of two backends, and the ways to read it: one screen, one JSON object, one self-contained page."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tlx.console import Console, styled
from tlx.errors import printable
from tlx.proof import words
from tlx.proof.plot import plot
from tlx.proof.result import Difference, Stage, Verdict
from tlx.proof.sentence import first_difference

EXPLAINED = ("P0", "P8", "P10")  # where these fail, the figure needs its summary
DECLARED_LINES = 6  # on the screen; JSON and the page have all
STYLES = {"pass": "green", "FAIL": "bold red", "underpowered": "yellow", "advisory": "cyan", "not run": "dim"}
COLOURS = {
    Verdict.EQUAL: "green",
    Verdict.DIFFERENT: "red",
    Verdict.NOT_COMPARABLE: "magenta",
    Verdict.UNDERPOWERED: "yellow",
}


@dataclass(frozen=True, slots=True)
class Report:
    """The whole comparison. `print(report)` shows one screen; `report.first` says where the first difference lies."""

    reference: str  # such as "torch 2.14.1 (cpu)"
    candidate: str
    subject: str  # what was compared, such as "resnet18, strategy full, digits"
    verdict: Verdict
    stages: tuple[Stage, ...]
    difference: Difference | None = None  # the first; None: there is none
    declared: tuple[str, ...] = ()  # known differences between the backends and what tlx does about each
    seconds: float = 0.0
    notes: tuple[str, ...] = ()  # what a reader should know beside the figures

    @property
    def first(self) -> str:
        """Where the first difference lies and what it means, in a sentence or two; empty where there is none."""
        return first_difference(self.difference)

    def __str__(self) -> str:
        """Return the comparison as one screen: coloured where stdout is a terminal."""
        console = Console()
        with console.capture() as captured:
            show(self, console)
        return captured.get().rstrip()

    def to_html(self) -> str:
        """Return the comparison as one page that needs nothing else, with the error of each module and step."""
        return to_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; infinities and NaN are the texts "inf" and "nan".

        A row has its `kind`, `error` and `passed`, and of the other facts of `tlx.proof.result.Row` those that it has.
        """
        stages = [
            {
                "id": stage.id,
                "title": words.title(stage),
                "measure": words.measure(stage),
                "figure": stage.figure,
                "limit": stage.limit,
                "passed": stage.passed,
                "outcome": words.outcome(stage),
                "summary": words.summary(stage),
                "facts": dict(stage.facts),
                "rows": [row.to_dict() for row in stage.rows],
            }
            for stage in self.stages
        ]
        values: dict[str, Any] = _finite(
            {
                "verdict": _verdict(self).lower(),
                "first": self.first,
                "difference": _difference(self.difference),
                "reference": self.reference,
                "candidate": self.candidate,
                "subject": self.subject,
                "seconds": self.seconds,
                "declared": self.declared,
                "notes": self.notes,
                "stages": stages,
            }
        )
        return values


def _difference(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    row, replay = difference.row, difference.replay
    return {
        "stage": difference.stage.id,
        "row": row.to_dict() if row else None,
        "replay": asdict(replay) if replay else None,
    }


def _verdict(report: Report) -> str:
    return report.verdict.name.replace("_", " ")


def _finite(value: Any) -> Any:
    """Replace what JSON has no number for by its name."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def show(report: Report, console: Console) -> None:
    """Print a report on one screen of 80 columns and fewer than 40 lines."""
    verdict = styled(_verdict(report), f"bold {COLOURS[report.verdict]}")
    console.print(verdict, f": {words.VERDICTS[report.verdict]} ({report.seconds:.0f} s)", sep="")
    console.print(f"{report.candidate} against {report.reference}")
    console.print(report.subject)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("stage", "compared", "measure", "figure", "limit", "result"):
        table.add_column(name, justify="right" if name in ("figure", "limit") else "left", no_wrap=name != "compared")
    for stage in report.stages:
        outcome = words.outcome(stage)
        cells = (
            stage.id,
            words.title(stage),
            words.measure(stage),
            words.figure(stage.figure),
            words.limit(stage),
        )
        table.add_row(*cells, styled(outcome, STYLES[outcome]))
    console.print(table)
    if report.first:
        console.print(styled("First difference:", "bold"), report.first, overflow="fold")
    explained: dict[str, list[str]] = {}  # what was not run for one reason is one line
    for stage in report.stages:
        outcome = words.outcome(stage)
        if outcome in ("underpowered", "not run") or (outcome == "FAIL" and stage.id in EXPLAINED):
            explained.setdefault(f"{outcome}: {words.summary(stage)}", []).append(stage.id)
        for said in filter(None, (words.strength(stage) if stage.enough else "", words.unplayed(stage))):
            console.print(f"{stage.id}: {said}.", overflow="fold")
    for why, ids in explained.items():
        _line(console, f"{', '.join(ids)} {why}")
    for text in report.notes:
        console.print(text, overflow="fold")
    if report.declared:
        console.print("Declared differences of the backends", style="bold")
        for known in report.declared[:DECLARED_LINES]:
            _line(console, f"  - {known}")
        if len(report.declared) > DECLARED_LINES:
            console.print(f"  and {len(report.declared) - DECLARED_LINES} more: --json has all")


def _line(console: Console, text: str) -> None:
    console.print(text, overflow="ellipsis", no_wrap=True)


def to_json(report: Report) -> str:
    """Return a report as one JSON object on one line: see `Report.to_dict`."""
    return json.dumps(report.to_dict(), allow_nan=False)


def to_html(report: Report) -> str:
    """Return a report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # else: it is HTML, or no text
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(words=words, plot=plot)
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    return template.render(report=report, verdict=_verdict(report), meaning=words.VERDICTS[report.verdict])
