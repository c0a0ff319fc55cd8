"""Whether a classifier is right as often as it says: a reliability diagram and the expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from sdfast.report.answers import Answers, answers_of
from sdfast.report.panel import Panel, percent
from sdfast.report.records import Run, StageRecord

BINS = 15
_SIZE, _LEFT, _BOTTOM, _TOP, _COUNTS = 300, 40, 26, 8, 54


@dataclass(frozen=True)
class Reliability:
    """Answers by how confident they are.

    Attributes:
        edges: [bins + 1] of the confidence.
        counts: [bins] answers.
        confidence, accuracy: [bins] means; nan without an answer.
        error: expected calibration error, the mean over the answers of the bins' differences (Naeini et al. 2015; Guo
            et al. 2017 with 15 bins of equal width).
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    error: float


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """Sort answers into bins of equal width.

    Args:
        confidence: [n] in [0, 1], n > 0.
        right: [n].
        bins: how many.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)  # (low, high], as Guo et al.
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(place, weights=confidence, minlength=bins) / counts
        accuracy = np.bincount(place, weights=right.astype(np.float64), minlength=bins) / counts
    gaps = np.abs(np.nan_to_num(accuracy) - np.nan_to_num(mean))
    return Reliability(edges, counts, mean, accuracy, float((counts * gaps).sum() / counts.sum()))


def calibration_panel(run: Run, stage: StageRecord) -> Panel | None:
    """The diagram of a fine-tuning; None for numbers, and where no predictions are kept."""
    assert stage.result is not None
    answers = answers_of(run.out, stage.folder, stage.result)
    if answers is None:
        return None
    confidence, right, what = _confidence(answers)
    if confidence is None or right is None or not len(confidence):
        return None
    found = reliability(confidence, right)
    mean, share = float(confidence.mean()), float(right.mean())
    tends = "more confident than it is right" if mean > share else "less confident than it is right"
    lead = (
        f"Expected calibration error {percent(found.error)} ({BINS} bins). On average the model is {percent(mean)}"
        f" confident and {percent(share)} right: {tends}."
    )
    caption = (
        f"Of {len(confidence):,} {what}, by how confident the model is: how many are right (blue; on the line it would"
        " be right as often as it says), and below how many answers there are."
    )
    body = Markup('<figure class="chart reliability">{}<figcaption>{}</figcaption></figure>')
    return Panel("calibration", "Calibration", body.format(_drawn(found), caption), lead)


def _confidence(answers: Answers) -> tuple[NDArray[np.float64] | None, NDArray[np.bool_] | None, str]:
    if answers.confidence is not None:
        return answers.confidence, answers.labels == answers.predicted, "answers"
    if answers.probabilities is not None and answers.labels.dtype == bool:  # each class is an answer of yes or no
        sure = np.maximum(answers.probabilities, 1 - answers.probabilities).reshape(-1)
        return sure, ((answers.probabilities >= 0.5) == answers.labels).reshape(-1), "answers on single classes"
    return None, None, ""


def _drawn(found: Reliability) -> Markup:
    width, plot = _SIZE - _LEFT - 8, _SIZE - _LEFT - 8
    height = _TOP + plot + 14 + _COUNTS + _BOTTOM
    base = _TOP + plot

    def x(share: float) -> float:
        return _LEFT + share * width

    def y(share: float) -> float:
        return base - share * plot

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        line = '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
        text = '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
        parts.append(Markup(line).format(_LEFT, x(1), y(tick), y(tick)))
        parts.append(Markup(text).format(_LEFT - 6, y(tick) + 3.5, f"{100 * tick:.0f} %"))
        below = '<text x="{:.1f}" y="{}" text-anchor="{}">{}</text>'
        parts.append(
            Markup(below).format(x(tick), height - 10, "end" if tick == 1 else "middle", f"{100 * tick:.0f} %")
        )
    most = max(int(found.counts.max()), 1)
    for low, high, count, right, sure in zip(
        found.edges, found.edges[1:], found.counts, found.accuracy, found.confidence, strict=False
    ):
        if not count:
            continue
        told = f"{percent(float(sure))} confident, {percent(float(right))} right, {int(count):,} answers"
        bar = (
            '<g><title>{}</title><rect fill="var(--c1)" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
            '<rect fill="var(--soft)" fill-opacity=".45" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/></g>'
        )
        wide = width * (high - low) - 1.5
        tall = _COUNTS * int(count) / most
        under = base + 14 + _COUNTS - tall
        parts.append(
            Markup(bar).format(told, x(low), y(right), wide, max(plot * right, 0.8), x(low), under, wide, tall)
        )
    ideal = '<line stroke="var(--ink)" stroke-dasharray="4 3" x1="{}" y1="{}" x2="{}" y2="{}"/>'
    parts.append(Markup(ideal).format(x(0), y(0), x(1), y(1)))
    text = '<svg viewBox="0 0 {} {}" role="img" aria-label="reliability diagram">{}</svg>'
    return Markup(text).format(_SIZE, height, Markup("").join(parts))
