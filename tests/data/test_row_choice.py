"""Which rows a limit keeps and a test split takes; the row file; the ordered map."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sdfast.data.parallel import ordered_map
from sdfast.data.rows import RowWriter, duplicate_rows, held_out_rows, row_digest, stratified_rows


def digests_of(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 32), dtype=np.uint8)


def labels_of(counts: list[int], seed: int = 1) -> NDArray[np.int64]:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed).permutation(labels)


def test_limits_are_nested_and_stratified() -> None:
    counts = [600, 300, 95, 5]
    labels, digests = labels_of(counts), digests_of(1000)
    smaller: set[int] = set()
    for limit in (1, 2, 4, 10, 50, 333, 500, 999, 1000):
        rows = stratified_rows(digests, labels, limit, seed=42)
        assert rows.dtype == np.int64 and len(rows) == limit == len(set(rows.tolist()))
        assert np.all(np.diff(rows) > 0)
        assert smaller <= set(rows.tolist())
        smaller = set(rows.tolist())
        kept = np.bincount(labels[rows], minlength=4)
        if limit >= 4:
            assert kept.min() >= 1
            assert np.all(np.abs(kept - limit * np.array(counts) / 1000) <= 3)


def test_a_limit_depends_on_seed_and_content_not_on_the_order() -> None:
    labels, digests = labels_of([50, 50]), digests_of(100)
    rows = stratified_rows(digests, labels, 20, seed=1)
    assert not np.array_equal(rows, stratified_rows(digests, labels, 20, seed=2))
    assert rows.tolist() != list(range(20))
    order = np.random.default_rng(3).permutation(100)
    moved = stratified_rows(digests[order], labels[order], 20, seed=1)
    assert set(order[moved].tolist()) == set(rows.tolist())


def test_limits_of_unlabelled_and_partly_labelled_rows() -> None:
    digests = digests_of(100)
    assert len(stratified_rows(digests, None, 10, seed=0)) == 10
    labels = np.where(np.arange(100) < 80, -1, np.arange(100) % 2)
    whole = [set(stratified_rows(digests, labels, limit, seed=0).tolist()) for limit in (10, 20, 50)]
    assert len(whole[0]) == 10 and sorted(labels[list(whole[0])]) == [0] * 5 + [1] * 5  # labelled ones first
    assert whole[1] == set(range(80, 100)) and whole[1] < whole[2] and len(whole[2]) == 50
    np.testing.assert_array_equal(stratified_rows(digests, None, None, seed=0), np.arange(100))
    np.testing.assert_array_equal(stratified_rows(digests, None, 101, seed=0), np.arange(100))


def test_the_choice_never_changes() -> None:
    """Other machines and library versions must keep the same rows: these were computed once and written down."""
    digests = np.arange(12 * 32, dtype=np.uint16).astype(np.uint8).reshape(12, 32)
    digests[:, 0] = np.arange(12)
    labels = np.arange(12) % 3
    assert stratified_rows(digests, labels, 5, seed=42).tolist() == [0, 3, 4, 5, 7]
    assert held_out_rows(digests, labels, 0.25, seed=42).tolist() == [1, 3, 11]


def test_held_out_shares() -> None:
    counts = [400, 41, 3, 2, 1]
    labels, digests = labels_of(counts), digests_of(sum(counts))
    rows = held_out_rows(digests, labels, 0.25, seed=42)
    assert np.bincount(labels[rows], minlength=5).tolist() == [100, 10, 1, 1, 0]
    assert np.all(np.diff(rows) > 0)
    assert not np.array_equal(rows, held_out_rows(digests, labels, 0.25, seed=43))
    assert len(held_out_rows(digests, labels, 0.0, seed=42)) == 0


def test_the_last_distinct_image_of_a_class_stays_in_train() -> None:
    labels, digests = labels_of([4, 2]), digests_of(6)
    rows = held_out_rows(digests, labels, 0.99, seed=0)
    assert np.bincount(labels[rows], minlength=2).tolist() == [3, 1]


@pytest.mark.parametrize("seed", range(5))
def test_equal_images_stay_on_one_side(seed: int) -> None:
    digests = digests_of(60)
    digests[30:] = digests[:30]  # every image twice, under labels that may differ
    labels = labels_of([40, 20], seed)
    rows = held_out_rows(digests, labels, 0.3, seed)
    test = {digests[row].tobytes() for row in rows}
    train = {digests[row].tobytes() for row in set(range(60)) - set(rows.tolist())}
    assert test and not test & train


def test_rows_without_a_label_are_never_held_out() -> None:
    labels = np.where(np.arange(40) % 2 == 0, -1, 0)
    rows = held_out_rows(digests_of(40), labels, 0.5, seed=0)
    assert len(rows) == 10 and np.all(labels[rows] == 0)


@pytest.mark.parametrize("first", ["labelled", "unlabelled"])
def test_quotas_count_labelled_rows(first: str) -> None:
    """Four classes among 3,000 unlabelled rows, of which 200 are copies of one labelled row, before or after it."""
    counts = [49, 51, 50, 50]
    labels = np.concatenate((labels_of(counts), np.full(3000, -1)))
    digests = digests_of(3200)
    copied = int(np.flatnonzero(labels == 2)[0])
    digests[200:400] = digests[copied]
    if first == "unlabelled":
        labels, digests = labels[::-1].copy(), digests[::-1].copy()
    rows = held_out_rows(digests, labels, 0.25, seed=42)
    shares = [int(0.25 * count + 0.5) for count in counts]
    assert shares == [12, 13, 13, 13] and np.bincount(labels[rows], minlength=4).tolist() == shares
    assert copied not in (rows if first == "labelled" else 3199 - rows)
    without = labels >= 0
    alone = held_out_rows(digests[without], labels[without], 0.25, seed=42)  # the unlabelled ones change little
    assert len(set(np.flatnonzero(without)[alone]) ^ set(rows.tolist())) <= 2


def test_images_of_which_a_copy_has_no_label_are_never_held_out() -> None:
    digests = digests_of(40)
    digests[20:] = digests[:20]
    labels = np.where(np.arange(40) < 30, 0, -1)  # images 10..19 have a copy without a label
    rows = held_out_rows(digests, labels, 0.9, seed=0)
    assert len(rows) and np.all(rows % 20 < 10)


def test_duplicate_rows() -> None:
    ours, theirs = digests_of(5), digests_of(4, seed=9)
    ours[[1, 3]] = theirs[2]
    theirs[3] = theirs[2]
    assert duplicate_rows(ours, theirs) == [(1, 2), (3, 2)]


def test_row_digest_sees_bytes_and_shape() -> None:
    row = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert row_digest(row) == row_digest(row.copy()) and len(row_digest(row)) == 32
    assert row_digest(row) != row_digest(row.reshape(2, 3, 2))
    assert row_digest(row) != row_digest(row + 1)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_row_writer_writes_what_numpy_reads(tmp_path: Path, count: int) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (count, 3, 2, 1), dtype=np.uint8)
    with RowWriter(tmp_path / "x.npy", (3, 2, 1)) as writer:
        for row in rows:
            writer.append(row)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows)
    with RowWriter(tmp_path / "y.npy", (3, 2, 1)) as writer, pytest.raises(ValueError, match=r"\(3, 2, 1\) uint8"):
        writer.append(np.zeros((2, 3, 1), np.uint8))


@pytest.mark.parametrize("threads", [1, 3])
def test_ordered_map_keeps_order_and_reads_little_ahead(threads: int) -> None:
    drawn = 0

    def elements() -> object:
        nonlocal drawn
        for number in range(200):
            drawn += 1
            yield number

    taken = []
    for result in ordered_map(lambda number: number * 2, elements(), threads):
        taken.append(result)
        assert drawn - len(taken) <= 4 * threads
    assert taken == [2 * number for number in range(200)]


def test_ordered_map_raises_in_place_and_stops() -> None:
    started = threading.Semaphore(0)

    def work(number: int) -> int:
        started.release()
        if number == 5:
            raise KeyError("five")
        return number

    results = ordered_map(work, range(1000), 2)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(KeyError, match="five"):
        next(results)
    calls = 0
    while started.acquire(blocking=False):
        calls += 1
    assert calls <= 5 + 8
