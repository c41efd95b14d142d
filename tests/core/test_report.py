"""One comparison as a screen, as JSON and as a page that needs nothing else."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from tlx.proof.report import outcome, plot, show, to_html, to_json
from tlx.proof.result import Report, Row, Stage, Verdict

MODULES = ["conv1", "bn1", *(f"layer{i}.{j}.conv{k}" for i in range(1, 5) for j in range(2) for k in (1, 2)), "fc"]


def rows(names: list[str], start: float, growth: float, limit: float) -> tuple[Row, ...]:
    errors = [start * growth**i for i in range(len(names))]
    return tuple(Row(name, error, error <= limit) for name, error in zip(names, errors, strict=True))


def stage(id: str, title: str, found: tuple[Row, ...], limit: float | None, measure: str = "relative L2") -> Stage:
    worst = max(row.error for row in found)
    return Stage(id, title, measure, worst, limit, all(row.passed for row in found), f"{len(found)} compared", found)


CLEAN = Report(
    "torch 2.14.1 (cpu)",
    "oneflow 0.9.0 (cpu)",
    "resnet18, strategy head_then_full, 64 px, digits, seed 0",
    Verdict.EQUAL,
    (
        stage("P0", "manifest", rows(["recipe", "architecture"], 0, 1, 0), None, "fields that differ"),
        stage("P1", "weights", rows(MODULES, 0, 1, 0), None, "bytes that differ"),
        stage("P2", "data of an epoch", rows([f"batch {i}" for i in range(6)], 0, 1, 0), None, "bytes that differ"),
        stage("P3", "evaluation, float64", rows(MODULES, 1e-16, 1.1, 1e-10), 1e-10),
        stage("P4", "forward and backward, float64", rows(MODULES, 2e-16, 1.2, 1e-10), 1e-10),
        stage("P5", "one update, float64", rows(["sgd backbone", "sgd head"], 0, 1, 1e-12), 1e-12),
        stage("P6", "trajectory, float64", rows([f"step {i}" for i in range(1, 49)], 1e-16, 1.08, 1e-9), 1e-9),
        stage("P7", "metrics", rows(["correct of 360"], 0, 1, 0), None, "counts that differ"),
        stage("P8", "one float32 step", rows(["float32 over torch's own"], 1.3, 1, 10), 10, "times the envelope"),
        Stage("P9", "float32 loss curve", "relative", 3.1e-2, None, None, "advisory: float32 training is chaotic"),
        Stage("P10", "final accuracy", "smallest margin shown", None, None, None, "needs --seeds 5 or more"),
    ),
    declared=tuple(f"OneFlow rounds constant {i} to float32 in its kernels; tlx hands both the same" for i in range(9)),
    seconds=141.2,
)
BROKEN = (Row("bn1", 3e-3, False, "eps 1e-3 < 1e-5?"), Row("layer1.0.<b>conv1</b>", math.inf, False, "NaN on one side"))
DIFFERENT = replace(
    CLEAN,
    verdict=Verdict.DIFFERENT,
    stages=(*CLEAN.stages[:3], stage("P3", "evaluation, float64", (Row("conv1", 0.0, True), *BROKEN), 1e-10)),
    first="P3 at bn1 (batch_norm): its input is equal and its output is not; look at eps and the running statistics",
)
REFUSED = replace(
    CLEAN,
    verdict=Verdict.NOT_COMPARABLE,
    stages=(Stage("P0", "manifest", "fields", math.inf, None, False, "recipe.lr: 0.1 and [red]0.2[/red]"),),
    declared=(),
)
UNDERPOWERED = replace(
    CLEAN,
    verdict=Verdict.UNDERPOWERED,
    stages=(*CLEAN.stages[:10], replace(CLEAN.stages[10], figure=0.021, limit=0.005, summary="3 paired seeds")),
)
REPORTS = {"clean": CLEAN, "different": DIFFERENT, "refused": REFUSED, "underpowered": UNDERPOWERED}
VOID = {"meta", "br"}


def screen(report: Report, width: int = 80) -> str:
    shown = io.StringIO()
    show(report, Console(file=shown, width=width))
    return shown.getvalue()


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [80, 100])
def test_the_screen_holds_it_all(name: str, width: int) -> None:
    report = REPORTS[name]
    text = screen(report, width)
    lines = text.splitlines()
    assert len(lines) < 40 and max(map(len, lines)) <= width
    assert lines[0].startswith(report.verdict.name.replace("_", " "))
    for each in report.stages:
        (line,) = (line for line in lines if line.split()[:1] == [each.id] and line.rstrip().endswith(outcome(each)))
        assert each.title.split()[0] in line


def test_the_screen_says_where_the_first_difference_lies_and_what_was_not_run() -> None:
    text = " ".join(screen(DIFFERENT, 100).split())
    assert f"First difference: {DIFFERENT.first}" in text and "inf 1e-10 FAIL" in text
    text = screen(CLEAN)
    assert "P10 not run: needs --seeds 5 or more" in text and "and 3 more" in text and "First difference" not in text
    assert "recipe.lr: 0.1 and [red]0.2[/red]" in screen(REFUSED)


@pytest.mark.parametrize("name", REPORTS)
def test_json_has_every_figure(name: str) -> None:
    report = REPORTS[name]
    values = json.loads(to_json(report), parse_constant=pytest.fail)
    assert values["verdict"] == report.verdict.name.lower().replace("_", " ")
    errors = [float(row["error"]) for each in values["stages"] for row in each["rows"]]
    assert errors == [row.error for each in report.stages for row in each.rows]


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
    assert "url(" not in page.text and "@import" not in page.text
    assert tags.count("table") == tags.count("caption") == 1 + sum(bool(each.rows) for each in report.stages)
    assert all("scope" in attrs for tag, attrs in page.seen if tag == "th")
    assert all(attrs.get("aria-label") for tag, attrs in page.seen if tag == "svg")
    assert tags.count("svg") == sum(plot(each) is not None for each in report.stages)
    assert report.first in page.text and all(known in page.text for known in report.declared)
    for each in report.stages:
        assert each.summary in page.text and all(row.name in page.text for row in each.rows)


def test_marks_lie_in_the_plot_and_grow_upwards() -> None:
    found = (*BROKEN, Row("zero", 0.0, True), Row("small", 1e-16, True))
    drawn = plot(stage("P3", "evaluation", found, 1e-10))
    assert drawn is not None and drawn.limit is not None
    large, infinite, zero, small = (mark.y for mark in drawn.marks)
    assert 0 < infinite < large < drawn.limit < small < zero < drawn.height
    assert all(drawn.left <= mark.x <= drawn.width for mark in drawn.marks)
    nothing = stage("P1", "weights", (Row("w", 0.0, True),), None)
    only_infinite = plot(stage("P1", "weights", (Row("w", math.inf, False),), None))
    assert plot(nothing) is None and only_infinite is not None and len(only_infinite.marks) == 1
