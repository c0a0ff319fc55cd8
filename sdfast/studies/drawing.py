"""What a study's report draws: rows on a common scale, and lines with bands; their colours are the page's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from sdfast.report.chart import brief, ticks

COLOURS = 6  # of the page
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 300, 52, 16, 10, 40


@dataclass(frozen=True)
class Row:
    """One arm on a scale.

    Attributes:
        name: of it.
        said: the numbers in words, at the end of the row.
        mean: the large dot.
        low, high: ends of the interval, where there is one.
        values: small dots, with what is said of each where the pointer is.
        colour: a CSS colour.
        own: whether the name is stressed.
    """

    name: str
    said: str
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    values: Sequence[tuple[float, str]] = ()
    colour: str = "var(--c1)"
    own: bool = False


@dataclass(frozen=True)
class Line:
    """A mean along an axis, with its interval at each point, where there is one."""

    name: str
    xs: Sequence[float]
    means: Sequence[float]
    reach: Sequence[tuple[float, float] | None] = field(default=())


def style() -> Markup:
    """The rules of what is drawn here."""
    return Markup("<style>{}</style>").format(Markup(Path(__file__).with_name("report.css").read_text("utf-8")))


def rows_on_a_scale(rows: Sequence[Row], zero: float | None = None, unit: str = "") -> Markup:
    """A row for each arm, on one scale that is written below.

    Args:
        rows: in their order.
        zero: where a dashed line stands.
        unit: behind the numbers of the scale.
    """
    marks = [value for row in rows for value in (row.mean, row.low, row.high, *(each for each, _ in row.values))]
    every = [value for value in [*marks, zero] if value is not None and math.isfinite(value)]
    if not every:
        return Markup("<p>There is no number to draw.</p>")
    low, high = min(every), max(every)
    room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = low - room, high + room

    def at(value: float) -> str:
        return f"{100 * (min(max(value, low), high) - low) / (high - low):.2f}%"

    line = Markup("") if zero is None else Markup('<i class="zero" style="left:{}"></i>').format(at(zero))
    parts = []
    for row in rows:
        drawn = [line]
        if row.low is not None and row.high is not None:
            reach = '<i class="reach" style="left:{};right:calc(100% - {})"></i>'
            drawn.append(Markup(reach).format(at(row.low), at(row.high)))
        dot = '<i class="one" style="left:{}" title="{}"></i>'
        drawn += [Markup(dot).format(at(value), said) for value, said in row.values]
        if row.mean is not None:
            drawn.append(Markup('<i class="mean" style="left:{}"></i>').format(at(row.mean)))
        text = '<div class="name{}">{}</div><div class="track" style="color:{}">{}</div><div class="said">{}</div>'
        text = f'<div class="row">{text}</div>'
        own = " own" if row.own else ""
        parts.append(Markup(text).format(own, row.name, row.colour, Markup("").join(drawn), row.said))
    scale = Markup("").join(
        Markup('<span style="left:{}">{}{}</span>').format(at(each), brief(each), unit) for each in ticks(low, high, 5)
    )
    frame = '<div class="tracks">{}<div class="row"><div class="pad"></div><div class="scale">{}</div></div></div>'
    return Markup(frame).format(Markup("\n").join(parts), scale)


def stacked(rows: Sequence[tuple[str, Sequence[float], str]], parts: Sequence[str]) -> Markup:
    """A bar for each row, of several parts.

    Args:
        rows: name, values of the parts, and the whole in words.
        parts: names of the parts, at most six.
    """
    most = max((sum(values) for _, values, _ in rows), default=0.0) or 1.0
    entry = '<span><i style="color:var(--c{})"></i>{}</span>'
    legend = Markup("").join(Markup(entry).format(place, name) for place, name in enumerate(parts, 1))
    lines = []
    for name, values, said in rows:
        start, drawn = 0.0, []
        for place, value in enumerate(values, 1):
            bar = '<i class="bar" style="left:{:.2f}%;width:{:.2f}%;background:var(--c{})" title="{}"></i>'
            told = f"{parts[place - 1]}: {value:.3g} s"
            drawn.append(Markup(bar).format(100 * start / most, 100 * value / most, place, told))
            start += value
        text = '<div class="row"><div class="name">{}</div><div class="track">{}</div><div class="said">{}</div></div>'
        lines.append(Markup(text).format(name, Markup("").join(drawn), said))
    return Markup('<div class="legend">{}</div><div class="tracks">{}</div>').format(legend, Markup("\n").join(lines))


def lines_with_bands(lines: Sequence[Line], x_name: str, y_name: str, logarithmic: bool = False) -> Markup:
    """Means along an axis with bands of their intervals, as SVG.

    Args:
        lines: at most six.
        x_name: of the axis.
        y_name: of the values.
        logarithmic: whether the axis is, which then is above 0.
    """
    lines = lines[:COLOURS]
    xs = [x for line in lines for x in line.xs]
    ys = [y for line in lines for y in line.means]
    ys += [end for line in lines for each in line.reach if each is not None for end in each]
    if not xs:
        return Markup("<p>There is no point to draw.</p>")
    low, high = min(ys), max(ys)
    room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = low - room, high + room
    ends = (math.log(min(xs)), math.log(max(xs))) if logarithmic else (min(xs), max(xs))

    def across(x: float) -> float:
        value = math.log(x) if logarithmic else x
        share = 0.5 if ends[1] == ends[0] else (value - ends[0]) / (ends[1] - ends[0])
        return _LEFT + 14 + share * (_WIDTH - _LEFT - _RIGHT - 28)

    def down(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)

    drawn = []
    for tick in ticks(low, high):
        rule = '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
        text = '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
        drawn += [Markup(rule).format(_LEFT, _WIDTH - _RIGHT, down(tick), down(tick))]
        drawn += [Markup(text).format(_LEFT - 8, down(tick) + 4, brief(tick))]
    for x in sorted(set(xs)):
        text = '<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>'
        drawn.append(Markup(text).format(across(x), _HEIGHT - _BOTTOM + 16, brief(x)))
    drawn.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(_WIDTH / 2, _HEIGHT - 6, x_name))
    for colour, line in enumerate(lines, 1):
        banded = [(x, each) for x, each in zip(line.xs, line.reach, strict=False) if each is not None]
        if banded:
            outline = [(x, top) for x, (_, top) in banded] + [(x, bottom) for x, (bottom, _) in reversed(banded)]
            shape = '<polygon points="{}" fill="var(--c{})" opacity=".14"/>'
            drawn.append(Markup(shape).format(" ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in outline), colour))
        points = list(zip(line.xs, line.means, strict=True))
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
        drawn.append(Markup('<polyline class="line" stroke="var(--c{})" points="{}"/>').format(colour, path))
        dot = '<circle cx="{:.1f}" cy="{:.1f}" r="4" fill="var(--c{})"><title>{}</title></circle>'
        for x, y in points:
            drawn.append(Markup(dot).format(across(x), down(y), colour, f"{line.name}, {x:g}: {y:.4g}"))
    entry = '<span><i style="color:var(--c{})"></i>{}</span>'
    legend = Markup("").join(Markup(entry).format(place, line.name) for place, line in enumerate(lines, 1))
    frame = (
        '<figure class="series"><div class="legend"><span>{}</span>{}</div><svg viewBox="0 0 {} {}" role="img"'
        ' aria-label="{}">{}</svg></figure>'
    )
    about = f"{y_name} against {x_name} of {', '.join(line.name for line in lines)}"
    return Markup(frame).format(y_name, legend, _WIDTH, _HEIGHT, about, Markup("").join(drawn))
