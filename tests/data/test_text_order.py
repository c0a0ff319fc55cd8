"""Batches of documents: the same documents whatever the lengths, cut into parts of similar lengths."""

from __future__ import annotations

import pytest
import torch

from sdfast.data.order import BatchOrder
from sdfast.data.text_order import TextBatchOrder, budget_parts, length_parts, sorted_batches

LENGTHS = torch.tensor([5, 500, 7, 30, 30, 8, 200, 6])


def test_parts_of_similar_lengths() -> None:
    parts = length_parts(LENGTHS, 3)
    assert [LENGTHS[part].tolist() for part in parts] == [[500, 200, 30], [30, 8, 7], [6, 5]]
    assert parts[0].tolist() == [1, 6, 3] and parts[1].tolist()[0] == 4  # equal lengths keep their order
    assert len(length_parts(LENGTHS, 20)) == 8 and length_parts(LENGTHS[:0], 2) == []


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
    orders = [
        TextBatchOrder(rows, lengths, 8, 7),
        TextBatchOrder(rows, lengths, 8, 7, micro_batches=3),
        TextBatchOrder(rows, lengths.flip(0), 8, 7, token_budget=600),
    ]
    for step in (0, 4, 5, 1, 23):
        expected = plain.batch(step)
        for order in orders:
            batch = order.batch(step)
            assert batch.epoch == expected.epoch and torch.equal(batch.rows, expected.rows)
            parts = order.parts(batch)
            assert torch.cat(parts).sort().values.tolist() == list(range(len(batch.rows)))
    assert [len(order.parts(order.batch(0))) for order in orders[:2]] == [1, 3]
    fresh = TextBatchOrder(rows, lengths, 8, 7, micro_batches=3)
    assert all(map(torch.equal, fresh.parts(fresh.batch(23)), orders[1].parts(orders[1].batch(23))))


def test_every_document_once_for_evaluation() -> None:
    rows = torch.tensor([7, 1, 3, 4])
    batches = sorted_batches(rows, LENGTHS, 60)
    assert [batch.rows.tolist() for batch in batches] == [[1], [3, 4], [7]]
    assert sorted_batches(rows[:0], LENGTHS, 60) == []
