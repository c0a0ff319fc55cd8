"""A study's figure, as PNG and SVG."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from sdfast.studies.declared import Arm
from sdfast.studies.plan import Protocol
from sdfast.studies.results import Found, counts, units_in_words
from sdfast.studies.statistics import interval
from sdfast.studies.tables import spread

_INK, _FAINT, _BLUE = "#1b1b1b", "#6b6b6b", "#0072b2"
# Okabe and Ito's, told apart with any colour vision; markers differ too
_LOOK = {
    "fine-tuning": (_FAINT, "s"),
    "further pre-training": ("#d55e00", "^"),
    "self-distillation": (_BLUE, "o"),
}
_STYLE: Any = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "svg.hashsalt": "sdfast",  # the same bytes for the same numbers
    "svg.fonttype": "none",
}
_GAP_TITLES = ("(a) generalisation gap", "(b) distance", "(c) distance by round")
_NARROW = 12  # letters of a name beside a narrow panel
_ABOUT = 10  # points, of the line below a figure
_LETTERS = 13  # of that line in an inch
FEWEST = 3  # runs; the interval of two reaches 13 times as far as they lie from their mean, and says nothing


def caption(found: Sequence[Found], protocol: Protocol) -> str:
    """The line below a figure: what its points are, and its intervals."""
    data = ", ".join(each.target.title for each in found)
    numbers, kind = counts(found), found[0].target.kind
    if numbers == [1]:
        return f"{data}; one {'run' if kind == 'seed' else kind} of each"
    runs = "fine-tunings of one checkpoint" if protocol == "paper" else "whole chains"
    each = f"{runs} each" if kind == "seed" else f"{kind}s ({units_in_words(found[0].target)})"
    points = f"{data}; points: {' to '.join(map(str, numbers))} {each}, and their mean"
    if numbers[-1] < FEWEST:
        return points
    many = "runs" if kind == "seed" else f"{kind}s"
    return f"{points} with its 95 % interval" + (f" (of {FEWEST} {many} or more)" if numbers[0] < FEWEST else "")


def draw(found: Sequence[Found], about: str) -> dict[str, bytes]:
    """The picture as {"png": ..., "svg": ...}; `about` is the line below it, or several where it is long."""
    with rc_context(_STYLE):
        return _pictures(_captioned(found, about))


def _captioned(found: Sequence[Found], about: str) -> Figure:
    if any(_is_cut(each) for each in found):
        about += "; where it ends in an arrow it goes on beyond 0 or 100 %"
    draw_it = {"dots": _dots, "lines": _lines, "gaps": _gaps, "lengths": _lengths}[found[0].study.figure]
    figure = draw_it(found)
    lines = textwrap.wrap(about, int(_LETTERS * figure.get_figwidth()), break_on_hyphens=False)
    figure.set_figheight(figure.get_figheight() + 1.4 * _ABOUT / 72 * (len(lines) - 1))
    figure.supxlabel("\n".join(lines), fontsize=_ABOUT, color=_FAINT)
    return figure


def draw_cost(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, bytes]:
    """Seconds of each stage, by data set."""
    with rc_context(_STYLE):
        figure = _figure(8, 1.4 + 0.5 * sum(map(len, rows.values())))
        place = figure.subplots()
        bars = [(f"{title}: " if len(rows) > 1 else "", row) for title, each in rows.items() for row in each]
        for at, (_, row) in enumerate(bars):
            place.barh(-at, row["seconds"], 0.62, color=_BLUE)
            _note(place, f"{row['seconds']:.3g}", (row["seconds"], -at), (5, 0), va="center")
        place.set_yticks([-at for at in range(len(bars))], [title + row["stage"] for title, row in bars])
        place.tick_params(axis="y", length=0)
        place.margins(x=0.12)
        place.set_xlabel("seconds")
        return _pictures(figure)


def _pictures(figure: Figure) -> dict[str, bytes]:
    pictures = {}
    for name, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        file = io.BytesIO()
        figure.savefig(file, format=name, dpi=160, metadata=metadata)
        pictures[name] = file.getvalue()
    return pictures


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))


def _note(place: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **look: Any) -> None:
    """Words beside a place, so many points away."""
    place.annotate(text, at, offset, textcoords="offset points", **look)


def _dots(found: Sequence[Found]) -> Figure:
    """One row for each arm: its runs, their mean, and the interval of the mean."""
    columns = _main_columns(found[0])
    panels = [(each, column) for each in found for column in columns]
    titles = list(dict.fromkeys(title for each in found for title in each.runs))
    highlighted = next((title for title in titles if title in ("self-distillation", "full model")), None)
    figure = _figure(3.2 + 6.2 * len(panels), 2.0 + 0.62 * len(titles))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for place, (each, column) in zip(axes, panels, strict=True):
        for row, title in enumerate(titles):
            if values := each.values(title, column):
                color = _BLUE if title == highlighted else _FAINT
                place.plot(values, np.full(len(values), row + 0.17), "o", color=color, alpha=0.6, markersize=5.5, mew=0)
                span = span_of(values, each.is_percent(column), each.overlap)
                _mean(place, values, span, row - 0.1, color)
                text = spread(values, each.digits(column))
                place.annotate(text, (1.02, row), xycoords=("axes fraction", "data"), va="center", color=color)
        several = any(len(each.values(title, column)) > 1 for title in titles)
        heading = "mean ± deviation" if several else "one run"
        _note(place, heading, (1.02, 1.0), (0, 5), xycoords="axes fraction", fontsize=11)
        _reference_line(place, each, column)
        place.set_yticks(range(len(titles)), titles)
        place.set_ylim(len(titles) - 0.4, -0.6)
        place.margins(x=0.08)
        place.tick_params(axis="y", length=0)
        place.grid(axis="x")
        place.spines["left"].set_visible(False)
        place.set_xlabel(each.metric(column).axis)
        if each.is_percent(column):
            place.set_xlim(*_within_percent(*place.get_xlim()))
        if len(found) > 1:
            place.set_title(each.target.title, loc="left", fontweight="bold", pad=24)
    return figure


def _reference_line(place: Axes, found: Found, column: str) -> None:
    name = found.study.reference
    if values := found.values(name, column):
        mean = float(np.mean(values))
        place.axvline(mean, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        over = ("data", "axes fraction")
        _note(place, name, (mean, 1.0), (0, 5), xycoords=over, ha="center", fontsize=11, color=_INK)


def _within_percent(low: float, high: float) -> tuple[float, float]:
    """An axis that leaves no room for shares that cannot be."""
    room = 0.02 * (high - low)  # for a marker at the end
    return max(low, -room), min(high, 100 + room)


def _main_columns(found: Found) -> list[str]:
    return [column for column in found.columns() if column == "score"] or found.columns()


def _is_cut(found: Found) -> bool:
    """Whether the figure shows only a part of some interval."""
    column = _main_columns(found)[0]
    spans = [span_of(found.values(title, column), found.is_percent(column), found.overlap) for title in found.runs]
    return found.study.figure != "gaps" and any(span is not None and (span.below or span.above) for span in spans)


def _mean(place: Axes, values: Sequence[float], span: Span | None, row: float, color: str) -> None:
    mean = float(np.mean(values))
    if span is not None:
        place.plot((span.low, span.high), (row, row), color=color, linewidth=2.6, solid_capstyle="round")
        arrows(place, span, row, color, upright=False)
    place.plot([mean], [row], "D", color=color, markersize=8, mec="white", mew=1.2)


def _lines(found: Sequence[Found]) -> Figure:
    """A line for each series against the axis, with the interval of each mean; what has no x is a level."""
    figure = _figure(1.2 + 6.4 * len(found), 4.8)
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for place, each in zip(axes, found, strict=True):
        _line_panel(place, each, _main_columns(each)[0])
        if len(found) > 1:
            place.set_title(each.target.title, loc="left", fontweight="bold")
    return figure


def _lengths(found: Sequence[Found]) -> Figure:
    """A row for each data set: what is tested against the length of pre-training, in epochs too."""
    columns = [column for column in found[0].study.tested if all(column in each.columns() for each in found)]
    figure = _figure(0.6 + 5.1 * len(columns), 4.8 * len(found))
    rows = figure.subplots(len(found), len(columns), squeeze=False)
    for row, each in zip(rows, found, strict=True):
        for letter, place, column in zip("abc", row, columns, strict=False):
            _line_panel(place, each, column, narrow=True)
            _epochs(place, each)
            whose = f"{each.target.title}: " if len(found) > 1 else ""
            title = each.metric(column).label.removesuffix(" %")
            place.set_title(f"({letter}) {whose}{title}", loc="left", fontweight="bold")
    return figure


def _epochs(place: Axes, found: Found) -> None:
    """Below the steps of an axis how many passes over the rows they are, where that was counted."""
    if (epoch := found.target.epoch) is None:
        return
    steps = [step for step, name in zip(place.get_xticks(), place.get_xticklabels(), strict=True) if name.get_text()]
    below = place.secondary_xaxis(-0.09)
    below.set_xticks(steps, [_thousands(float(f"{step / epoch:.3g}")) for step in steps])
    below.minorticks_off()
    below.tick_params(length=0, labelcolor=_FAINT, labelsize=10, pad=0)
    below.spines["bottom"].set_visible(False)
    label = place.get_xlabel()
    place.set_xlabel("")
    below.set_xlabel(f"{label} (and epochs)")


def _line_panel(place: Axes, found: Found, column: str, narrow: bool = False) -> None:
    """One panel of lines; a narrow one has the names of its lines on two rows of words."""
    arms = [arm for arm in found.target.arms if arm.title in found.runs]
    axis, percent = found.study.axis, found.is_percent(column)
    assert axis is not None
    ends: list[tuple[float, str, str]] = []
    for series in dict.fromkeys(arm.series or "" for arm in arms if arm.x is not None):
        color, marker = _LOOK.get(series, (_INK, "D"))
        points = [arm for arm in arms if (arm.series or "") == series and arm.x is not None]
        line = _line(place, found, column, points, color, marker, markersize=8, linewidth=2.2, mec="white", mew=1)
        ends.append((line[-1], series, color))
    for arm in arms:
        if arm.x is None:
            color, _ = _LOOK.get(arm.title, (_INK, "D"))
            values = found.values(arm.title, column)
            if (span := span_of(values, percent)) is not None:
                place.axhspan(span.low, span.high, color=color, alpha=0.13, lw=0)
            else:
                for value in values:
                    place.axhline(value, color=color, linewidth=0.8, alpha=0.5)
            ends.append((float(np.mean(values)), arm.title, color))
            place.axhline(ends[-1][0], color=color, linewidth=2.2)
    if found.study.same:
        place.set_xscale("log")
        sizes = sorted({int(arm.x) for arm in arms if arm.x is not None})
        if len(sizes) == 1:
            place.set_xlim(sizes[0] / 2, sizes[0] * 2)
        named = _apart(sizes, 0.13 if narrow else 0.075)
        place.set_xticks(sizes, [_thousands(size) if size in named else "" for size in sizes])
        place.minorticks_off()
    elif axis.kind == "rounds":
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        place.xaxis.set_major_formatter(lambda value, _: _thousands(value))
    if percent:
        place.set_ylim(*_within_percent(*place.get_ylim()))
    if len(ends) > 1:
        _label_ends(place, ends, narrow)
    place.grid()
    place.set_xlabel(axis.label.format(rows=found.target.modality))
    place.set_ylabel(found.metric(column).axis)


def _line(
    place: Axes, found: Found, column: str, arms: Sequence[Arm], color: str, marker: str, **look: Any
) -> list[float]:
    """The means of arms along the axis, which it returns, with their intervals and their runs."""
    arms = sorted(arms, key=lambda arm: (arm.x or 0.0, arm.title))
    x, values = [arm.x or 0.0 for arm in arms], [found.values(arm.title, column) for arm in arms]
    means = [float(np.mean(each)) for each in values]
    band(place, x, values, color, found.is_percent(column))
    for at, each in zip(x, values, strict=True):
        place.plot(np.full(len(each), at), each, marker, color=color, alpha=0.35, markersize=4, mew=0)
    place.plot(x, means, color=color, marker=marker, **look)
    return means


def _thousands(count: float) -> str:
    return f"{count / 1000:g}k" if count >= 1000 else f"{count:g}"


def _apart(sizes: Sequence[int], share: float) -> list[int]:
    """Those that are such a share of a logarithmic axis apart, so that labels do not touch; the largest among them."""
    if len(sizes) < 2:
        return list(sizes)
    least = share * np.log(sizes[-1] / sizes[0])
    kept = [sizes[-1]]
    for size in reversed(sizes[:-1]):
        if np.log(kept[-1] / size) >= least:
            kept.append(size)
    return kept[::-1]


def _label_ends(place: Axes, ends: list[tuple[float, str, str]], narrow: bool = False) -> None:
    """Name the lines at their right ends, moved apart where they would overlap; narrow names are cut at a blank."""
    low, high = place.get_ylim()
    gap = (0.13 if narrow else 0.075) * (high - low)
    ends = sorted(ends)
    places = _spread_out([height for height, _, _ in ends], gap, high - gap / 2)
    for (_, name, color), at in zip(ends, places, strict=True):
        if narrow and len(name) > _NARROW:
            name = name.replace(" ", "\n", 1) if " " in name else name.replace("-", "-\n", 1)
        look = {"va": "center", "color": color, "fontweight": "bold", "annotation_clip": False}
        _note(place, name, (1.0, at), (8, 0), xycoords=("axes fraction", "data"), **look)


def _spread_out(heights: Sequence[float], gap: float, most: float) -> list[float]:
    """Heights in rising order, moved so that they are a gap apart and none is above the most."""
    places = list(heights)
    for at in range(1, len(places)):
        places[at] = max(places[at], places[at - 1] + gap)
    for at in reversed(range(len(places))):
        places[at] = min(places[at], most - gap * (len(places) - 1 - at))
    return places


def _gaps(found: Sequence[Found]) -> Figure:
    """Figure 5: the gap and the distance of further pre-training and self-distillation, and the distance by round."""
    rounds = any(len(each.runs) > 2 for each in found)
    figure = _figure((10.5 if not rounds else 15) + 1.4 * (len(found) - 1), 4.8)
    panels = figure.subplots(1, 3 if rounds else 2, squeeze=False)[0]
    for place, column, title in zip(panels, ("generalisation_gap", "distance", "distance"), _GAP_TITLES, strict=False):
        place.set_title(title, loc="left", fontweight="bold")
        place.set_ylabel(found[0].metric(column).axis)
    _bars(panels[0], found, "generalisation_gap")
    _bars(panels[1], found, "distance")
    for place in panels[2:]:
        color, marker = _LOOK["self-distillation"]
        for each, style in zip(found, ("-", "--", ":", "-.") * len(found), strict=False):
            arms = [arm for arm in each.target.arms if arm.title in each.runs]
            look = {"linestyle": style, "markersize": 7, "linewidth": 2, "label": each.target.title}
            _line(place, each, "distance", arms, color, marker, **look)
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
        place.set_xlabel("round of self-distillation, t")
        place.grid()
        if len(found) > 1:
            place.legend()
    return figure


def _bars(place: Axes, found: Sequence[Found], column: str) -> None:
    for offset, title, name in ((-0.2, "t = 0", "further pre-training"), (0.2, "t = 1", "self-distillation")):
        color, _ = _LOOK[name]
        for at, each in enumerate(found):
            values = each.values(title, column)
            if not values:
                continue
            mean, span = float(np.mean(values)), span_of(values, each.is_percent(column))
            place.bar(at + offset, mean, 0.36, color=color, alpha=0.8, label=name if at == 0 else None)
            if span is not None:
                place.plot((at + offset,) * 2, (span.low, span.high), color=_INK, linewidth=1.6)
            place.plot(np.full(len(values), at + offset), values, "o", color=_INK, markersize=3.5, alpha=0.6, mew=0)
    place.set_xticks(range(len(found)), [each.target.title for each in found])
    place.tick_params(axis="x", length=0)
    place.set_xlim(-0.6, len(found) - 0.4)
    low, high = place.get_ylim()
    place.set_ylim(low, high + 0.28 * (high - low))  # the legend has the upper part to itself
    place.legend(loc="upper left")
    place.grid(axis="y")


@dataclass(frozen=True)
class Span:
    """A 95 % interval, as far as it is drawn.

    Attributes:
        low, high: its ends, of shares those within 0 and 100 %.
        below, above: whether it goes on beyond them.
    """

    low: float
    high: float
    below: bool = False
    above: bool = False


def span_of(values: Sequence[float], percent: bool, overlap: float = 0.0) -> Span | None:
    """None for fewer than `FEWEST` values: they are drawn, and their mean.

    Args:
        values: of the runs.
        percent: whether they are shares in percent.
        overlap: see `interval`.
    """
    ends = interval(values, overlap) if len(values) >= FEWEST else None
    if ends is None or not percent:
        return None if ends is None else Span(*ends)
    low, high = ends
    return Span(max(low, 0.0), min(high, 100.0), low < 0, high > 100)


def arrows(place: Axes, span: Span, at: float, color: str, upright: bool) -> None:
    """At the ends of an interval that goes on beyond what can be."""
    names = ("down", "up") if upright else ("left", "right")
    for name, cut, end in zip(names, (span.below, span.above), (span.low, span.high), strict=True):
        if cut:
            x, y = (at, end) if upright else (end, at)
            place.plot([x], [y], marker=rf"$\{name}arrow$", color=color, markersize=14, mew=0.3, clip_on=False)


def band(place: Axes, x: Sequence[float], values: Sequence[Sequence[float]], color: str, percent: bool) -> None:
    """The intervals of means along a line; a single one, which has no width, is a bar."""
    spans = [span_of(each, percent) for each in values]
    low, high = ([np.nan if span is None else getattr(span, end) for span in spans] for end in ("low", "high"))
    place.fill_between(x, low, high, color=color, alpha=0.13, lw=0)
    for at, span in enumerate(spans):
        if span is not None:
            if not any(spans[max(0, at - 1) : at] + spans[at + 1 : at + 2]):
                place.plot((x[at],) * 2, (span.low, span.high), color=color, linewidth=2, alpha=0.5)
            arrows(place, span, x[at], color, upright=True)
