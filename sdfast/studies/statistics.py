"""Means, deviations and paired comparisons of a few runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from sdfast.studies.units import UnitKind

_ROUNDING = 1e-6  # relative; metrics are computed in float32

Key = TypeVar("Key", int, tuple[int, ...])  # of a run


@dataclass(frozen=True)
class Summary:
    """The values of one arm.

    Attributes:
        count: runs.
        mean: of their values.
        deviation: sample standard deviation; None for one run.
    """

    count: int
    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Paired:
    """Differences of two arms, run by run with the same seed, or by fold, or by chain.

    Attributes:
        count: pairs.
        mean: of the differences.
        low, high: 95 % interval of the mean, by Student's t; None where there is none.
        p: of the paired t-test; None where there is none.
        p_holm: corrected for the other comparisons beside it.
        note: why there is no interval.
    """

    count: int
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    note: str | None = None


def summary(values: Sequence[float]) -> Summary:
    """Number, mean and sample standard deviation of at least one value."""
    return Summary(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def interval(values: Sequence[float], overlap: float = 0.0) -> tuple[float, float] | None:
    """95 % interval of the mean by Student's t; None for one value.

    Args:
        values: of independent runs or chains, or of the folds of a cross-validation, which share rows of train.
        overlap: for folds, the test rows for each row of train: the variance of the mean is that of the values times
            (1 / their number + overlap), as Nadeau and Bengio (2003) correct it.
    """
    if len(values) < 2:
        return None
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) * math.sqrt(1 / len(values) + overlap)
    mean = statistics.fmean(values)
    return mean - half, mean + half


def paired(
    values: Mapping[Key, float], reference: Mapping[Key, float], overlap: float = 0.0, kind: UnitKind = "seed"
) -> Paired | None:
    """Compare by seed, fold or chain; None when they have none in common.

    Args:
        values: of an arm.
        reference: of the one that it is compared with.
        overlap: see `interval`.
        kind: what the values are of.
    """
    from scipy import stats

    differences = [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]
    if not differences:
        return None
    count, mean = len(differences), statistics.fmean(differences)
    if count == 1:
        return Paired(count, mean, note=f"one {kind}")
    spread = statistics.stdev(differences)
    if spread <= _ROUNDING * max(map(abs, (*values.values(), *reference.values()))):
        return Paired(count, mean, note=f"same for all {kind}s")
    low, high = interval(differences, overlap) or (mean, mean)
    t = mean / (spread * math.sqrt(1 / count + overlap))
    return Paired(count, mean, low, high, float(2 * stats.t.sf(abs(t), count - 1)))


def with_holm(compared: Mapping[str, Paired]) -> dict[str, Paired]:
    """The same with Holm's correction over those that have a p-value."""
    ordered = sorted((each.p, name) for name, each in compared.items() if each.p is not None)
    corrected, largest = {}, 0.0
    for rank, (p, name) in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * p))
        corrected[name] = largest
    return {name: replace(each, p_holm=corrected.get(name)) for name, each in compared.items()}
