"""A study's figure, as PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sdfast.studies.results import Found
from sdfast.studies.spans import arrows, band, span_of
from sdfast.studies.statistics import summary
from sdfast.studies.tables import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def draw(found: Sequence[Found], about: str) -> dict[str, bytes]:
    """The picture as {"png": ..., "svg": ...}; `about` is the line below it."""
    from matplotlib import rc_context

    if any(_is_cut(each) for each in found):
        about += "; where it ends in an arrow it goes on beyond 0 or 100 %"
    with rc_context(_STYLE):
        figure = {"dots": _dots, "lines": _lines, "gaps": _gaps}[found[0].study.figure](found)
        figure.supxlabel(about, fontsize=10, color=_FAINT)
        return _pictures(figure)


def draw_cost(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, bytes]:
    """Seconds of each stage, by data set."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        figure = _figure(8, 1.4 + 0.5 * sum(map(len, rows.values())))
        place = figure.subplots()
        names: list[str] = []
        for title, each in rows.items():
            for row in each:
                at = -len(names)
                names.append(row["stage"] if len(rows) == 1 else f"{title}: {row['stage']}")
                place.barh(at, row["seconds"], 0.62, color=_BLUE)
                place.annotate(
                    f"{row['seconds']:.3g}", (row["seconds"], at), (5, 0), textcoords="offset points", va="center"
                )
        place.set_yticks([-at for at in range(len(names))], names)
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
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))


def _dots(found: Sequence[Found]) -> Figure:
    """One row for each arm: its runs, their mean, and the interval of the mean."""
    columns = _main_columns(found[0])
    panels = [(each, column) for each in found for column in columns]
    titles = list(dict.fromkeys(title for each in found for title in each.runs))
    figure = _figure(3.2 + 6.2 * len(panels), 2.0 + 0.62 * len(titles))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for place, (each, column) in zip(axes, panels, strict=True):
        for row, title in enumerate(titles):
            if values := list(each.by_seed(title, column).values()):
                color = _BLUE if title == _highlighted(titles) else _FAINT
                place.plot(values, np.full(len(values), row + 0.17), "o", color=color, alpha=0.6, markersize=5.5, mew=0)
                _mean(place, values, row - 0.1, color, each.is_percent(column))
                text = spread(summary(values), 1 if each.is_percent(column) else 3)
                place.annotate(text, (1.02, row), xycoords=("axes fraction", "data"), va="center", color=color)
        several = any(len(each.by_seed(title, column)) > 1 for title in titles)
        heading = "mean ± deviation" if several else "one run"
        place.annotate(heading, (1.02, 1.0), (0, 5), "axes fraction", textcoords="offset points", fontsize=11)
        _reference_line(place, each, column)
        place.set_yticks(range(len(titles)), titles)
        place.set_ylim(len(titles) - 0.4, -0.6)
        place.margins(x=0.08)
        place.tick_params(axis="y", length=0)
        place.grid(axis="x")
        place.spines["left"].set_visible(False)
        place.set_xlabel(_axis_label(each, column))
        if each.is_percent(column):
            place.set_xlim(*_within_percent(*place.get_xlim()))
        if len(found) > 1:
            place.set_title(each.target.title, loc="left", fontweight="bold", pad=24)
    return figure


