"""Grouped and stratified choices of rows, against scikit-learn's and their own rules."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

from sdfast.data.division import fold_rows, grouped_test_rows
from sdfast.data.rows import held_out_rows

Folds = list[NDArray[np.int64]]


def digests_of(contents: NDArray[np.int64]) -> NDArray[np.uint8]:
    parts = [hashlib.sha256(str(content).encode()).digest() for content in contents]
    return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, 32)


def grouped(seed: int, groups: int, classes: int, purity: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels and groups of several hundred rows; a group is mostly of some classes where `purity` is small."""
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), random.geometric(0.1, groups))
    preferred = random.dirichlet(np.full(classes, purity), groups)
    labels = np.array([random.choice(classes, p=preferred[each]) for each in group])
    order = random.permutation(len(group))
    return labels[order], group[order]


def unevenness(folds: Folds, labels: NDArray[np.int64]) -> float:
    """Standard deviation over the folds of their share of a class, in the mean over the classes."""
    counts = np.array([np.bincount(labels[rows], minlength=labels.max() + 1) for rows in folds])
    return float(np.std(counts / counts.sum(axis=0), axis=0).mean())


@pytest.mark.parametrize(("groups", "classes", "folds", "purity"), [(30, 2, 3, 1), (80, 5, 5, 0.3), (200, 4, 10, 10)])
def test_grouped_folds_are_as_even_as_those_of_scikit_learn(
    groups: int, classes: int, folds: int, purity: float
) -> None:
    ours, theirs, blind = [], [], []
    for seed in range(4):
        labels, group = grouped(seed, groups, classes, purity)
        nothing = np.zeros(len(labels))
        found = fold_rows(digests_of(np.arange(len(labels))), labels, [f"p{each}" for each in group], folds, seed)
        assert np.array_equal(np.sort(np.concatenate(found)), np.arange(len(labels)))
        table = pd.DataFrame({"group": group, "fold": -1})
        for number, rows in enumerate(found):
            table.loc[rows, "fold"] = number
        assert (table.groupby("group")["fold"].nunique() == 1).all()
        ours.append(unevenness(found, labels))
        both = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        theirs.append(unevenness([test for _, test in both.split(nothing, labels, group)], labels))
        blind.append(unevenness([test for _, test in GroupKFold(folds).split(nothing, labels, group)], labels))
    assert np.mean(ours) <= 1.25 * np.mean(theirs) + 0.002
    assert np.mean(ours) <= np.mean(blind)


def test_folds_without_groups_differ_by_one_row_of_a_class_as_those_of_scikit_learn() -> None:
    labels = np.random.default_rng(1).choice(6, 403, p=[0.4, 0.3, 0.15, 0.1, 0.03, 0.02])
    found = fold_rows(digests_of(np.arange(403)), labels, None, 5, 42)
    theirs = [test for _, test in StratifiedKFold(5).split(np.zeros(403), labels)]
    for folds in (found, theirs):
        counts = np.array([np.bincount(labels[rows], minlength=6) for rows in folds])
        assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()
        sizes = [len(rows) for rows in folds]
        assert sum(sizes) == 403 and max(sizes) - min(sizes) <= 1


def test_copies_and_groups_that_share_one_are_in_one_fold_and_unlabelled_rows_only_with_them() -> None:
    random = np.random.default_rng(2)
    contents = random.integers(0, 150, 240)
    labels = random.integers(-1, 3, 240)
    groups = [None if row % 3 else f"g{row // 12}" for row in range(240)]
    found = fold_rows(digests_of(contents), labels, groups, 4, 0)
    fold = np.full(240, -1)
    for number, rows in enumerate(found):
        assert (fold[rows] == -1).all()
        fold[rows] = number
    assert (fold[labels >= 0] >= 0).all()
    for key in (pd.Series(contents), pd.Series(groups)):
        assert (pd.Series(fold).groupby(key).nunique() == 1).all()
    # by hand: rows linked through copies and groups; where none is labelled, all stay in train
    linked = np.arange(240)
    for _ in range(240):
        before = linked.copy()
        for key in (pd.Series(contents), pd.Series(groups)):
            least = pd.Series(linked).groupby(key).transform("min")
            linked = np.where(key.isna(), linked, least).astype(int)
        if np.array_equal(before, linked):
            break
    labelled = pd.Series(labels >= 0).groupby(linked).transform("any").to_numpy()
    assert np.array_equal(fold >= 0, labelled)


def test_the_choice_depends_on_contents_groups_and_seed_and_not_on_the_order_of_rows() -> None:
    labels, group = grouped(5, 40, 3, 1)
    contents = np.arange(len(labels))
    names = np.array([f"p{each}" for each in group])
    order = np.random.default_rng(0).permutation(len(labels))

    def folds(rows: NDArray[np.int64], seed: int) -> list[set[int]]:
        found = fold_rows(digests_of(contents[rows]), labels[rows], list(names[rows]), 4, seed)
        return [set(contents[rows][each].tolist()) for each in found]

    first = folds(contents, 0)
    assert folds(order, 0) == first
    assert sorted(map(sorted, folds(contents, 1))) != sorted(map(sorted, first))

    def held_out(rows: NDArray[np.int64], seed: int) -> set[int]:
        found = grouped_test_rows(digests_of(contents[rows]), labels[rows], list(names[rows]), 0.25, seed)
        return set(contents[rows][found].tolist())

    assert held_out(order, 7) == held_out(contents, 7) != held_out(contents, 8)


@pytest.mark.parametrize("seed", range(5))
def test_a_grouped_test_split_has_whole_groups_and_the_share_of_each_class(seed: int) -> None:
    labels, group = grouped(seed, 120, 4, 3)
    test = grouped_test_rows(digests_of(np.arange(len(labels))), labels, [f"{g}" for g in group], 0.25, seed)
    train = np.setdiff1d(np.arange(len(labels)), test)
    assert not set(group[test]) & set(group[train])
    shares = np.bincount(labels[test], minlength=4) / np.bincount(labels)
    assert np.abs(shares - 0.25).max() < 0.03 and abs(len(test) / len(labels) - 0.25) < 0.02


def test_a_class_of_one_group_and_a_whole_of_one_group_stay_in_train() -> None:
    labels = np.array([0] * 10 + [1] * 3)
    groups = [f"p{row}" for row in range(10)] + ["q"] * 3
    for seed in range(5):
        test = grouped_test_rows(digests_of(np.arange(13)), labels, groups, 0.3, seed)
        assert len(test) == 3 and (labels[test] == 0).all()
    assert len(grouped_test_rows(digests_of(np.arange(13)), labels, ["same"] * 13, 0.3, 0)) == 0
    assert len(grouped_test_rows(digests_of(np.arange(13)), labels, groups, 0.0, 0)) == 0


def test_rows_without_a_group_are_each_their_own() -> None:
    labels = np.arange(400) % 4
    test = grouped_test_rows(digests_of(np.arange(400)), labels, [None] * 400, 0.25, 42)
    assert np.bincount(labels[test]).tolist() == [25] * 4
    alone = held_out_rows(digests_of(np.arange(400)), labels, 0.25, 42)  # the rule without groups
    assert np.bincount(labels[alone]).tolist() == [25] * 4
