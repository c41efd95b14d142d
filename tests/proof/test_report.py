"""One comparison as a screen, as JSON and as a page that needs nothing else."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from tlx.console import Console
from tlx.proof import words
from tlx.proof.plot import plot
from tlx.proof.report import Report, show, to_html, to_json
from tlx.proof.result import Difference, Distances, Row, Stage, Verdict

MODULES = ["conv1", "bn1", *(f"layer{i}.{j}.conv{k}" for i in range(1, 5) for j in range(2) for k in (1, 2)), "fc"]


def errors(count: int, start: float, growth: float) -> list[float]:
    return [start * growth**i for i in range(count)]


def outputs(start: float, growth: float) -> tuple[Row, ...]:
    pairs = zip(MODULES, errors(len(MODULES), start, growth), strict=True)
    return tuple(Row(kind="output", path=path, error=error, passed=error <= 1e-10) for path, error in pairs)


def stage(id: str, rows: tuple[Row, ...], limit: float | None, **facts: Any) -> Stage:
    return Stage(id, max(row.error for row in rows), limit, all(row.passed for row in rows), rows, facts)


def numbered(kind: Any, errors: list[float], **facts: Any) -> tuple[Row, ...]:
    return tuple(Row(kind=kind, number=i, error=error, passed=True, **facts) for i, error in enumerate(errors))


WEIGHTS = tuple(Row(kind="weight", path=path, error=0.0, passed=True) for path in MODULES)
BATCHES = tuple(Row(kind="batch", path=f"train/0000/{i:04d}", error=0.0, passed=True) for i in range(6))
FLOAT32 = Distances(1.3e-7, 1e-15, 1e-7, 5e-8, 0, 5, 10.0)
ROUNDING = (
    Row(kind="envelope", path="gradients", error=1.3, passed=True, distances=FLOAT32),
    Row(kind="ratio", path="gradients", error=1.3e8, passed=True, distances=FLOAT32),
)
CLEAN = Report(
    "torch 2.14.1 (cpu)",
    "oneflow 0.9.0 (cpu)",
    "resnet18, strategy head_then_full, 64 px, digits, seed 0",
    Verdict.EQUAL,
    (
        Stage("P0", 0.0, 0, True, (), {"equal": 40}),
        stage("P1", WEIGHTS, None, arrays=len(WEIGHTS)),
        stage("P2", BATCHES, None, batches=6, images=48, served=False),
        stage("P3", outputs(1e-16, 1.1), 1e-10),
        stage("P4", outputs(2e-16, 1.2), 1e-10),
        stage("P5", numbered("update", [0.0, 0.0], path="fc.weight"), 1e-12, optimizer="sgd", updates=4),
        stage("P6", numbered("step", errors(48, 1e-16, 1.08)), 1e-9, steps=48, needed=40),
        stage("P7", numbered("predictions", [0.0]), 0, batches=1),
        stage("P8", ROUNDING, 10, no_bfloat16=["oneflow"]),
        Stage("P9", 3.1e-2, None, None, numbered("step", [3.1e-2], band=2e-2), {"stopped": []}),
        Stage("P10", None, None, None),
    ),
    declared=tuple(f"OneFlow rounds constant {i} to float32 in its kernels; tlx hands both the same" for i in range(9)),
    seconds=141.2,
)
BROKEN = (
    Row(kind="output", path="bn1", error=3e-3, passed=False, flips=2),
    Row(kind="output", path="layer1.0.<b>conv1</b>", error=math.inf, passed=False),
)
FAILED = stage("P3", (Row(kind="output", path="conv1", error=0.0, passed=True), *BROKEN), 1e-10)
DIFFERENT = replace(
    CLEAN,
    verdict=Verdict.DIFFERENT,
    stages=(*CLEAN.stages[:3], FAILED),
    difference=Difference(FAILED, BROKEN[0]),
)
FIELD = Row(kind="field", path="lr", error=math.inf, passed=False, values=("0.1", "[red]0.2[/red]"))
MANIFEST = Stage("P0", 1.0, 0, False, (FIELD,), {"equal": 39})
REFUSED = replace(
    CLEAN,
    verdict=Verdict.NOT_COMPARABLE,
    stages=(MANIFEST,),
    difference=Difference(MANIFEST, FIELD),
    declared=(),
)
FEW_SEEDS = {"pairs": 3, "mean": 0.01, "low": -0.001, "high": 0.021, "level": 90.0, "reading": "few", "least": 5}
UNDERPOWERED = replace(
    CLEAN,
    verdict=Verdict.UNDERPOWERED,
    stages=(
        *CLEAN.stages[:10],
        Stage("P10", 0.021, 0.005, None, numbered("pair", [0.01], values=(0.8, 0.81)), FEW_SEEDS, enough=False),
    ),
)
REPORTS = {"clean": CLEAN, "different": DIFFERENT, "refused": REFUSED, "underpowered": UNDERPOWERED}
VOID = {"meta", "br"}


def screen(report: Report, width: int = 80) -> str:
    shown = io.StringIO()
    show(report, Console(file=shown, width=width))
    return shown.getvalue()


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [80, 100])
def test_the_screen_holds_every_stage(name: str, width: int) -> None:
    report = REPORTS[name]
    text = screen(report, width)
    lines = text.splitlines()
    assert len(lines) < 40 and max(map(len, lines)) <= width
    assert lines[0].startswith(report.verdict.name.replace("_", " "))
    for of in report.stages:
        (line,) = (n for n in lines if n.split()[:1] == [of.id] and n.rstrip().endswith(words.outcome(of)))
        assert words.title(of).split()[0] in line


def test_the_screen_says_where_the_first_difference_lies_and_what_was_not_run() -> None:
    text = " ".join(screen(DIFFERENT, 100).split())
    assert "First difference: In eval mode the first output that differs is that of bn1 (bn1: 3.0e-03)." in text
    assert "inf 1e-10 FAIL" in text
    text = screen(CLEAN)
    assert "P10 not run: --seeds 5 or more" in text and "and 3 more" in text and "First difference" not in text
    assert "lr: 0.1 against [red]0.2[/red]" in screen(REFUSED)
    assert "P10 underpowered: 3 paired seeds" in screen(UNDERPOWERED)


@pytest.mark.parametrize("name", REPORTS)
def test_json_has_every_figure_on_one_line(name: str) -> None:
    report = REPORTS[name]
    text = to_json(report)
    values = json.loads(text, parse_constant=pytest.fail)
    assert "\n" not in text and values["verdict"] == report.verdict.name.lower().replace("_", " ")
    figures = [float(row["error"]) for of in values["stages"] for row in of["rows"]]
    assert figures == [row.error for of in report.stages for row in of.rows]
    assert values["first"] == report.first and (values["difference"] is None) is (report.difference is None)


def test_a_row_in_json_has_the_facts_that_it_has_and_no_others() -> None:
    assert BROKEN[0].to_dict() == {"kind": "output", "path": "bn1", "error": 3e-3, "passed": False, "flips": 2}
    assert ROUNDING[0].to_dict()["distances"]["d32"] == 1.3e-7


class Page(HTMLParser):
    """Collects what a page holds, and that its elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", REPORTS)
