"""Charts as SVG: the curves of training, and how far probabilities can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tlx.errors import printable
from tlx.runs.report.figures import Bin

POINTS = 400  # of a curve; of more epochs, evenly spaced ones
WIDTH, HEIGHT = 520, 250  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 28


@dataclass(frozen=True, slots=True)
class Curve:
    """Values over epochs, which are counted from 1; None where there is none."""

    name: str
    colour: str  # a class of the page's style: "c0" to "c7"
    values: Sequence[float | None]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at the start of an epoch, with a name."""

    epoch: int
    name: str


def curves(
    title: str, lines: Sequence[Curve], marks: Sequence[Mark] = (), best: int | None = None, percent: bool = False
) -> str:
    """Draw curves over epochs, with the phases' boundaries and the epoch that was kept; "" where there is no value."""
    epochs = max((len(line.values) for line in lines), default=0)
    known = [v for line in lines for v in line.values if v is not None and math.isfinite(v)]
    if not known:
        return ""
    low, high = min(known), max(known)
    ticks = _ticks(low, high, 1.0 if percent else math.inf)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def x(epoch: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((epoch - 1) / (epochs - 1) if epochs > 1 else 0.5)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low or 1))

    parts = [f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>' for t in ticks]
    parts += [
        f'<text class="tick" x="{LEFT - 7}" y="{y(t) + 4:.1f}" text-anchor="end">{_number(t, percent)}</text>'
        for t in ticks
    ]
    for epoch in _epoch_ticks(epochs):
        parts.append(f'<text class="tick" x="{x(epoch):.1f}" y="{HEIGHT - 9}" text-anchor="middle">{epoch}</text>')
    for mark in marks:
        at = x(mark.epoch - 0.5) if mark.epoch > 1 else LEFT
        if mark.epoch > 1:
            parts.append(f'<line class="phase" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 8}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="mark" x="{at + 4:.1f}" y="{TOP - 10}">{_name(mark.name, 18)}</text>')
    if best is not None and epochs > 1:
        parts.append(f'<line class="best" x1="{x(best):.1f}" x2="{x(best):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    for line in lines:
        parts += _curve(line, x, y)
    label = f"{title} by epoch, {', '.join(line.name for line in lines)}"
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_name(label, 200)}">'
    return head + "".join(parts) + "</svg>"


def _curve(line: Curve, x, y) -> list[str]:  # type: ignore[no-untyped-def]
    shown = [(epoch, v) for epoch, v in enumerate(line.values, 1) if v is not None and math.isfinite(v)]
    step = -(-len(shown) // POINTS) if shown else 1
    shown = shown[::step] + ([] if (len(shown) - 1) % step == 0 else shown[-1:])
    dash = " dashed" if line.dashed else ""
    if len(shown) < 2:
        return [f'<circle class="dot {line.colour}" cx="{x(e):.1f}" cy="{y(v):.1f}" r="4"/>' for e, v in shown]
    points = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in shown)
    return [f'<polyline class="line {line.colour}{dash}" points="{points}"/>']


def _ticks(low: float, high: float, most: float) -> list[float]:
    """Return about five round values around a range."""
    span = high - low or abs(high) or 1.0
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    values = [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]
    return [v for v in values if v <= most + 1e-9] or values


def _epoch_ticks(epochs: int) -> list[int]:
    step = next(s * 10**p for p in range(9) for s in (1, 2, 5) if epochs / (s * 10**p) <= 8)
    return sorted({1, *range(step, epochs + 1, step)} - ({step} if step - 1 < step / 2 and step > 1 else set()))


def _number(value: float, percent: bool) -> str:
    return f"{100 * value:.4g} %" if percent else f"{value:.4g}"


def _name(text: str, most: int) -> str:
    text = printable(text)
    return escape(text if len(text) <= most else f"{text[: most - 1]}…")


def reliability_chart(series: Sequence[tuple[str, Sequence[Bin]]]) -> str:
    """Draw the accuracy of bins over their mean probability; dots grow with the images of a bin.

    `series` are (a class of the page's style, bins).
    """
    side, pad, edge = 360, 40, 20

    def at(share: float) -> float:
        return pad + (side - pad - edge) * share

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        place, flipped = at(tick), side - at(tick)
        parts.append(f'<line class="grid" x1="{pad}" x2="{side - edge}" y1="{flipped:.1f}" y2="{flipped:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{pad - 6}" y="{flipped + 4:.1f}" text-anchor="end">{100 * tick:g} %</text>'
        )
        parts.append(
            f'<text class="tick" x="{place:.1f}" y="{side - pad + 18}" text-anchor="middle">{100 * tick:g} %</text>'
        )
    ends = f'x1="{at(0)}" y1="{side - at(0)}" x2="{at(1)}" y2="{side - at(1)}"'
    parts.append(f'<line class="ideal" {ends}/>')
    for colour, bins in series:
        total = sum(one.images for one in bins) or 1
        points = " ".join(f"{at(one.confidence):.1f},{side - at(one.accuracy):.1f}" for one in bins)
        parts.append(f'<polyline class="line thin {colour}" points="{points}"/>')
        for one in bins:
            radius = 2.5 + 7 * math.sqrt(one.images / total)
            title = f"{one.images} images: mean probability {one.confidence:.1%}, correct {one.accuracy:.1%}"
            where = f'cx="{at(one.confidence):.1f}" cy="{side - at(one.accuracy):.1f}" r="{radius:.1f}"'
            parts.append(f'<circle class="dot {colour}" {where}><title>{title}</title></circle>')
    label = "The accuracy of the predictions over their probability"
    return f'<svg class="square" viewBox="0 0 {side} {side}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
