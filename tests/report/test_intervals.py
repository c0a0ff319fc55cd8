"""Intervals against published values, and against what is known of their coverage."""

from __future__ import annotations

import numpy as np
import pytest

from sdfast.report import intervals
from sdfast.report.calibration import reliability


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_values_of_newcombe_1998(successes: int, count: int, low: float, high: float) -> None:
    assert intervals.wilson(successes, count) == pytest.approx((low, high), abs=5e-5)


def test_newcombe_gives_the_published_difference() -> None:
    assert intervals.newcombe((56, 70), (48, 80)) == pytest.approx((0.0524, 0.3339), abs=5e-5)  # method 10, case (a)


def test_the_bootstrap_of_a_share_is_near_its_normal_interval() -> None:
    right = np.arange(1000) < 800
    found = intervals.of_rows(1000, lambda rows: float(right[rows].mean()))
    half = 1.96 * (0.8 * 0.2 / 1000) ** 0.5
    assert found == pytest.approx((0.8 - half, 0.8 + half), abs=3e-3)
    assert found == intervals.of_rows(1000, lambda rows: float(right[rows].mean()))  # the same page says the same
    matrix = np.array([[400, 100], [100, 400]])
    share = intervals.of_matrix(matrix, lambda drawn: float(np.trace(drawn) / drawn.sum()))
    assert share == pytest.approx(found, abs=3e-3)


def test_macro_f1_and_average_precision_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    labels, guess = random.integers(0, 4, 300), random.integers(0, 4, 300)
    matrix = metrics.confusion_matrix(labels, guess)
    assert intervals.macro_f1(matrix) == pytest.approx(metrics.f1_score(labels, guess, average="macro"))
    scores, wanted = random.integers(0, 10, 200) / 10, random.random(200) < 0.3
    found = intervals.average_precision(scores, wanted)
    assert found == pytest.approx(metrics.average_precision_score(wanted, scores))


def test_calibration_error_of_answers_that_are_all_as_sure() -> None:
    found = reliability(np.full(100, 0.9), np.arange(100) < 60)
    assert found.error == pytest.approx(0.3) and found.counts.sum() == 100
    assert reliability(np.array([0.0, 1.0]), np.array([False, True])).error == 0.0
