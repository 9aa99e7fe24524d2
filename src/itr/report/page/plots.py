"""Line plots as inline SVG: a few curves, axes with round numbers, colors from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import pairwise

from itr.report.page.markup import Markup, swatch, tag

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 12, 40
MOST_POINTS = 300
MARKED = 40


@dataclass
class Line:
    """One curve.

    Attributes:
        name: name of its run.
        points: x and y values.
        run: number of its run, which sets the color.
        part: label of the curve, if a run has several.
        dash: dash pattern that distinguishes the parts.
        marks: draw a mark at each point if there are few.
    """

    name: str
    points: Sequence[tuple[float, float]]
    run: int = 0
    part: str = ""
    dash: str = ""
    marks: bool = True


@dataclass
class Axis:
    """An axis: its label, its range, and whether it is logarithmic."""

    label: str
    low: float
    high: float
    log: bool = False
    ticks: list[float] = field(default_factory=list)

    def at(self, value: float) -> float:
        """The position of a value on the axis, from 0 to 1."""
        scale = math.log if self.log else float
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))


def plot(
    title: str, x_label: str, y_label: str, lines: Sequence[Line], log_x: bool = False, zero: bool = False
) -> Markup:
    """A figure with a caption and a legend.

    Args:
        title: title of the figure.
        x_label: label of the x axis.
        y_label: label of the y axis.
        lines: curves; points that are not finite are skipped.
        log_x: make the x axis logarithmic; values that are not positive are skipped.
        zero: start the y axis at 0.
    """
    lines = [replace(line, points=thinned(_finite(line.points, log_x))) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup()
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + ([0.0] if zero else [])
    x, y = axis(x_label, xs, log_x), axis(y_label, ys, False)
    drawn = _grid(x, y) + "".join(_curve(line, x, y) for line in lines)
    description = f"{title}: {y_label} against {x_label}, for {', '.join(dict.fromkeys(line.name for line in lines))}"
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">{drawn}</svg>'
    return tag("figure", tag("figcaption", title), Markup(svg), _legend(lines), class_="plot")


def _legend(lines: Sequence[Line]) -> Markup:
    """The colors of the runs and the dash patterns of the parts, if there are several."""
    runs = {line.name: swatch(line.run) for line in lines}
    parts = {line.part: swatch(None if len(runs) > 1 else line.run, line.dash) for line in lines}
    keys = [*(runs.items() if len(runs) > 1 else ()), *(parts.items() if len(parts) > 1 else ())]
    return tag("ul", *(tag("li", drawn, " ", name) for name, drawn in keys), class_="legend") if keys else Markup()


def _finite(points: Sequence[tuple[float, float]], log_x: bool) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS points: a longer curve is averaged over chunks of equal size."""
    size = -(-len(points) // MOST_POINTS)
    if size < 2:
        return list(points)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def axis(label: str, values: Sequence[float], log: bool) -> Axis:
    """An axis that covers all values and ends at round numbers."""
    low, high = min(values), max(values)
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        some = (1, 2, 5) if high / low < 1000 else (1,)
        ticks = [step * 10.0**decade for decade in decades for step in some if low <= step * 10.0**decade <= high]
        return Axis(label, low, high if high > low else low * 10, True, ticks)
    if high == low:
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    step = round_step(high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(label, first * step, last * step, False, [i * step for i in range(first, last + 1)])


def round_step(span: float) -> float:
    """A step of 1, 2 or 5 times a power of ten, so that three to seven steps cover the span."""
    power: float = 10.0 ** math.floor(math.log10(span / 3))
    return max(step for step in (power, 2 * power, 5 * power) if span / step >= 3)


def _grid(x: Axis, y: Axis) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in y.ticks:
        at = _y(y, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{short(value)}</text>')
    for value in x.ticks:
        at = _x(x, value)
        parts.append(f'<line class="tick" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{short(value)}</text>')
    parts.append(f'<line class="tick" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle, height = (LEFT + right) / 2, (TOP + bottom) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>')
    turned = f'transform="translate(13 {height}) rotate(-90)" text-anchor="middle"'
    return "".join([*parts, f"<text {turned}>{escape(y.label)}</text>"])


def _x(x: Axis, value: float) -> float:
    return LEFT + x.at(value) * (WIDTH - LEFT - RIGHT)


def _y(y: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - y.at(value) * (HEIGHT - TOP - BOTTOM)


def _curve(line: Line, x: Axis, y: Axis) -> str:
    places = [(_x(x, a), _y(y, b)) for a, b in line.points]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
    marks = "".join(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5">{_tip(line, point)}</circle>'
        for (a, b), point in zip(places, line.points, strict=True)
        if line.marks and len(places) <= MARKED
    )
    return f'<g class="s{line.run % 6}"><path d="{path}"{dash}/>{marks}</g>'


def _tip(line: Line, point: tuple[float, float]) -> str:
    name = escape(f"{line.name} {line.part}".strip())
    return f"<title>{name}: {short(point[0])}, {short(point[1])}</title>"


def short(value: float) -> str:
    """A number in a few characters: 0.05, 12.5, 3k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}k"
    return f"{value:.4g}" if value and abs(value) >= 1e-3 else f"{value:.1e}" if abs(value) > 1e-12 else "0"


def steps(edges: Sequence[float], heights: Sequence[float]) -> list[tuple[float, float]]:
    """The outline of a histogram: `heights[i]` from `edges[i]` to `edges[i + 1]`."""
    return [point for (a, b), h in zip(pairwise(edges), heights, strict=True) for point in ((a, h), (b, h))]
