"""A comparison of two stacks as one screen, as JSON and as one self-contained page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tlx.proof.result import Report, Row, Stage, Verdict

TELLING = ("P0", "P8", "P10")  # where they fail, the figure needs its summary
DECLARED_LINES = 6  # on the screen; JSON and the page have all
STYLES = {"pass": "green", "FAIL": "bold red", "underpowered": "yellow", "advisory": "cyan", "not run": "dim"}
VERDICTS = {
    Verdict.EQUAL: ("EQUAL", "green", "every stage that ran is within its limit"),
    Verdict.DIFFERENT: ("DIFFERENT", "red", "the two do not compute the same"),
    Verdict.NOT_COMPARABLE: ("NOT COMPARABLE", "magenta", "the two were not asked for the same"),
    Verdict.UNDERPOWERED: ("UNDERPOWERED", "yellow", "too few runs to show either"),
}


def show(report: Report, console: Console) -> None:
    """Print a report on one screen of 80 columns and fewer than 40 lines."""
    word, style, meaning = VERDICTS[report.verdict]
    console.print(f"[bold {style}]{word}[/]: {meaning} ({report.seconds:.0f} s)", highlight=False)
    console.print(f"{report.candidate} against {report.reference}", markup=False, highlight=False)
    console.print(report.subject, markup=False, highlight=False)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("stage", "compared", "measure", "figure", "limit", "result"):
        table.add_column(name, justify="right" if name in ("figure", "limit") else "left", no_wrap=name != "compared")
    for stage in report.stages:
        word = outcome(stage)
        cells = (stage.id, stage.title, stage.measure, figure(stage.figure), limit(stage))
        table.add_row(*map(escape, cells), f"[{STYLES[word]}]{word}[/]")
    console.print(table)
    if report.first:
        _line(console, f"[bold]First difference:[/] {escape(report.first)}", "fold")
    for stage in report.stages:
        told = outcome(stage) in ("underpowered", "not run") or (stage.passed is False and stage.id in TELLING)
        if told and stage.summary:
            _line(console, f"{stage.id} {outcome(stage)}: {escape(stage.summary)}")
    if report.declared:
        console.print("[bold]Declared differences of the stacks[/]")
        for known in report.declared[:DECLARED_LINES]:
            _line(console, f"  - {escape(known)}")
        if len(report.declared) > DECLARED_LINES:
            console.print(f"  and {len(report.declared) - DECLARED_LINES} more: --json has all", highlight=False)


def screen(report: Report) -> str:
    """Return the screen as text: coloured where stdout is a terminal."""
    console = Console()
    with console.capture() as captured:
        show(report, console)
    return captured.get().rstrip()


def to_json(report: Report) -> str:
    """Return a report as one JSON object; infinities and NaN are the texts "inf" and "nan"."""
    return json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)


def to_html(report: Report) -> str:
    """Return a report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.globals.update(outcome=outcome, figure=figure, limit=limit, plot=plot)
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    word, _, meaning = VERDICTS[report.verdict]
    return template.render(report=report, word=word, meaning=meaning)


def _line(console: Console, text: str, overflow: str = "ellipsis") -> None:
    console.print(text, overflow=overflow, no_wrap=overflow == "ellipsis", highlight=False)  # type: ignore[arg-type]


def outcome(stage: Stage) -> str:
    """Return a stage's result as a word, so that nothing hangs on its colour."""
    if stage.figure is None and stage.passed is None:
        return "not run"
    if stage.passed is None:
        return "underpowered" if stage.id == "P10" else "advisory"
    return "pass" if stage.passed else "FAIL"


def figure(value: float | None) -> str:
    """Return an error in two digits."""
    if value is None:
        return "-"
    if value and not 0.01 <= abs(value) < 1000 and math.isfinite(value):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.2g}" if abs(value) < 100 or not math.isfinite(value) else f"{value:.0f}"


def limit(stage: Stage) -> str:
    """Return what a stage's figure is held against."""
    if stage.limit is not None:
        return f"{stage.limit:g}".replace("e-0", "e-")
    return "-" if stage.passed is None else "exact"


@dataclass(frozen=True, slots=True)
class Mark:
    """One row in a plot, in the plot's units."""

    x: float
    y: float
    row: Row


@dataclass(frozen=True, slots=True)
class Plot:
    """Errors on a logarithmic axis, in order of execution; zeros lie below the axis, what has no size above it."""

    marks: tuple[Mark, ...]
    ticks: tuple[tuple[float, str], ...]  # height, label
    limit: float | None
    width: int = 720
    height: int = 220
    left: int = 56


def plot(stage: Stage) -> Plot | None:
    """Lay out a stage's rows; None where there are no errors to draw."""
    sizes = [row.error for row in stage.rows if 0 < row.error < math.inf]
    if not any(row.error for row in stage.rows):
        return None
    edges = [*sizes, stage.limit] if stage.limit else sizes
    low, high = _decades(edges)
    shape = Plot((), (), None)
    top, bottom = 28.0, shape.height - 34.0

    def y(error: float) -> float:
        if error == 0:
            return shape.height - 14.0
        if not math.isfinite(error):
            return 12.0
        return bottom - (math.log10(error) - low) / (high - low) * (bottom - top)

    step = (shape.width - shape.left - 24) / max(1, len(stage.rows) - 1)
    marks = tuple(Mark(shape.left + 12 + i * step, y(row.error), row) for i, row in enumerate(stage.rows))
    every = -(-(high - low) // 6)
    ticks = [(y(10.0**decade), f"1e{decade}") for decade in range(low, high + 1, every)]
    ticks += [(y(0.0), "0")] * any(row.error == 0 for row in stage.rows)
    ticks += [(y(math.inf), "inf")] * any(not math.isfinite(row.error) for row in stage.rows)
    return Plot(marks, tuple(ticks), y(stage.limit) if stage.limit else None)


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Return the powers of ten between which all values lie, at least one apart."""
    if not values:
        return -1, 0
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)
