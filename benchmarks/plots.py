"""Drawings of kept tables, as SVG that reads on light and on dark pages; nothing but the standard library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

__all__ = ["lines", "ranges"]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 300, 60, 210, 16, 46
COLOURS = ("#2f6fb0", "#d98a29", "#4c9a5b", "#a9527f", "#7b6fc0", "#8b8f96", "#b3402a", "#3a9ea5")
GREY = "#808890"
WIDE = 20.0  # largest over smallest value from which an axis is logarithmic
NAMED, ROW = 400, 20  # of the drawing of ranges: width of the names, height of a row


def lines(labels: Sequence[str], columns: Mapping[str, Sequence[float]], x_title: str, y_title: str) -> str:
    """A line a column over the labels, which lie evenly; values must be over 0."""
    every = [value for values in columns.values() for value in values]
    axis = _Axis(min(every), max(every), HEIGHT - BOTTOM, TOP)
    place = _Axis(0, max(len(labels) - 1, 1), LEFT + 14, WIDTH - RIGHT, straight=True)
    parts = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT + 10}" y1="{axis(t):.1f}" y2="{axis(t):.1f}" stroke="{GREY}" '
        f'stroke-opacity=".3"/>{_text(LEFT - 6, axis(t) + 4, _number(t), "end")}'
        for t in axis.ticks()
    ]
    parts += [_text(place(i), HEIGHT - BOTTOM + 18, label, "middle") for i, label in enumerate(labels)]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_title, "middle"))
    parts.append(_text(LEFT - 46, TOP - 4, y_title))
    for number, (name, values) in enumerate(columns.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [(place(i), axis(value)) for i, value in enumerate(values)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        y = TOP + 8 + 18 * number
        parts.append(f'<rect x="{WIDTH - RIGHT + 26}" y="{y - 9}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(WIDTH - RIGHT + 44, y + 1, name))
    return _svg(parts, HEIGHT, f"{y_title} over {x_title}")


def ranges(groups: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """From the smallest to the largest ratio of each row below the title of its group; logarithmic, a line at 1."""
    every = [ends for rows in groups.values() for ends in rows.values()]
    low = min(0.9, *(low for low, _ in every))
    high = max(1.1, *(high for _, high in every))
    axis = _Axis(low, high, NAMED, WIDTH - 20, curved=True)
    bottom = TOP + ROW * (len(every) + len(groups))
    parts = [
        f'<line x1="{axis(t):.1f}" x2="{axis(t):.1f}" y1="{TOP - 4}" y2="{bottom}" stroke="{GREY}" '
        f'stroke-opacity="{1 if t == 1 else 0.3}"/>{_text(axis(t), bottom + 16, _number(t), "middle")}'
        for t in axis.ticks()
    ]
    y = TOP + 8
    for title, rows in groups.items():
        parts.append(f'<g font-weight="bold">{_text(8, y + 4, title)}</g>')
        y += ROW
        for name, (least, most) in rows.items():
            colour = COLOURS[0] if least >= 1 else COLOURS[2] if most <= 1 else COLOURS[5]
            parts.append(_text(NAMED - 10, y + 4, name, "end"))
            start, end = axis(least), axis(most)
            width = max(end - start, 5.0)
            x = (start + end - width) / 2
            parts.append(f'<rect x="{x:.1f}" y="{y - 4}" width="{width:.1f}" height="9" rx="3" fill="{colour}"/>')
            y += ROW
    return _svg(parts, bottom + 26, "ratios, smallest to largest")


class _Axis:
    """Values to places; logarithmic where they lie far apart."""

    def __init__(
        self, low: float, high: float, start: float, end: float, *, straight: bool = False, curved: bool = False
    ) -> None:
        self._log = curved or (not straight and low > 0 and high / low > WIDE)
        if not self._log and not straight:
            low = 0.0
        self.low, self.high, self._start, self._end = low, high if high > low else low + 1, start, end

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log(self.low), math.log(self.high), math.log(value)) if self._log else (self.low, self.high, value)
        )
        return self._start + (self._end - self._start) * (value - low) / (high - low)

    def ticks(self) -> Iterator[float]:
        """About five round numbers within."""
        if self._log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1,) if last - first > 3 else (1, 2, 5)
            yield from (
                step * 10.0**power
                for power in range(first, last + 1)
                for step in steps
                if self.low <= step * 10.0**power <= self.high
            )
            return
        step = 10 ** math.floor(math.log10((self.high - self.low) / 2))
        step = next(step * k for k in (0.5, 1, 2, 5, 10) if (self.high - self.low) / (step * k) <= 6)
        yield from (number * step for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1))


def _number(value: float) -> str:
    return f"{value:g}"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], height: int, title: str) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12" fill="{GREY}">\n<title>{escape(title)}</title>\n{body}\n</svg>\n'
    )
