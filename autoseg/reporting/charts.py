"""Charts as inline SVG: lines over progress, intervals, and strips of cases. Colours come from the style sheet."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from autoseg.reporting.markup import Raw, text

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 48, 8, 8, 30
COLOURS = 7
_MOST_POINTS = 240


def line_chart(title: str, series: Mapping[str, Points], *, across: str = "progress of training") -> str:
    """Return a figure with one line per series; x in 0..1 is shown in per cent."""
    drawn = {name: _thinned(points) for name, points in series.items()}
    values = [y for points in drawn.values() for _, y in points]
    if not values:
        return ""
    low, high, ticks = _scale(min(values), max(values))
    parts = [_horizontal(_y(tick, low, high), _tick_text(tick, ticks)) for tick in ticks]
    for percent in (0, 25, 50, 75, 100):
        anchor = "end" if percent == 100 else "middle"
        parts.append(
            f'<text x="{_x(percent / 100):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="{anchor}">{percent} %</text>'
        )
    for index, (name, points) in enumerate(drawn.items()):
        path = " ".join(f"{_x(x):.1f},{_y(y, low, high):.1f}" for x, y in points)
        shape = f'<polyline class="curve c{index % COLOURS}" points="{path}"><title>{text(name)}</title></polyline>'
        if len(points) == 1:
            (x, y) = points[0]
            shape = f'<circle class="f{index % COLOURS}" cx="{_x(x):.1f}" cy="{_y(y, low, high):.1f}" r="3"/>'
        parts.append(shape)
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 2}" text-anchor="middle">{text(across)}</text>')
    return _figure(title, parts, WIDTH, HEIGHT)


def scatter_chart(title: str, points: Mapping[str, tuple[str, float, float]], *, across: str) -> str:
    """Return a figure of {name: (mark, x > 0, y)} with x in powers of ten; a mark is a short text beside its dot.

    Points that no other beats in both, less x and more y, are stressed.
    """
    drawn = {name: point for name, point in points.items() if point[1] > 0 and math.isfinite(point[2])}
    if not drawn:
        return ""
    places = {name: math.log10(x) for name, (_, x, _) in drawn.items()}
    low, high, ticks = _scale(min(y for *_, y in drawn.values()), max(y for *_, y in drawn.values()))
    first, last = min(places.values()), max(places.values())
    margin = max(0.06 * (last - first), 0.08)
    first, last = first - margin, last + margin
    parts = [_horizontal(_y(tick, low, high), _tick_text(tick, ticks)) for tick in ticks]
    for value in _powers(first, last):
        x = _x((math.log10(value) - first) / (last - first))
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{value:g}</text>')
    for name, (mark, value, y) in drawn.items():
        beaten = any(
            other != name and a <= value and b >= y and (a, b) != (value, y) for other, (_, a, b) in drawn.items()
        )
        x, height = _x((places[name] - first) / (last - first)), _y(y, low, high)
        parts.append(
            f'<circle class="{"f6 mark" if beaten else "dot"}" cx="{x:.1f}" cy="{height:.1f}" r="4">'
            f"<title>{text(name)}: {y:.3f} at {value:.4g}</title></circle>"
            f'<text x="{x + 6:.1f}" y="{height - 4:.1f}">{text(mark)}</text>'
        )
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 2}" text-anchor="middle">{text(across)}</text>')
    return _figure(title, parts, WIDTH, HEIGHT)


def legend(names: Sequence[str]) -> str:
    """Return the legend of the series of a line chart."""
    items = "".join(
        f'<span><svg viewBox="0 0 18 10"><line class="curve c{index % COLOURS}" x1="0" x2="18" y1="5" y2="5" '
        f'style="stroke-width:3"/></svg>{text(name)}</span>'
        for index, name in enumerate(names)
    )
    return f'<div class="legend">{items}</div>'


def interval_bar(value: float | None, interval: Sequence[float] | None, low: float, high: float) -> Raw:
    """Return a small inline dot with whiskers on the scale low..high."""
    if value is None:
        return Raw("")
    width, middle = 130, 8

    def place(number: float) -> float:
        return 4 + (width - 8) * (number - low) / max(high - low, 1e-9)

    parts = [f'<line class="grid" x1="0" x2="{width}" y1="{middle}" y2="{middle}"/>']
    if interval:
        parts.append(
            f'<line class="whisker" x1="{place(interval[0]):.1f}" x2="{place(interval[1]):.1f}" '
            f'y1="{middle}" y2="{middle}"/>'
        )
    parts.append(f'<circle class="dot" cx="{place(value):.1f}" cy="{middle}" r="4"/>')
    return Raw(f'<svg class="inline" viewBox="0 0 {width} 16" aria-hidden="true">{"".join(parts)}</svg>')


def strip_chart(title: str, groups: Mapping[str, Sequence[tuple[str, float]]]) -> str:
    """Return a figure with one row per group and one mark per (case, value in 0..1); a bar marks the median."""
    rows, left = 34, 12 + min(150, 7 * max((len(name) for name in groups), default=0))
    width, height = 720, rows * len(groups) + 34
    values = [value for marks in groups.values() for _, value in marks]
    if not values:
        return ""
    low = math.floor(min(values) * 10) / 10 if min(values) < 1 else 0.9
    scale = (width - left - 16) / max(1 - low, 0.1)

    def place(value: float) -> float:
        return left + (value - low) * scale

    parts = []
    step = 0.1 if 1 - low > 0.25 else 0.05
    for index in range(round((1 - low) / step) + 1):
        x = place(low + index * step)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 24}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{low + index * step:.2f}</text>')
    for row, (name, marks) in enumerate(groups.items()):
        centre = 4 + rows * (row + 0.5)
        short = name if len(name) <= 22 else name[:21] + "\N{HORIZONTAL ELLIPSIS}"
        parts.append(f'<text x="{left - 10}" y="{centre + 4:.1f}" text-anchor="end">{text(short)}</text>')
        for index, (case, value) in enumerate(marks):
            y = centre + ((index * 0.618) % 1 - 0.5) * rows * 0.6  # golden-ratio jitter: even, and always the same
            parts.append(
                f'<circle class="mark f{row % COLOURS}" cx="{place(value):.1f}" cy="{y:.1f}" r="3.2">'
                f"<title>{text(case)}: {value:.3f}</title></circle>"
            )
        if marks:
            middle = place(statistics.median(value for _, value in marks))
            parts.append(
                f'<line class="curve c{row % COLOURS}" x1="{middle:.1f}" x2="{middle:.1f}" y1="{centre - 13:.1f}" '
                f'y2="{centre + 13:.1f}" style="stroke-width:2.5"/>'
            )
    return _figure(title, parts, width, height, kind="wide")


def bar(share: float) -> Raw:
    """Return a small inline bar of a share in 0..1."""
    filled = max(1.0, 130 * min(max(share, 0.0), 1.0))
    return Raw(
        '<svg class="inline" viewBox="0 0 130 16" aria-hidden="true">'
        f'<rect class="bar" x="0" y="4" width="{filled:.1f}" height="8" rx="2"/></svg>'
    )


def _figure(title: str, parts: Sequence[str], width: int, height: int, *, kind: str = "small") -> str:
    return (
        f'<figure class="{kind}"><figcaption>{text(title)}</figcaption><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{text(title)}">{"".join(parts)}</svg></figure>'
    )


def _x(share: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * min(max(share, 0.0), 1.0)


def _y(value: float, low: float, high: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)


def _horizontal(y: float, name: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text(name)}</text>'
    )


def _scale(low: float, high: float) -> tuple[float, float, list[float]]:
    """Return rounded ends and about five ticks of a value axis."""
    if high - low < 1e-12:
        low, high = low - max(abs(low) * 0.1, 1e-6), high + max(abs(high) * 0.1, 1e-6)
    raw = (high - low) / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [index * step for index in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def _tick_text(tick: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0]
    if step < 1e-4:
        return f"{tick:.0e}" if tick else "0"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += not math.isclose(step * 10**digits, round(step * 10**digits), rel_tol=1e-6)
    return f"{tick:.{digits}f}"


def _powers(first: float, last: float) -> list[float]:
    """Return round numbers between two powers of ten: at least two, at most about six."""
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        found = [
            digit * 10.0**power
            for power in range(math.floor(first), math.ceil(last) + 1)
            for digit in digits
            if first <= math.log10(digit) + power <= last
        ]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 6)]
    return found


def _thinned(points: Points) -> list[tuple[float, float]]:
    """Return at most 240 points, each the mean of a bin, so that long logs stay small and readable."""
    finite = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(finite) <= _MOST_POINTS:
        return finite
    size = len(finite) / _MOST_POINTS
    bins = [
        finite[int(index * size) : max(int(index * size) + 1, int((index + 1) * size))] for index in range(_MOST_POINTS)
    ]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in bins]
