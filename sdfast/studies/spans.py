"""The interval around a mean, in a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sdfast.studies.statistics import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST = 3  # runs; the interval of two reaches 13 times as far as they lie from their mean, and says nothing


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


def span_of(values: Sequence[float], percent: bool) -> Span | None:
    """None for fewer than `FEWEST` values: they are drawn, and their mean.

    Args:
        values: of the runs.
        percent: whether they are shares in percent.
    """
    ends = interval(values) if len(values) >= FEWEST else None
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
