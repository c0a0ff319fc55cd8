"""Paired comparisons against scipy and by hand."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from sdfast.studies.statistics import Paired, interval, paired, summary, with_holm

OURS = {0: 65.0, 1: 66.5, 2: 64.0, 3: 67.0, 9: 1.0}
THEIRS = {3: 64.0, 2: 63.5, 1: 64.0, 0: 64.5, 7: 99.0}


def test_summary_by_hand() -> None:
    found = summary([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3) and found.deviation == pytest.approx(math.sqrt(7 / 3))
    assert summary([3.0]).deviation is None


def test_pairs_are_those_with_a_common_seed_and_agree_with_scipy() -> None:
    found = paired(OURS, THEIRS)
    theirs = stats.ttest_rel([65.0, 66.5, 64.0, 67.0], [64.5, 64.0, 63.5, 64.0])
    span = theirs.confidence_interval(0.95)
    assert found is not None and found.count == 4 and found.mean == pytest.approx(1.625)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == (pytest.approx(span.low), pytest.approx(span.high))


def test_interval_by_hand() -> None:
    low, high = interval([1.0, 3.0]) or (0.0, 0.0)  # t of one degree of freedom is 12.706
    assert (low, high) == (pytest.approx(2 - 12.7062, abs=1e-3), pytest.approx(2 + 12.7062, abs=1e-3))
    assert interval([1.0]) is None


def test_no_interval_where_there_is_none() -> None:
    one = paired({0: 3.0}, {0: 1.0, 1: 5.0})
    assert one == Paired(1, 2.0, note="one seed")
    same = paired({0: 100 * 0.1, 1: 100 * 0.3000001}, {0: 0.0, 1: 20.0})  # float32 metrics differ in the eighth digit
    assert same is not None and same.p is None and same.low is None and same.note == "same for all seeds"
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_holm_by_hand() -> None:
    compared = {name: Paired(3, 0.0, p=p) for name, p in (("a", 0.01), ("b", 0.04), ("c", 0.03), ("d", 0.6))}
    compared["none"] = Paired(1, 0.0, note="one seed")
    found = with_holm(compared)
    assert {name: each.p_holm for name, each in found.items()} == {
        "a": pytest.approx(0.04),
        "c": pytest.approx(0.09),
        "b": pytest.approx(0.09),  # 2 * 0.04 would be below the one before it
        "d": pytest.approx(0.6),
        "none": None,
    }
    assert with_holm({"a": Paired(3, 0.0, p=0.7), "b": Paired(3, 0.0, p=0.8)})["a"].p_holm == 1.0
