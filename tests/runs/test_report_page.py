"""The page of a run in a real browser: whole, quiet, readable at any width and in the dark, and usable by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest

from support.pages import CONTRAST, HOSTILE, Seen, contents, opened
from tlx.runs.report.comparison import comparison_of
from tlx.runs.report.contents import Contents
from tlx.runs.report.page import page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SECTIONS = (
    *("verdict", "curves", "confusion", "classes", "wrong", "unsure", "trust", "map", "batch", "recipe"),
    *("groups", "frozen", "speed"),
)
MADE = contents()
INK = """() => {
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [points.width, points.height];
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(points, 0, 0);
  return context.getImageData(0, 0, copy.width, copy.height).data.reduce((sum, value) => sum + value);
}"""


def full(made: Contents = MADE) -> str:
    """A page with a map and explanations, as the merge will wire them."""
    judged = made.parts["test"]
    angles = judged.predictions * 2.0 + np.random.default_rng(1).normal(size=len(judged)) / 5
    heat = np.linspace(0, 1, 49).reshape(7, 7)
    return page(made, np.stack([np.cos(angles), np.sin(angles)], 1), dict.fromkeys(range(len(judged)), heat))


@pytest.fixture(scope="module")
def html() -> str:
    return full()


@pytest.fixture(scope="module")
def tab(browser: Browser, html: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    with opened(browser, html, tmp_path_factory.mktemp("page")) as seen:
        yield seen


@pytest.fixture
def seen(tab: Seen) -> Iterator[Seen]:
    tab.page.reload()
    yield tab
    assert not tab.said and not tab.asked


def test_every_section_is_there_and_nothing_is_fetched(seen: Seen) -> None:
    shown = seen.page.eval_on_selector_all("header[id], section[id]", "nodes => nodes.map((node) => node.id)")
    assert sorted(shown) == sorted(SECTIONS)
    targets = seen.page.eval_on_selector_all("nav a", "links => links.map((link) => link.hash.slice(1))")
    assert {*targets} == {*SECTIONS} - {"verdict"}
    assert seen.page.locator("#wrong .heat").count() == seen.page.locator("#wrong figure").count() > 10
    assert seen.page.locator("svg.chart .phase").count() == 2, "a boundary in each chart"
    text = seen.page.inner_text("#verdict")
    assert (
        "of 120 test images are classified correctly" in text.replace("\u00a0", " ") and "95\u00a0% confidence" in text
    )
    assert seen.page.inner_text("#recipe tbody tr:has-text('lr') td") == "0.02"


def test_a_cell_shows_its_photos_by_click_and_by_key(seen: Seen) -> None:
    cell, shown = seen.page.locator('[data-cell="0,1"]'), seen.page.locator("#cell")
    assert shown.is_hidden()
    cell.click()
    count = int(cell.inner_text())
    assert f"ant taken for bee: {count} image" in shown.inner_text() and shown.locator("figure").count() == min(
        count, 6
    )
    assert shown.locator("figure").first.inner_text().startswith("ant\n→ bee")
    picture = shown.locator(".pic").first
    assert "data:image/" in picture.evaluate("node => getComputedStyle(node).backgroundImage")
    seen.page.keyboard.press("ArrowRight")
    seen.page.keyboard.press("ArrowDown")
    seen.page.keyboard.press("Enter")
    assert "bee taken for cat" in shown.inner_text()
    assert cell.get_attribute("aria-pressed") == "false"
    seen.page.keyboard.press("Enter")
    assert shown.is_hidden()


def test_the_table_of_classes_sorts_by_each_column(seen: Seen) -> None:
    def column(place: int) -> list[float]:
        return list(map(float, seen.page.locator(f"#classes tbody td:nth-child({place})").all_inner_texts()))

    for place in (2, 4):
        head = seen.page.locator(f"#classes thead th:nth-child({place}) button")
        head.click()
        assert column(place) == sorted(column(place))
        head.press("Enter")
        assert column(place) == sorted(column(place), reverse=True)
    assert seen.page.locator("#classes th[aria-sort=descending]").inner_text().strip() == "F1"


def test_the_map_tells_what_lies_under_the_pointer_and_goes_by_keys(seen: Seen) -> None:
    canvas, tip = seen.page.locator("#points"), seen.page.locator("#tip")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    at, row = seen.page.evaluate("[data.map.at.slice(0, 2), data.map.rows[0]]")
    x, y = 14 + at[0] * (box["width"] - 28), 14 + (1 - at[1]) * (box["height"] - 28)
    seen.page.mouse.move(box["x"] + x, box["y"] + y)
    judged = MADE.parts["test"]
    assert (
        tip.is_visible()
        and MADE.classes[judged.labels[row]] in tip.inner_text()
        and f"{row:05}.jpg" in tip.inner_text()
    )
    assert "data:image/" in tip.locator(".pic").evaluate("node => getComputedStyle(node).backgroundImage")
    seen.page.mouse.move(box["x"] + 2, box["y"] + box["height"] + 200)
    assert tip.is_hidden()
    canvas.focus()
    seen.page.keyboard.press("ArrowRight")
    before = tip.inner_text()
    seen.page.keyboard.press("ArrowRight")
    assert tip.is_visible() and tip.inner_text() != before
    seen.page.keyboard.press("Escape")
    assert tip.is_hidden()
    whole = seen.page.evaluate(INK)
    seen.page.locator("#legend button").first.click()
    assert seen.page.evaluate(INK) < 0.8 * whole, "the other classes fade"


def test_a_curve_tells_the_figures_under_the_pointer_and_goes_by_keys(seen: Seen) -> None:
    figure = seen.page.locator("[data-chart='1']")
    figure.scroll_into_view_if_needed()
    box = figure.locator("svg").bounding_box()
    seen.page.mouse.move(box["x"] + box["width"] - 15, box["y"] + 60)
    assert figure.locator("output").inner_text() == "epoch 6: training 86.7 %, validation 85.0 %"
    figure.focus()
    seen.page.keyboard.press("ArrowLeft")
    assert figure.locator("output").inner_text().startswith("epoch 5:")


LONG = [f"class {number}" for number in range(1000)]
PAGES: dict[str, Any] = {
    "full": full,
    "hostile": lambda: full(contents(HOSTILE)),
    "1,000 classes": lambda: full(contents(LONG, 1500)),
    "several": lambda: comparison_of([contents(), contents(), contents(HOSTILE[:3])]),
}


@pytest.mark.parametrize("name", PAGES)
def test_no_page_is_wider_than_the_window_and_all_text_can_be_read(name: str, browser: Browser, tmp_path: Path) -> None:
    html = PAGES[name]()
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for width, scheme in zip((1400, 420), schemes if name != "full" else schemes[::-1], strict=True):
        with opened(browser, html, tmp_path, width=width, scheme=scheme) as seen:
            if name != "several":
                seen.page.locator("[data-cell]").nth(1).click()
            assert seen.page.evaluate("document.documentElement.scrollWidth") == width
            count, low = seen.page.evaluate(CONTRAST)
            assert count > 100 and not low, (width, scheme)
            assert not seen.said and not seen.asked
            assert seen.page.evaluate("window.hacked") is None
            assert "\u202e" not in seen.page.inner_text("body")


def test_a_tap_on_a_phone_shows_a_point(browser: Browser, html: str, tmp_path: Path) -> None:
    with opened(browser, html, tmp_path, width=420, touch=True) as seen:
        seen.page.locator("#points").scroll_into_view_if_needed()
        box = seen.page.locator("#points").bounding_box()
        at = seen.page.evaluate("data.map.at.slice(0, 2)")
        x, y = 14 + at[0] * (box["width"] - 28), 14 + (1 - at[1]) * (box["height"] - 28)
        seen.page.touchscreen.tap(box["x"] + x, box["y"] + y)
        tip = seen.page.locator("#tip")
        assert tip.is_visible() and tip.bounding_box()["x"] + tip.bounding_box()["width"] <= 420


def test_without_scripts_everything_but_the_cells_and_the_map_is_there(
    browser: Browser, html: str, tmp_path: Path
) -> None:
    with opened(browser, html, tmp_path, script=False) as seen:
        assert seen.page.locator("#wrong .pic").first.is_visible() and seen.page.locator("svg.chart").count() == 2
        assert "Choose a cell" not in seen.page.inner_text("#confusion")


def test_several_runs_are_laid_over_each_other(browser: Browser, tmp_path: Path) -> None:
    one, other = contents(), contents(epochs=3, recipe={"model": "resnet18", "lr": 0.5, "optimizer": "adam"})
    with opened(browser, comparison_of([one, other]), tmp_path) as seen:
        assert seen.page.locator("svg.chart").count() == 4
        assert seen.page.locator("svg.chart").first.locator("polyline").count() == 2
        assert "optimizer" in seen.page.inner_text("#recipe") and "adam" in seen.page.inner_text("#recipe")
        assert "tested on the same 120 images" in seen.page.inner_text("#together")
        assert not seen.said and not seen.asked
