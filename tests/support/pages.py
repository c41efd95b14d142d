"""Contents of pages that no run made, and what a real browser says of a page."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from tlx.runs.facts import Facts
from tlx.runs.report.contents import Contents, Sample
from tlx.runs.report.judged import Judged
from tlx.runs.report.summary import Summary, summary_of
from tlx.runs.table import measured

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "\u202egnirts",
    "two\nlines \x1b[31m",
    "w" * 300,
    "</style><img src=x onerror='window.hacked = 1'>",
    '" onclick="window.hacked=1',
    "<!--<script></script x ]]>&amp;${1}`",
]


def result(epochs: int = 6, phases: Sequence[str] = ("head", "full"), **changed: Any) -> dict[str, Any]:
    """A result as result.json holds it."""
    history = [
        {
            "epoch": epoch + 1,
            "phase": phases[epoch * len(phases) // epochs],
            "train_loss": 2 / (1 + epoch),
            "train_accuracy": 1 - 0.8 / (1 + epoch),
            "train_images": 1234,
            "val_loss": 2.2 / (1 + epoch),
            "val_accuracy": 1 - 0.9 / (1 + epoch),
            "val_images": 100,
            "lr": [0.1],
            "seconds": 1.5,
            "best": True,
        }
        for epoch in range(epochs)
    ]
    group = {"epoch": 1, "tensors": 4, "parameters": 5000, "weight_decay": 0.0005, "norm": "running"}
    rows = [
        {**group, "phase": phase, "group": name, "lr": lr, "state": "frozen" if lr is None else "trained"}
        for phase in phases
        for name, lr in (("backbone", None), ("head", 0.01))
    ]
    return {
        **{"backend": "torch", "strategy": "head_then_full", "test_accuracy": 0.5, "val_accuracy": 0.6},
        **{"best_epoch": epochs, "epochs_run": epochs, "history": history, "trainable_parameters": 5000},
        **{"total_parameters": 11_000_000, "train_images_per_second": 820.5, "wall_seconds": 75.0},
        **{"versions": {"python": "3.10.13", "torch": "2.14.1"}, "notes": ["a note"], "groups": rows},
        "calibration": {"temperature": 1.8, "ece": 0.09, "ece_calibrated": 0.03},
        "frozen": [{"phase": phases[0], "epoch": 1, "arrays": 3, "numbers": 6240, "sha256": "ab" * 32}],
        "recipe": {"model": "resnet18", "strategy": "head_then_full", "lr": 0.02, "device": "cpu", "weights": "none"},
        **changed,
    }


def summary(**changed: Any) -> Summary:
    return summary_of(Facts("result.json", result(**changed), ""))


def judged(images: int, classes: int, *, seed: int = 0, side: int = 32, skill: float = 1.0) -> Judged:
    """Predictions of a model of some skill, on pictures of noise."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, images)
    logits = random.normal(size=(images, classes))
    logits[np.arange(images), labels] += skill
    first, probability, loss, margin = measured(logits, labels)
    calibrated = measured(logits / 1.8, labels)[1]

    def picture(row: int) -> Image.Image:
        pixels = np.random.default_rng(row).integers(0, 256, (side, side, 3), np.uint8)
        return Image.fromarray(pixels)

    def name(row: int) -> str:
        return f"photos/test/{row:05}.jpg"

    return Judged(labels, first, probability, loss, margin, calibrated, name, picture)


def contents(
    classes: Sequence[str] = ("ant", "bee", "cat"),
    images: int = 120,
    *,
    parts: Sequence[str] = ("test",),
    **changed: Any,
) -> Contents:
    """What a page shows of a run that there never was."""
    made = {part: judged(images, len(classes)) for part in parts}
    samples = [Sample(judged(1, 1).open(row), classes[row % len(classes)], 32) for row in range(12)]  # type: ignore[misc]
    return Contents("runs/made", "photos", 224, classes, summary(**changed), made, lambda: samples)


def words_of(page: str) -> str:
    """The words of a page, without tags."""
    body = page.partition("<main")[2].partition('<script type="application/json"')[0]
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", body).split())).replace("\u00a0", " ")


@dataclass
class Seen:
    """A page in a browser, with what went wrong in it."""

    page: Page
    said: list[str] = field(default_factory=list)  # on the console, and errors
    asked: list[str] = field(default_factory=list)  # of the network


@contextmanager
def opened(
    browser: Browser,
    text: str,
    folder: Path,
    *,
    width: int = 1400,
    scheme: Literal["light", "dark"] = "light",
    script: bool = True,
    touch: bool = False,
) -> Iterator[Seen]:
    """Open a page from a file, as a user does."""
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script, has_touch=touch
    )
    seen = Seen(context.new_page())
    seen.page.set_default_timeout(20_000)
    seen.page.on("console", lambda message: seen.said.append(message.text))
    seen.page.on("pageerror", lambda error: seen.said.append(str(error)))
    own = file.resolve().as_uri()

    def ask(request: Request) -> None:
        if request.url != own:
            seen.asked.append(request.url[:60])

    seen.page.on("request", ask)
    seen.page.goto(own)
    yield seen
    context.close()


# The contrast of each piece of text with what lies behind it: WCAG 2.2, "contrast ratio" and "relative luminance".
CONTRAST = """() => {
  const numbers = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((value, k) => value * a + below[k] * (1 - a));
  const light = (colour) => colour.map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = (node) => {
    const layers = [];
    for (; node; node = node.parentElement) layers.push(numbers(getComputedStyle(node).backgroundColor));
    return layers.reverse().filter((c) => c.length).reduce((below, c) => over(c, below), [255, 255, 255]);
  };
  const low = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement, box = node.getBoundingClientRect();
    if (!walker.currentNode.data.trim() || !box.width || node.closest("script, title")) continue;
    const style = getComputedStyle(node), below = behind(node);
    const colour = over(numbers(node.closest("svg") ? style.fill : style.color), below);
    const [a, b] = [light(colour), light(below)].sort((x, y) => y - x);
    count += 1;
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push(`${walker.currentNode.data.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return [count, low];
}"""