def _reference_line(place: Axes, found: Found, column: str) -> None:
    values = list(found.by_seed(found.study.reference, column).values())
    if not values:
        return
    mean = float(np.mean(values))
    place.axvline(mean, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    place.annotate(
        found.study.reference,
        (mean, 1.0),
        (0, 5),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="center",
        fontsize=11,
        color=_INK,
    )


def _within_percent(low: float, high: float) -> tuple[float, float]:
    """An axis that leaves no room for shares that cannot be."""
    room = 0.02 * (high - low)  # for a marker at the end
    return max(low, -room), min(high, 100 + room)


def _highlighted(titles: Sequence[str]) -> str | None:
    return next((title for title in titles if title in ("self-distillation", "full model")), None)


def _main_columns(found: Found) -> list[str]:
    return [column for column in found.columns() if column == "score"] or found.columns()


def _is_cut(found: Found) -> bool:
    """Whether the figure shows only a part of some interval."""
    column = _main_columns(found)[0]
    spans = [span_of(list(found.by_seed(title, column).values()), found.is_percent(column)) for title in found.runs]
    return found.study.figure != "gaps" and any(span is not None and (span.below or span.above) for span in spans)


def _mean(place: Axes, values: Sequence[float], row: float, color: str, percent: bool) -> None:
    mean = float(np.mean(values))
    if (span := span_of(values, percent)) is not None:
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


def _line_panel(place: Axes, found: Found, column: str) -> None:
    arms = [arm for arm in found.target.arms if arm.title in found.runs]
    axis = found.study.axis
    assert axis is not None
    ends: list[tuple[float, str, str]] = []
    for series in dict.fromkeys(arm.series for arm in arms if arm.x is not None):
        color, marker = _LOOK.get(series or "", (_INK, "D"))
        points = sorted((arm.x or 0.0, arm.title) for arm in arms if arm.series == series and arm.x is not None)
        values = [list(found.by_seed(title, column).values()) for _, title in points]
        x, means = [point for point, _ in points], [float(np.mean(each)) for each in values]
        band(place, x, values, color, found.is_percent(column))
        for at, each in zip(x, values, strict=True):
            place.plot(np.full(len(each), at), each, marker, color=color, alpha=0.35, markersize=4, mew=0)
        place.plot(x, means, color=color, marker=marker, markersize=8, linewidth=2.2, mec="white", mew=1)
        ends.append((means[-1], series or "", color))
    for arm in arms:
        if arm.x is None:
            color, _ = _LOOK.get(arm.title, (_INK, "D"))
            values_here = list(found.by_seed(arm.title, column).values())
            mean = float(np.mean(values_here))
            if (span := span_of(values_here, found.is_percent(column))) is not None:
                place.axhspan(span.low, span.high, color=color, alpha=0.13, lw=0)
            else:
                for value in values_here:
                    place.axhline(value, color=color, linewidth=0.8, alpha=0.5)
            place.axhline(mean, color=color, linewidth=2.2)
            ends.append((mean, arm.title, color))
    if axis.kind == "limit":
        place.set_xscale("log")
        sizes = _apart(sorted({int(arm.x) for arm in arms if arm.x is not None}))
        place.set_xticks(sizes, [_thousands(size) for size in sizes])
        place.minorticks_off()
    elif axis.kind == "rounds":
        from matplotlib.ticker import MaxNLocator

        place.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        place.xaxis.set_major_formatter(lambda value, _: _thousands(value))
    if found.is_percent(column):
        place.set_ylim(*_within_percent(*place.get_ylim()))
    if len(ends) > 1:
        _label_ends(place, ends)
    place.grid()
    place.set_xlabel(axis.label.format(rows=found.target.modality))
    place.set_ylabel(_axis_label(found, column))


def _thousands(count: float) -> str:
    return f"{count / 1000:g}k" if count >= 1000 else f"{count:g}"


def _apart(sizes: Sequence[int]) -> list[int]:
    """Those that can be labelled on a logarithmic axis without touching, the largest among them."""
    if len(sizes) < 2:
        return list(sizes)
    least = 0.075 * np.log(sizes[-1] / sizes[0])
    kept = [sizes[-1]]
    for size in reversed(sizes[:-1]):
        if np.log(kept[-1] / size) >= least:
            kept.append(size)
    return kept[::-1]


def _label_ends(place: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Name the lines at their right ends, moved apart where they would overlap."""
    low, high = place.get_ylim()
    gap = 0.075 * (high - low)
    heights: list[float] = []
    for height, name, color in sorted(ends):
        at = max(height, heights[-1] + gap) if heights else height
        heights.append(at)
        place.annotate(
            name,
            (1.0, at),
            (8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=color,
            fontweight="bold",
            annotation_clip=False,
        )


def _gaps(found: Sequence[Found]) -> Figure:
    """Figure 5: the gap and the distance of further pre-training and self-distillation, and the distance by round."""
    rounds = any(len(each.runs) > 2 for each in found)
    figure = _figure((10.5 if not rounds else 15) + 1.4 * (len(found) - 1), 4.8)
    panels = figure.subplots(1, 3 if rounds else 2, squeeze=False)[0]
    for place, column, title in zip(
        panels, ("generalisation_gap", "distance"), ("(a) generalisation gap", "(b) distance"), strict=False
    ):
        _bars(place, found, column)
        place.set_title(title, loc="left", fontweight="bold")
        place.set_ylabel(_axis_label(found[0], column))
    if rounds:
        for each, style in zip(found, ("-", "--", ":", "-.") * len(found), strict=False):
            _distance_by_round(panels[2], each, style)
        panels[2].set_title("(c) distance by round", loc="left", fontweight="bold")
        panels[2].set_xlabel("round of self-distillation, t")
        panels[2].set_ylabel(_axis_label(found[0], "distance"))
        panels[2].grid()
        if len(found) > 1:
            panels[2].legend()
    return figure


def _bars(place: Axes, found: Sequence[Found], column: str) -> None:
    for offset, title, name in ((-0.2, "t = 0", "further pre-training"), (0.2, "t = 1", "self-distillation")):
        color, _ = _LOOK[name]
        for at, each in enumerate(found):
            values = list(each.by_seed(title, column).values())
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


def _distance_by_round(place: Axes, found: Found, style: str) -> None:
    from matplotlib.ticker import MaxNLocator

    color, marker = _LOOK["self-distillation"]
    points = sorted((arm.x or 0.0, arm.title) for arm in found.target.arms if arm.title in found.runs)
    values = [list(found.by_seed(title, "distance").values()) for _, title in points]
    means = [float(np.mean(each)) for each in values]
    x = [at for at, _ in points]
    band(place, x, values, color, percent=False)
    for at, each in zip(x, values, strict=True):
        place.plot(np.full(len(each), at), each, marker, color=color, alpha=0.35, markersize=4, mew=0)
    place.plot(x, means, style, color=color, marker=marker, markersize=7, linewidth=2, label=found.target.title)
    place.xaxis.set_major_locator(MaxNLocator(integer=True))


def _axis_label(found: Found, column: str) -> str:
    names = {
        "accuracy": "test accuracy, %",
        "macro_f1": "test macro-F1, %",
        "micro_f1": "test micro-F1, %",
        "generalisation_gap": "test loss minus training loss, nats",
        "distance": r"distance $\|\theta_{\mathrm{init}} - \theta\|_2$ of the encoder",
        "log_train_loss": "log of the training loss (in nats)",
        "test_loss": "test loss, nats",
    }
    return names[found.name(column)]
