"""Line charts as inline SVG: no scripts, readable in print (dashes) and in dark mode (CSS classes)."""

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


def line_chart(lines: Sequence[Line], y_range: Tuple[float, float], share: bool, x_label: str = "round") -> str:
    """SVG text. ``y_range`` is given so that charts of several parties share their axis."""
    xs = [x for line in lines for x, _ in line.points]
    x_ticks = _x_ticks(min(xs), max(xs))
    x_low, x_high = min(*xs, x_ticks[0]), max(*xs, x_ticks[-1])
    y_ticks = nice_ticks(*y_range)
    y_low, y_high = min(y_ticks[0], y_range[0]), max(y_ticks[-1], y_range[1])

    def place(x: float, y: float) -> Tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (y - y_low) / (y_high - y_low) if y_high > y_low else 0.5
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">']
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{number(tick, share)}</text>')
    for tick in x_ticks:
        x, _ = place(tick, y_low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="0" y="{HEIGHT - 8}">{escape(x_label)}</text>')
    for line in lines:
        parts += _draw(line, [place(x, y) for x, y in line.points], share)
    return "".join([*parts, "</svg>"])


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
