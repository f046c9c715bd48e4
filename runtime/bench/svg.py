"""Drawings of times as SVG: no script, no font or file from elsewhere; colours are CSS variables of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from deploykit.runtime.bench.noise import Ratio

__all__ = ["histogram", "intervals", "over_runs", "stacked"]

WIDTH, SIDE = 720, 12
COLOURS = 6  # --c0 to --c5 of the page
TIERS = 3  # heights of the labels over a histogram, so that near ones do not lie on each other


def histogram(values: Sequence[float], marks: Mapping[str, float], *, unit: str = "ms") -> str:
    """Bars of how many values lie where, with labelled lines at ``marks``.

    Bars reach to the 99.5th percentile where a few values lie far beyond; the caption says how many are left out.
    """
    found = np.asarray(values, np.float64)
    low, high = float(found.min()), float(found.max())
    far = float(np.percentile(found, 99.5))
    if high > low and (high - low) > 2 * (far - low) > 0:
        high = far
    high = high if high > low else low + max(abs(low), 1.0) * 0.01
    counts, edges = np.histogram(found, bins=max(5, min(60, round(2 * math.sqrt(len(found))))), range=(low, high))
    top, bottom = 62, 170
    x = _scale(low, high)
    parts = [
        f'<rect class="bar" x="{x(a):.1f}" y="{bottom - (bottom - top) * n / counts.max():.1f}" '
        f'width="{max(x(b) - x(a) - 1, 0.5):.1f}" height="{(bottom - top) * n / counts.max():.1f}">'
        f"<title>{a:.2f} to {b:.2f} {unit}: {n}</title></rect>"
        for n, a, b in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]
    for tier, (name, value) in enumerate(marks.items()):
        if low <= value <= high:
            place, height = x(value), 14 + 16 * (tier % TIERS)
            anchor = "end" if place > WIDTH - 120 else "start"
            parts.append(f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="{height + 2}" y2="{bottom}"/>')
            parts.append(_text(place + (-4 if anchor == "end" else 4), height, f"{name} {value:.2f}", anchor))
    parts += _axis(low, high, bottom, unit)
    beyond = int((found > high).sum())
    caption = f", {beyond} of {len(found)} lie beyond" if beyond else ""
    return _svg(parts, 205, f"distribution of {len(found)} values from {found.min():.2f} {unit}{caption}")


def over_runs(values: Sequence[float], *, unit: str = "ms") -> str:
    """A dot a run, in the order in which they were made: drift and disturbances show here and in no percentile."""
    found = np.asarray(values, np.float64)
    step = -(-len(found) // 2000)  # more dots than that are one colour
    low, high = 0.0, float(np.percentile(found, 99.5)) * 1.1
    x, top, bottom = _scale(0, max(len(found) - 1, 1)), 10, 130
    radius = 1.6 if len(found) > 200 else 3
    dots = [
        f'<circle class="dot" r="{radius}" cx="{x(i):.1f}" cy="{bottom - (bottom - top) * min(v, high) / high:.1f}"/>'
        for i, v in list(enumerate(found.tolist()))[::step]
    ]
    middle = bottom - (bottom - top) * float(np.median(found)) / high
    line = f'<line class="mark" x1="{SIDE}" x2="{WIDTH - SIDE}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
    label = _text(WIDTH - SIDE, middle - 4, f"median {np.median(found):.2f} {unit}", "end")
    axis = [_text(SIDE, bottom + 16, "first run"), _text(WIDTH - SIDE, bottom + 16, f"run {len(found)}", "end")]
    base = f'<line class="axis" x1="{SIDE}" x2="{WIDTH - SIDE}" y1="{bottom}" y2="{bottom}"/>'
    return _svg([*dots, base, line, label, *axis], 155, f"times of {len(found)} runs in their order, from {low:g}")


def stacked(parts: Mapping[str, float], *, unit: str = "ms") -> str:
    """One bar of several shares, with a legend below."""
    total = sum(parts.values()) or 1.0
    x, drawn, legend = float(SIDE), [], []
    for number, (name, value) in enumerate(parts.items()):
        width = (WIDTH - 2 * SIDE) * max(value, 0.0) / total
        share = f"{name} {value:.2f} {unit} ({100 * value / total:.1f} %)"
        colour = f"fill:var(--c{number % COLOURS})"
        drawn.append(
            f'<rect style="{colour}" x="{x:.1f}" y="8" width="{max(width, 0.3):.1f}" height="34">'
            f"<title>{escape(share)}</title></rect>"
        )
        row, column = divmod(number, 3)
        place = SIDE + column * (WIDTH - 2 * SIDE) / 3
        legend.append(f'<rect style="{colour}" x="{place:.1f}" y="{54 + 20 * row}" width="11" height="11"/>')
        legend.append(_text(place + 17, 64 + 20 * row, share))
        x += width
    return _svg([*drawn, *legend], 58 + 20 * -(-len(parts) // 3), "shares of the mean")


def intervals(rows: Mapping[str, Ratio], best: str) -> str:
    """Ratios with their intervals, a line each, beside a line at 1; open intervals are a dot alone."""
    ends = [end for one in rows.values() for end in (one.low, one.high, one.value) if math.isfinite(end)]
    low, high = min(0.9, *(end for end in ends if end > 0)), max(1.1, *ends)
    left, height = 300, 26
    x = _scale(low, high, left=left)
    bottom = 12 + height * len(rows)
    parts = [f'<line class="mark" x1="{x(1):.1f}" x2="{x(1):.1f}" y1="4" y2="{bottom}"/>']
    for number, (name, one) in enumerate(rows.items()):
        y = 18 + height * number
        weight = ' style="font-weight:bold"' if name == best else ""
        parts.append(f'<text class="label"{weight} x="{SIDE}" y="{y + 4}">{escape(name[:46])}</text>')
        if math.isfinite(one.high):
            parts.append(f'<line class="whisker" x1="{x(one.low):.1f}" x2="{x(one.high):.1f}" y1="{y}" y2="{y}"/>')
        dot, told = "bestdot" if name == best else "bar", escape(f"{name}: {one}")
        parts.append(f'<circle class="{dot}" r="5" cx="{x(one.value):.1f}" cy="{y}"><title>{told}</title></circle>')
    parts += _axis(low, high, bottom, "", left=left)
    return _svg(parts, bottom + 36, "ratios of medians to the first line")


def _scale(low: float, high: float, *, left: int = SIDE) -> _Scale:
    return _Scale(low, high, left)


class _Scale:
    """Values to places from left to right."""

    def __init__(self, low: float, high: float, left: int) -> None:
        self._low, self._span, self._left = low, (high - low) or 1.0, left

    def __call__(self, value: float) -> float:
        return self._left + (WIDTH - SIDE - self._left) * (value - self._low) / self._span


def _axis(low: float, high: float, y: int, unit: str, *, left: int = SIDE) -> list[str]:
    """A line with five or so round numbers below."""
    x, span = _scale(low, high, left=left), high - low
    step = 10 ** math.floor(math.log10(span / 4))
    step = next(step * k for k in (1, 2, 5, 10) if span / (step * k) <= 6)
    digits = max(0, -math.floor(math.log10(step)))
    parts = [f'<line class="axis" x1="{left}" x2="{WIDTH - SIDE}" y1="{y}" y2="{y}"/>']
    for number in range(math.ceil(low / step), math.floor(high / step) + 1):
        value = number * step
        parts.append(f'<line class="axis" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{y}" y2="{y + 4}"/>')
        anchor = "end" if x(value) > WIDTH - 40 else "middle" if x(value) > left + 20 else "start"
        parts.append(_text(x(value), y + 18, f"{value:.{digits}f} {unit}".strip(), anchor))
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], height: int, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{"".join(parts)}</svg>'
    )
