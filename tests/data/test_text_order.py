"""Batches of documents: the same documents whatever the lengths, cut into parts of similar lengths."""

from __future__ import annotations

import pytest
import torch

from sdfast.data.order import BatchOrder
from sdfast.modalities.texts.order import TextBatchOrder, budget_parts, sorted_batches
from sdfast.ranks import Ranks

LENGTHS = torch.tensor([5, 500, 7, 30, 30, 8, 200, 6])


@pytest.mark.parametrize("budget", [1, 200, 240, 400, 4000])
def test_parts_by_token_budget(budget: int) -> None:
    parts = budget_parts(LENGTHS, budget)
    assert torch.cat(parts).sort().values.tolist() == list(range(8))
    for part in parts:
        assert len(part) * int(LENGTHS[part].max()) <= budget or len(part) == 1
    assert budget_parts(LENGTHS[:0], budget) == []
    if budget == 400:
        assert [LENGTHS[part].tolist() for part in parts] == [[500], [200, 30], [30, 8, 7, 6, 5]]


def test_lengths_and_budget_never_change_the_documents_of_a_batch() -> None:
    rows = torch.arange(3, 40)
    lengths = torch.randint(3, 512, (50,), generator=torch.Generator().manual_seed(0))
    plain = BatchOrder(rows, 8, seed=7)
    orders = [TextBatchOrder(rows, lengths, 8, 7), TextBatchOrder(rows, lengths.flip(0), 8, 7, token_budget=600)]
    for step in (0, 4, 5, 1, 23):
        expected = plain.share(step, Ranks())
        for order in orders:
            batch = order.share(step, Ranks())
            assert batch.epoch == expected.epoch and batch.rows.sort().values.equal(expected.rows.sort().values)
            there = order.lengths[batch.rows]
            assert (there[1:] <= there[:-1]).all()
            if order.token_budget is None:
                assert batch.micro_batches is None
                continue
            assert batch.micro_batches is not None
            assert [part.start for part in batch.micro_batches[1:]] == [part.stop for part in batch.micro_batches[:-1]]
            assert batch.micro_batches[0].start == 0 and batch.micro_batches[-1].stop == len(batch.rows)
            for part in batch.micro_batches:
                assert len(there[part]) * int(there[part].max()) <= 600 or len(there[part]) == 1
    assert torch.equal(TextBatchOrder(rows, lengths, 8, 7).share(23, Ranks()).rows, orders[0].share(23, Ranks()).rows)


def test_processes_have_as_many_parts_and_together_the_documents_of_one() -> None:
    rows = torch.arange(9)
    lengths = torch.tensor([500, 3, 3, 3, 500, 500, 400, 3, 3])
    order = TextBatchOrder(rows, lengths, 8, 7, token_budget=500)
    for step in range(4):  # the second and fourth batch have one document
        whole = order.batch(step)
        shares = [order.share(step, Ranks(rank, 3)) for rank in range(3)]
        working = torch.cat([share.rows for share in shares if not share.idle])
        assert working.sort().values.equal(whole.rows.sort().values)
        assert all(share.whole is not None and share.whole.equal(whole.rows) for share in shares)
        counts = {len(share.micro_batches or ()) for share in shares}
        assert len(counts) == 1
        for share in shares:
            assert share.micro_batches is not None
            sizes = [part.stop - part.start for part in share.micro_batches]
            assert sum(sizes) == len(share.rows) and sizes[0] > 0
            assert sizes[sum(size > 0 for size in sizes) :] == [0] * sum(size == 0 for size in sizes)


def test_every_document_once_for_evaluation() -> None:
    rows = torch.tensor([7, 1, 3, 4])
    batches = sorted_batches(rows, LENGTHS, 60)
    assert [batch.rows.tolist() for batch in batches] == [[1], [3, 4], [7]]
    assert sorted_batches(rows[:0], LENGTHS, 60) == []
