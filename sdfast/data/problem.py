"""What the labels of rows are, and what is asked of them whatever they are: one class, several classes, or numbers.

As arrays they are told apart by shape and type: one class [n] int64 (-1: no label); several classes [n, C] uint8, 1
where a class applies (255 in the whole row: no label; 0 in the whole row: labelled with none of them); numbers [n, K]
float32 (NaN: no label).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Label = int | tuple[int, ...] | tuple[float, ...] | None  # of one row: a class, classes, numbers; None: no label
Labels = NDArray[Any]  # of many

SINGLE: ProblemType = "single_label_classification"
SEVERAL: ProblemType = "multi_label_classification"
REGRESSION: ProblemType = "regression"

_UNLABELLED = 255
_BINS, _LEAST = 10, 4  # of numbers: at most so many bins, of so many rows at least


def label_array(labels: Sequence[Label], problem: ProblemType, width: int) -> Labels:
    """The labels of rows as an array.

    Args:
        labels: of each row; None or -1 where it has none.
        problem: what they are.
        width: how many classes or numbers there are.

    Returns:
        [n] int64, [n, width] uint8 or [n, width] float32.
    """
    if problem == SINGLE:
        return np.asarray([-1 if label is None else label for label in labels], np.int64)
    several = problem == SEVERAL
    array: Labels = np.zeros((len(labels), width), np.uint8 if several else np.float32)
    for row, label in enumerate(labels):
        if not isinstance(label, tuple):
            array[row] = _UNLABELLED if several else np.nan
        elif several:
            array[row, [int(number) for number in label]] = 1
        else:
            array[row] = label
    return array


def problem_of(labels: Labels) -> ProblemType:
    """What the labels of an array are."""
    if labels.ndim == 1:
        return SINGLE
    return SEVERAL if labels.dtype == np.uint8 else REGRESSION


def has_label(labels: Labels) -> NDArray[np.bool_]:
    """[n] bool: which rows have a label."""
    kind = problem_of(labels)
    if kind == SINGLE:
        return np.asarray(labels >= 0)
    bare = labels == _UNLABELLED if kind == SEVERAL else np.isnan(labels)
    return np.asarray(~bare.any(axis=1))


def class_counts(labels: Labels, classes: int) -> NDArray[np.int64]:
    """[classes] int64: how many rows have each class; numbers have none."""
    kind, known = problem_of(labels), labels[has_label(labels)]
    if kind == SINGLE:
        return np.bincount(known, minlength=classes)
    return known.sum(axis=0, dtype=np.int64) if kind == SEVERAL else np.zeros(0, np.int64)


def strata(labels: Labels) -> NDArray[np.int64]:
    """[n] int64: the group of each row whose share is kept where some rows are chosen; -1 where it has no label.

    One class: the class. Several: the row's rarest (of equally rare ones the first), and one group more for rows with
    none. Numbers: up to ten bins of equally many rows by the mean of the standardised numbers, at least four rows each;
    equal values are in one bin.
    """
    kind, known = problem_of(labels), has_label(labels)
    if kind == SINGLE:
        return labels
    groups = np.full(len(labels), -1, np.int64)
    if not known.any():
        return groups
    given = labels[known]
    if kind == SEVERAL:
        counts = given.sum(axis=0, dtype=np.int64)
        rarity = np.where(given == 1, counts, len(given) + 1)
        groups[known] = np.where(given.any(axis=1), rarity.argmin(axis=1), given.shape[1])
        return groups
    exact = given.astype(np.float64)
    spread = exact.std(axis=0)
    place = ((exact - exact.mean(axis=0)) / np.where(spread > 0, spread, 1)).mean(axis=1)
    bins = max(1, min(_BINS, len(place) // _LEAST))
    edges = np.quantile(place, np.arange(1, bins) / bins)
    groups[known] = np.searchsorted(edges, place, side="right")
    return groups
