"""Sampling that takes as many rows of each class: counts, addresses, any step at once, shares of processes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from sdfast.data.order import Batch, BatchOrder
from sdfast.modalities.images.objectives import LabelledImages
from sdfast.modalities.images.reader import Normalise
from sdfast.modalities.texts.order import TextBatchOrder
from sdfast.ranks import Ranks

ROWS = torch.arange(100, 150)
CLASSES = torch.tensor([7] * 41 + [2] * 8 + [5])[torch.randperm(50, generator=torch.Generator().manual_seed(0))]


def order_of(batch_size: int = 16, seed: int = 3) -> BatchOrder:
    return BatchOrder(ROWS, batch_size, seed, CLASSES)


def epoch_of(order: BatchOrder, number: int) -> list[Batch]:
    return [order.batch(step + number * order.batches_per_epoch) for step in range(order.batches_per_epoch)]


def test_each_class_is_taken_as_often_and_so_is_each_row_of_a_class() -> None:
    order, label = order_of(), dict(zip(ROWS.tolist(), CLASSES.tolist(), strict=True))
    taken: Counter[int] = Counter()
    for number in range(12):
        batches = epoch_of(order, number)
        assert [len(batch.rows) for batch in batches] == [16, 16, 16, 2] and {b.epoch for b in batches} == {number}
        now = Counter(torch.cat([batch.rows for batch in batches]).tolist())
        of_epoch = Counter(label[row] for row in now.elements())
        assert set(of_epoch.values()) <= {16, 17} and set(of_epoch) == {7, 2, 5}
        taken += now
        classes = Counter(label[row] for row in taken.elements())
        assert max(classes.values()) - min(classes.values()) <= 1
        for each in classes:
            of_class = [taken[row] for row in label if label[row] == each]
            assert max(of_class) - min(of_class) <= 1
    assert len(taken) == 50  # after three epochs every row of the largest class has had its turn


def test_passes_count_how_often_a_row_was_taken_before() -> None:
    order, seen = order_of(), dict[int, list[int]]()
    for number in range(6):
        for batch in epoch_of(order, number):
            assert batch.passes is not None
            for row, passes in zip(batch.rows.tolist(), batch.passes.tolist(), strict=True):
                seen.setdefault(row, []).append(passes)
    assert all(sorted(passes) == list(range(len(passes))) for passes in seen.values())


def test_any_step_at_once_and_another_seed_otherwise() -> None:
    order = order_of()
    for step in (9, 2, 23):  # back and forth, as a resumed run begins anywhere
        whole, alone = order.batch(step), order_of().batch(step)
        assert torch.equal(whole.rows, alone.rows) and whole.passes is not None and alone.passes is not None
        assert torch.equal(whole.passes, alone.passes)
        assert not torch.equal(whole.rows, order_of(seed=4).batch(step).rows)
    assert order_of().batch(0).rows.tolist() != sorted(order_of().batch(0).rows.tolist())


@pytest.mark.parametrize("text", [False, True])
def test_the_processes_share_a_batch_and_its_passes(text: bool) -> None:
    lengths = torch.arange(200) % 13 + 1
    order = TextBatchOrder(ROWS, lengths, 16, 3, 40, CLASSES) if text else order_of()
    for step in range(8):
        batch = order_of().batch(step)
        shares = [order.share(step, Ranks(rank, 3)) for rank in range(3)]
        assert all(share.whole is not None and torch.equal(share.whole, batch.rows) for share in shares)
        pairs = [pair for share in shares if not share.idle for pair in _pairs(share)]
        assert sorted(pairs) == sorted(_pairs(batch))


def _pairs(batch: Batch) -> list[tuple[int, int]]:
    assert batch.passes is not None
    return list(zip(batch.rows.tolist(), batch.passes.tolist(), strict=True))


def test_a_row_that_comes_several_times_in_an_epoch_is_mirrored_anew_each_time() -> None:
    views = LabelledImages(Normalise((0.5,), (0.25,)), flip=0.5, seed=1)
    rows = torch.full((64,), 9)
    times = torch.arange(64)
    drawn: Tensor = views.draw(Batch(0, rows, passes=times), 1)
    assert 16 < int(drawn.sum()) < 48
    as_epochs = [bool(views.draw(Batch(time, rows[:1]), 1)) for time in times.tolist()]
    assert drawn.tolist() == as_epochs