def test_the_page_is_whole_and_needs_nothing_else(name: str) -> None:
    report = REPORTS[name]
    page = Page(to_html(report))
    tags = [tag for tag, _ in page.seen]
    assert not page.open and not {"script", "link", "img", "iframe"} & set(tags)
    assert all((attrs.get("href") or "#").startswith("#") and "src" not in attrs for _, attrs in page.seen)
    links = [attrs["href"] for tag, attrs in page.seen if tag == "a"]
    tables = [f"#{attrs['id']}" for tag, attrs in page.seen if tag == "table" and "id" in attrs]
    assert links == tables == [f"#{of.id}-rows" for of in report.stages if of.rows]
    assert "url(" not in page.text and "@import" not in page.text
    assert tags.count("table") == tags.count("caption") == 1 + sum(bool(of.rows) for of in report.stages)
    assert all("scope" in attrs for tag, attrs in page.seen if tag == "th")
    assert all(attrs.get("aria-label") for tag, attrs in page.seen if tag == "svg")
    assert tags.count("svg") == sum(plot(of) is not None for of in report.stages)
    assert report.first in page.text and all(known in page.text for known in report.declared)
    for of in report.stages:
        assert words.summary(of) in page.text
        assert all(words.name(row) in page.text and words.note(row) in page.text for row in of.rows)


def weight(path: str, error: float) -> Row:
    return Row(kind="weight", path=path, error=error, passed=error == 0)


def test_marks_lie_in_the_plot_and_grow_upwards() -> None:
    rows = (*BROKEN, Row(kind="output", path="zero", error=0.0, passed=True))
    drawn = plot(stage("P3", (*rows, Row(kind="output", path="small", error=1e-16, passed=True)), 1e-10))
    assert drawn is not None and drawn.limit is not None
    large, infinite, zero, small = (mark.y for mark in drawn.marks)
    assert 0 < infinite < large < drawn.limit < small < zero < drawn.height
    assert all(drawn.left <= mark.x <= drawn.width for mark in drawn.marks)
    nothing = stage("P1", (weight("w", 0.0),), None)
    only_infinite = plot(stage("P1", (weight("w", math.inf),), None))
    assert plot(nothing) is None and only_infinite is not None and len(only_infinite.marks) == 1


def test_ratios_with_a_limit_each_share_no_axis() -> None:
    (ratios,) = (of for of in CLEAN.stages if of.id == "P8")
    assert plot(ratios) is None and f"{len(ratios.rows)} figures, each in a measure of its own." in to_html(CLEAN)
