"""The figure of `sdfast theory`: what is bounded, the paper's bound and the repaired one, by round."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from sdfast.theory.verify import Curves

_TRUE, _PAPER, _REPAIRED, _START = "#1b1b1b", "#c8553d", "#2a6f97", "#8a8a8a"
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "sdfast",  # the same bytes for the same numbers
}


def draw_figure(curves: Curves, about: str) -> dict[str, bytes]:
    """The picture as {"png": ..., "svg": ...}; `about` is the line below it that says what was drawn."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(9, 4.2), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        left, right = figure.subplots(1, 2)
        _norms(left, curves)
        _distances(right, curves)
        figure.supxlabel(about, fontsize=8.5, color="#555555")
        pictures = {}
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            file = io.BytesIO()
            figure.savefig(file, format=kind, dpi=160, metadata=metadata)
            pictures[kind] = file.getvalue()
    return pictures


def _norms(axes: Axes, curves: Curves) -> None:
    axes.set_title("Norm after fine-tuning", loc="left", fontweight="bold")
    fails = curves.norm > curves.paper * (1 + 1e-12)
    paper = r"paper's $\zeta(t)$" + (f", too small for {fails.sum()} of {len(fails)} $t$" if fails.any() else "")
    _line(axes, curves.repaired, r"repaired $\tilde\zeta(t)$", _REPAIRED, "s", "--")
    _line(axes, curves.norm, r"$\|w_{t,T}\|$", _TRUE, "o")
    _line(axes, curves.paper, paper, _PAPER, "^", "--")
    _finish(axes, [curves.repaired, curves.norm, curves.paper])


def _distances(axes: Axes, curves: Curves) -> None:
    axes.set_title("Distance to the start", loc="left", fontweight="bold")
    largest = curves.norm + curves.start
    _line(axes, curves.repaired + curves.start, r"repaired $\tilde\psi(t)$", _REPAIRED, "s", "--")
    _line(axes, largest, r"$\max\,\|w_{\mathrm{init}} - w_{t,T}\|$ at this $\|w_{\mathrm{init}}\|$", _START, "v", ":")
    _line(axes, curves.paper + curves.start, r"paper's $\psi(t)$", _PAPER, "^", "--")
    _line(axes, curves.distance, r"$\|w_{\mathrm{init}} - w_{t,T}\|$", _TRUE, "o")
    _finish(axes, [curves.repaired + curves.start, largest, curves.paper + curves.start, curves.distance])


def _line(axes: Axes, values: np.ndarray, label: str, color: str, marker: str, style: str = "-") -> None:
    hollow = {"s": 9, "v": 6}.get(marker)  # what may lie under another line stays visible around it
    axes.plot(
        range(len(values)),
        values,
        style,
        marker=marker,
        color=color,
        label=label,
        markersize=hollow or 5,
        markerfacecolor="white" if hollow else color,
        linewidth=1.6,
    )


def _finish(axes: Axes, lines: Sequence[np.ndarray]) -> None:
    low, high = min(map(np.min, lines)), max(map(np.max, lines))
    room = max(high - low, 0.05 * high, 1e-9)
    axes.set_ylim(low - 0.08 * room, high + 0.45 * room)  # the legend has the upper part to itself
    axes.set_xlabel("rounds of self-distillation, $t$")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper right")
