"""The picture of a range test: an SVG by itself, which follows a reader's light or dark colours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tlx.comparison.range_test import Trial

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 56, 16, 34, 44
STYLE = """
svg { color-scheme: light dark; font: 12px system-ui, sans-serif; background: #fff; color: #1c2430 }
text { fill: currentColor } .axis { stroke: #d5dbe3 } .loss { fill: #b9c2ce } .mark { stroke-width: 1.5 }
.curve { fill: none; stroke: #1d5fae; stroke-width: 2 } .lr { stroke: #b4530a } .steepest { stroke: #7a8594 }
@media (prefers-color-scheme: dark) {
svg { background: #14181e; color: #e6eaf0 } .axis { stroke: #353d49 } .loss { fill: #4c5664 }
.curve { stroke: #7db4f5 } .lr { stroke: #f0a050 } }
"""


def picture(trials: Sequence[Trial], lr: float, steepest: float) -> str:
    """Return the losses (points) and the smoothed loss (line) by the logarithm of the rate, with the suggestion."""
    left, right = math.log10(trials[0].lr), math.log10(trials[-1].lr)
    bottom, top = min(min(t.loss, t.smoothed) for t in trials), _ceiling(trials)
    margin = 0.06 * (top - bottom) or 0.1
    bottom, top = bottom - margin, top + margin

    def x(rate: float) -> float:
        return round(LEFT + (math.log10(rate) - left) / (right - left) * (WIDTH - LEFT - RIGHT), 1)

    def y(loss: float) -> float:
        inside = min(max(loss, bottom), top)
        return round(HEIGHT - BOTTOM - (inside - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM), 1)

    floor = HEIGHT - BOTTOM
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    lines += [f"<title>Loss by learning rate; suggested: {lr:g}</title>", f"<style>{STYLE}</style>"]
    for power in range(math.ceil(left - 1e-6), math.floor(right + 1e-6) + 1):
        at = x(10.0**power)
        lines.append(f'<line class="axis" x1="{at}" x2="{at}" y1="{TOP}" y2="{floor}"/>')
        lines.append(f'<text x="{at}" y="{floor + 16}" text-anchor="middle">1e{power}</text>')
    for part in range(5):
        loss = bottom + margin + (top - bottom - 2 * margin) * part / 4
        lines.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(loss)}" y2="{y(loss)}"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y(loss) + 4}" text-anchor="end">{loss:.3g}</text>')
    lines += [f'<circle class="loss" cx="{x(t.lr)}" cy="{y(t.loss)}" r="2"/>' for t in trials]
    points = " ".join(f"{x(t.lr)},{y(t.smoothed)}" for t in trials)
    lines.append(f'<polyline class="curve" points="{points}"/>')
    for kind, rate, text, height in (("steepest", steepest, "falls fastest", 24), ("lr", lr, f"lr {lr:g}", 10)):
        lines.append(f'<line class="mark {kind}" x1="{x(rate)}" x2="{x(rate)}" y1="{height + 4}" y2="{floor}"/>')
        lines.append(f'<text x="{x(rate)}" y="{height}" text-anchor="middle">{text}</text>')
    lines.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 10}" text-anchor="end">learning rate</text>')
    lines.append(f'<text x="{LEFT}" y="{HEIGHT - 10}">loss of each batch, and smoothed</text></svg>')
    return "\n".join(lines) + "\n"


def _ceiling(trials: Sequence[Trial]) -> float:
    """The highest loss that is shown: a divergence would press all that matters onto the floor."""
    start, low = trials[0].smoothed, min(t.smoothed for t in trials)
    return min(max(t.smoothed for t in trials), start + 0.5 * (start - low) if start > low else 2 * start)
