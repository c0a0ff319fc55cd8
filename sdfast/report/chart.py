"""Curves as small SVG drawings whose colours are the page's, in light, in dark and on paper."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sdfast.report.panel import number

COLOURS = 6  # that the style sheet has, as --c1 and so on
MOST_POINTS = 400  # of a curve that is drawn
_SMOOTHED_FROM = 80  # points
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 190, 44, 8, 8, 22

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """Values along an axis; those that are not finite are left out.

    Attributes:
        name: in the legend.
        xs, ys: as many each, with rising `xs`.
        dots: marked points joined by a line, as for a few measurements, and not smoothed.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    dots: bool = False


def chart(
    title: str,
    curves: Sequence[Curve],
    *,
    unit: str = "",
    x_name: str = "step",
    from_zero: bool = False,
    log: bool = False,
    y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
    smooth: bool = True,
    wide: bool = False,
) -> Markup:
    """Curves in one frame, with a legend that shows their last values, or those below the pointer.

    Many points are thinned to the smallest and the largest of each stretch, so that no spike is lost. Where there are
    many, they are drawn pale below a running mean.

    Args:
        title: above it.
        curves: up to six.
        unit: behind the title.
        x_name: of the axis, as `step`.
        from_zero: the vertical axis begins at 0.
        log: it is logarithmic; values that are not above 0 are left out.
        y_range, x_range: ends of the axes; those of the values when None.
        smooth: draw the running mean of many points.
        wide: for the whole width of a panel.
    """
    kept = [_finite(curve, log) for curve in curves[:COLOURS]]
    every = [point for points in kept for point in points]
    width = 2 * _WIDTH if wide else _WIDTH
    if not every:
        return Markup('<figure class="chart"><h4>{}</h4><p class="soft">Nothing was recorded.</p></figure>').format(
            title
        )
    x_low, x_high = x_range or _ends([x for x, _ in every])
    y_low, y_high = y_range or _padded([y for _, y in every], from_zero, log)
    frame = {"x": [x_low, x_high, _LEFT, width - _RIGHT, 0], "y": [y_low, y_high, _HEIGHT - _BOTTOM, _TOP, int(log)]}

    def place(points: Points) -> str:
        return " ".join(f"{_on(frame['x'], x):.1f},{_on(frame['y'], y):.1f}" for x, y in points)

    drawn = [_grid(frame, x_low, x_high, y_low, y_high, log, width)]
    for colour, (curve, points) in enumerate(zip(curves, kept, strict=False), 1):
        many = smooth and not curve.dots and len(points) >= _SMOOTHED_FROM
        if many:
            raw = '<polyline class="raw" stroke="var(--c{})" points="{}"/>'
            drawn.append(Markup(raw).format(colour, place(thinned(points, MOST_POINTS))))
            points = running_mean(points)
        line = '<polyline class="curve" stroke="var(--c{})" points="{}"/>'
        drawn.append(Markup(line).format(colour, place(thinned(points, MOST_POINTS // 2 if many else MOST_POINTS))))
        if curve.dots or len(points) == 1:
            dot = '<circle r="3" fill="var(--c{})" cx="{:.1f}" cy="{:.1f}"/>'
            drawn += [Markup(dot).format(colour, _on(frame["x"], x), _on(frame["y"], y)) for x, y in points[:200]]
    drawn.append(Markup('<line class="cross" style="display:none" y1="{}" y2="{}"/>').format(_TOP, _HEIGHT - _BOTTOM))
    body = Markup("").join(drawn)
    about = f"{title}: " + "; ".join(
        f"{curve.name} from {number(points[0][1])} to {number(points[-1][1])}"
        for curve, points in zip(curves, kept, strict=False)
        if points
    )
    text = (
        '<figure class="chart" data-frame="{}"><h4>{}{}</h4><div class="legend">{}<span class="at"></span></div>'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></figure>'
    )
    after = Markup(' <span class="unit">{}</span>').format(unit) if unit else ""
    told = json.dumps({**frame, "name": x_name})
    return Markup(text).format(told, title, after, _legend(curves, kept), width, _HEIGHT, about, body)


def thinned(points: Points, most: int) -> Points:
    """About so many of the points: the first and the last, and of each stretch between the lowest and the highest."""
    if len(points) <= most:
        return points
    inner, found = points[1:-1], [points[0]]
    stretches = max(1, (most - 2) // 2)
    for stretch in range(stretches):
        part = inner[stretch * len(inner) // stretches : (stretch + 1) * len(inner) // stretches]
        if part:
            ends = {
                min(range(len(part)), key=lambda at: part[at][1]),
                max(range(len(part)), key=lambda at: part[at][1]),
            }
            found += [part[at] for at in sorted(ends)]
    return [*found, points[-1]]


def running_mean(points: Points) -> Points:
    """Means of the fortieth part of the points around each, of fewer at the ends: as many on both sides."""
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    reach, count = max(2, len(points) // 80), len(points)
    found = []
    for at, (x, _) in enumerate(points):
        half = min(reach, at, count - 1 - at)
        found.append((x, (sums[at + half + 1] - sums[at - half]) / (2 * half + 1)))
    return found


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round values between two ends: multiples of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * 0.999)
    return [round(at * step, 12) for at in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    tens = [10.0**power for power in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]
    if len(tens) < 2:
        return ticks(low, high)
    return tens[:: max(1, len(tens) // 5)]


def _finite(curve: Curve, log: bool) -> Points:
    pairs = ((float(x), float(y)) for x, y in zip(curve.xs, curve.ys, strict=True))
    return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y) and abs(y) < 1e300 and (y > 0 or not log)]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1, low + 1)


def _padded(values: Sequence[float], from_zero: bool, log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return (low / 1.2, high * 1.2)
    if from_zero:
        return min(0.0, low), high * 1.06 if high > 0 else 1.0
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _on(axis: Sequence[float], value: float) -> float:
    low, high, start, end, log = axis
    value = min(max(value, low), high)
    share = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
    return start + share * (end - start)


def _grid(
    frame: dict[str, list[float]], x_low: float, x_high: float, y_low: float, y_high: float, log: bool, width: int
) -> Markup:
    lines = []
    for at in _log_ticks(y_low, y_high) if log else ticks(y_low, y_high):
        y = _on(frame["y"], at)
        line = '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
        text = '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
        lines.append(Markup(line).format(_LEFT, width - _RIGHT, y, y))
        lines.append(Markup(text).format(_LEFT - 6, y + 3.5, brief(at)))
    for at in ticks(x_low, x_high, 8 if width > _WIDTH else 4):
        x = _on(frame["x"], at)
        anchor = "end" if x > width - _RIGHT - 12 else "middle"
        text = '<text x="{:.1f}" y="{}" text-anchor="{}">{}</text>'
        lines.append(Markup(text).format(x, _HEIGHT - 6, anchor, brief(at)))
    base = '<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>'
    lines.append(Markup(base).format(_LEFT, width - _RIGHT, _HEIGHT - _BOTTOM, _HEIGHT - _BOTTOM))
    return Markup("").join(lines)


def brief(value: float) -> str:
    """A value beside an axis: at most six characters, as 20k, 0.05 or 3e-5."""
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-3:
        return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    return f"{value / 1e3:.4g}k" if size >= 1e4 else f"{value:.4g}"


def _legend(curves: Sequence[Curve], kept: Sequence[Points]) -> Markup:
    """The name of each curve and its last value; of the only one the value alone, as the title names it."""
    last = [number(points[-1][1]) if points else "" for points in kept]
    if len(last) == 1:
        return Markup("<span><b>{}</b></span>").format(last[0])
    entry = '<span><i style="color:var(--c{})"></i>{} <b>{}</b></span>'
    named = enumerate(zip(curves, last, strict=False), 1)
    return Markup("").join(Markup(entry).format(colour, curve.name, value) for colour, (curve, value) in named)
