"""The page of a comparison, in a real browser."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from comparison.conftest import COMMON
from tlx.comparison.cells import Outcome
from tlx.comparison.choice import entries_of
from tlx.comparison.compare import Comparison, write_page
from tlx.comparison.page import plot
from tlx.comparison.plan import make_plan
from tlx.recipe import Recipe

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Request


def note(asked: list[str], request: Request) -> None:
    asked.append(request.url)


HOSTILE = '<img src=x onerror="document.title=1">\u202e\n'


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    plan = make_plan(Recipe(**COMMON, out=str(tmp_path)), "full,diff_lr,probe", seeds=2, grid={"lr": [0.1, 0.2, 0.3]})
    outcomes = {}
    for number, cell in enumerate(plan.cells):
        outcomes[cell.name] = Outcome("finished", "", 0.5 + 0.03 * number % 0.4, 1.0, 0.5 * 2**number, "data")
    outcomes[plan.cells[3].name] = Outcome("failed", HOSTILE)
    entries = entries_of(plan.candidates, outcomes)
    return Comparison(tmp_path, tuple(entries), (), (HOSTILE,), {plan.cells[3].name: HOSTILE})


def test_the_page_shows_all_and_runs_nothing_that_a_name_says(comparison: Comparison, browser: Browser) -> None:
    path = write_page(comparison)
    schemes: tuple[tuple[Literal["light", "dark"], int], ...] = (("light", 1200), ("dark", 390))
    for scheme, width in schemes:
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        asked: list[str] = []
        page.on("request", partial(note, asked))
        page.goto(path.as_uri())
        assert asked == [path.as_uri()] and page.locator("img").count() == 0 and page.title() != "1"
        assert page.locator("circle").count() == 7 and page.locator("tr").count() == 8
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("tr.best").count() == page.locator("g.best").count() == 1
        assert "<img" in page.inner_text("body") and "\u202e" not in page.content()
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 30)")
        page.close()


def test_one_candidate_and_none_have_a_plot_too(comparison: Comparison) -> None:
    points, across, up = plot(comparison.entries[:1])
    assert len(points) == 1 and len(across) >= 2 and up
    nothing = replace(comparison.entries[0], val_accuracy=None, seconds=None)
    assert plot([nothing]) == ([], [], [])
    write_page(replace(comparison, entries=(nothing,)))
