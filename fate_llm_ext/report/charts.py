"""Line and scatter charts as inline SVG: no scripts, readable in print (dashes) and in dark mode (CSS classes)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import List, Sequence, Tuple

WIDTH, HEIGHT = 320, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 24
_TICKS = 4


@dataclass(frozen=True)
class Line:
    """One line: ``style`` picks colour and dashes (CSS class ``s0`` to ``s7``)."""

    name: str
    points: Tuple[Tuple[float, float], ...]
    style: int


@dataclass(frozen=True)
class Mark:
    """A point of a scatter chart, and how far it spreads either way: ``style`` picks colour and shape."""

    name: str
    note: str
    x: float
    y: float
    x_spread: float
    y_spread: float
    style: int


@dataclass(frozen=True)
class _Frame:
    """Axes: from values to places on the drawing."""

    width: int
    height: int
    left: int
    bottom: int
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    x_range: Tuple[float, float]
    y_range: Tuple[float, float]

    def place(self, x: float, y: float) -> Tuple[float, float]:
        (x_low, x_high), (y_low, y_high) = self.x_range, self.y_range
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (y - y_low) / (y_high - y_low) if y_high > y_low else 0.5
        return (
            self.left + across * (self.width - self.left - _RIGHT),
            self.height - self.bottom - up * (self.height - self.bottom - _TOP),
        )

    def draw(self, x_texts: Sequence[str], y_texts: Sequence[str]) -> List[str]:
        """Grid lines and the ticks' texts."""
        parts = []
        for tick, text in zip(self.y_ticks, y_texts):
            _, y = self.place(self.x_range[0], tick)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{self.width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{self.left - 5}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
        for tick, text in zip(self.x_ticks, x_texts):
            x, y = self.place(tick, self.y_range[0])
            parts.append(f'<text x="{x:.1f}" y="{y + 16:.0f}" text-anchor="middle">{text}</text>')
        return parts


def line_chart(lines: Sequence[Line], y_range: Tuple[float, float], share: bool, x_label: str = "round") -> str:
    """SVG text. ``y_range`` is given so that charts of several parties share their axis."""
    xs = [x for line in lines for x, _ in line.points]
    x_ticks, y_ticks = _x_ticks(min(xs), max(xs)), nice_ticks(*y_range)
    frame = _Frame(WIDTH, HEIGHT, _LEFT, _BOTTOM, x_ticks, y_ticks, _hull(x_ticks, xs), _hull(y_ticks, y_range))
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">']
    parts += frame.draw([f"{tick:g}" for tick in x_ticks], [number(tick, share) for tick in y_ticks])
    parts.append(f'<text x="0" y="{HEIGHT - 8}">{escape(x_label)}</text>')
    for line in lines:
        parts += _draw(line, [frame.place(x, y) for x, y in line.points], share)
    return "".join([*parts, "</svg>"])


def scatter_chart(marks: Sequence[Mark], title: str, x_label: str, y_label: str, share: bool) -> str:
    """SVG text: a mark for each point, of equal names joined by a line in the order given; x is a share from 0 on.

    Args:
        title: what a screen reader says of the whole.
        share: whether y is one, too.
    """
    lows, highs = [one.y - one.y_spread for one in marks], [one.y + one.y_spread for one in marks]
    x_range, y_range = (0.0, max(one.x + one.x_spread for one in marks)), (min(lows), max(highs))
    x_ticks, y_ticks = nice_ticks(*x_range), nice_ticks(*y_range)
    width, height = 2 * WIDTH, 2 * HEIGHT
    frame = _Frame(width, height, 58, 44, x_ticks, y_ticks, _hull(x_ticks, x_range), _hull(y_ticks, y_range))
    text = escape(title)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{text}" xmlns="http://www.w3.org/2000/svg">']
    parts.append(f"<title>{text}</title>")
    parts += frame.draw([number(tick, True) for tick in x_ticks], [number(tick, share) for tick in y_ticks])
    parts.append(f'<text x="{width // 2}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>')
    middle = height // 2
    parts.append(f'<text transform="rotate(-90 10 {middle})" x="10" y="{middle}" text-anchor="middle">')
    parts.append(f"{escape(y_label)}</text>")
    for name in dict.fromkeys(one.name for one in marks):
        own = [one for one in marks if one.name == name]
        path = " ".join("{:.1f},{:.1f}".format(*frame.place(one.x, one.y)) for one in own)
        parts.append(f'<polyline class="s{own[0].style % 8}" points="{path}"/>')
        for one in own:
            parts += _draw_mark(one, frame, share)
    return "".join([*parts, "</svg>"])


def shape(style: int, x: float, y: float) -> str:
    """A mark's outline as a path: circle, square, triangle or diamond, two of each kind apart in colour."""
    r = 4.5
    outlines = (
        f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z",
        f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
        f"M{x:.1f} {y - r:.1f}l{r} {2 * r}h{-2 * r}z",
        f"M{x:.1f} {y - r - 1:.1f}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}z",
    )
    return outlines[style % len(outlines)]


def _draw_mark(mark: Mark, frame: _Frame, share: bool) -> List[str]:
    x, y = frame.place(mark.x, mark.y)
    style = mark.style % 8
    parts = []
    for across, up in ((mark.x_spread, 0.0), (0.0, mark.y_spread)):
        if across or up:
            x1, y1 = frame.place(max(frame.x_range[0], mark.x - across), mark.y - up)
            x2, y2 = frame.place(mark.x + across, mark.y + up)
            parts.append(f'<line class="bar b{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    said = f"{mark.name} {mark.note}".strip()
    tip = escape(f"{said}: {number(mark.y, share)}, attack success {number(mark.x, True)}")
    parts.append(f'<path class="m{style}" d="{shape(mark.style, x, y)}"><title>{tip}</title></path>')
    if mark.note:
        end = x > frame.width - 70
        at, anchor = (x - 8, "end") if end else (x + 8, "start")
        parts.append(f'<text x="{at:.1f}" y="{y - 6:.1f}" text-anchor="{anchor}">{escape(mark.note)}</text>')
    return parts


def _hull(ticks: Sequence[float], values: Sequence[float]) -> Tuple[float, float]:
    return min(*values, ticks[0]), max(*values, ticks[-1])


def nice_ticks(low: float, high: float) -> List[float]:
    """Round numbers that enclose a range."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def number(value: float, share: bool) -> str:
    """A value for an axis or a tooltip."""
    if share:
        return f"{100 * value:.3g} %"
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * scale:
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"


def _x_ticks(low: float, high: float) -> List[float]:
    """Whole numbers, at most about eight."""
    first, last = math.floor(low), math.ceil(high)
    step = max(1, math.ceil((last - first) / 8))
    return [float(value) for value in range(first, last + 1, step)]


def _draw(line: Line, places: List[Tuple[float, float]], share: bool) -> List[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline class="s{line.style % 8}" points="{path}"/>']
    for (x, y), (round_, value) in zip(places, line.points):
        tip = escape(f"{line.name}, {round_:g}: {number(value, share)}")
        parts.append(
            f'<circle class="s{line.style % 8}" cx="{x:.1f}" cy="{y:.1f}" r="2.4"><title>{tip}</title></circle>'
        )
    return parts
