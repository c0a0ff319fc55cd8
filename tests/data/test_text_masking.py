"""Masked tokens: how many, which never, what becomes of them, and that nothing but the address decides."""

from __future__ import annotations

import pytest
import torch

from sdfast.data.order import Batch
from sdfast.errors import UserError
from sdfast.modalities.texts.batch import TokenBatch, tokens_of
from sdfast.modalities.texts.masking import TokenMasking, batch_token_mask, token_mask
from sdfast.ranks import Ranks

MASKING = TokenMasking(mask_id=4, vocabulary=1000, special_ids=(0, 1, 2, 4))


def texts(rows: torch.Tensor) -> TokenBatch:
    """Of lengths that differ, each begun by 0 and ended by 2."""
    made = []
    for row in rows.tolist():
        ids = torch.randint(5, 1000, (10 + 37 * row % 90,), generator=torch.Generator().manual_seed(row))
        ids[0], ids[-1] = 0, 2
        made.append(ids)
    return TokenBatch(torch.cat(made), torch.tensor([len(ids) for ids in made]))


def test_shares() -> None:
    rows = torch.arange(2000)
    batch = texts(rows)
    drawn = token_mask(1, 0, rows, batch, MASKING)
    free = len(batch.ids) - 2 * len(rows)
    assert abs(len(drawn.chosen) / free - 0.15) < 4 * (0.15 * 0.85 / free) ** 0.5
    seen, count = drawn.batch.ids[drawn.chosen], len(drawn.chosen)
    for share, wanted in (((seen == 4).sum() / count, 0.8), ((seen == drawn.labels).sum() / count, 0.1)):
        assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / count) ** 0.5
    random = seen[(seen != 4) & (seen != drawn.labels)]
    assert (
        random.min() < 20 and random.max() > 980 and abs(random.float().mean() - 499.5) < 4 * 289 / len(random) ** 0.5
    )


def test_what_is_chosen_and_what_is_not() -> None:
    rows = torch.arange(300)
    batch = texts(rows)
    drawn = token_mask(1, 0, rows, batch, MASKING)
    untouched = torch.ones(len(batch.ids), dtype=torch.bool)
    untouched[drawn.chosen] = False
    assert torch.equal(drawn.batch.ids[untouched], batch.ids[untouched])
    assert torch.equal(drawn.labels, batch.ids[drawn.chosen])
    assert not torch.isin(drawn.labels, torch.tensor(MASKING.special_ids)).any()
    assert (drawn.chosen.diff() > 0).all()
    parts = [drawn.chosen[(drawn.chosen >= a) & (drawn.chosen < b)] for a, b in spans(batch)]
    assert drawn.counts.tolist() == [len(part) for part in parts]
    assert torch.equal(drawn.batch.lengths, batch.lengths)


def spans(batch: TokenBatch) -> list[tuple[int, int]]:
    ends = batch.lengths.cumsum(0).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def test_mask_only_chooses_the_same_tokens() -> None:
    rows = torch.arange(50)
    batch = texts(rows)
    both = [token_mask(3, 2, rows, batch, MASKING)]
    both.append(token_mask(3, 2, rows, batch, TokenMasking(4, 1000, MASKING.special_ids, mask_only=True)))
    assert torch.equal(both[0].chosen, both[1].chosen)
    assert (both[1].batch.ids[both[1].chosen] == 4).all() and not (both[0].batch.ids[both[0].chosen] == 4).all()


def test_the_address_alone_decides() -> None:
    """A row's mask is the same alone, in another order, and beside longer rows; other seeds and epochs give others."""
    rows = torch.tensor([7, 300, 2, 19])
    together = token_mask(5, 1, rows, texts(rows), MASKING)
    for place, row in enumerate(rows):
        alone = token_mask(5, 1, row[None], texts(row[None]), MASKING)
        part = together[place : place + 1]
        assert torch.equal(alone.chosen, part.chosen) and torch.equal(alone.batch.ids, part.batch.ids)
        assert torch.equal(alone.labels, part.labels) and torch.equal(alone.counts, part.counts)
    for other in (token_mask(6, 1, rows, texts(rows), MASKING), token_mask(5, 2, rows, texts(rows), MASKING)):
        assert not torch.equal(other.batch.ids, together.batch.ids)


def test_parts() -> None:
    rows = torch.arange(9)
    drawn = token_mask(5, 1, rows, texts(rows), MASKING)
    parts = [drawn[part] for part in (slice(0, 2), slice(2, 7), slice(7, 9))]
    assert torch.equal(torch.cat([part.batch.ids for part in parts]), drawn.batch.ids)
    assert torch.equal(torch.cat([part.labels for part in parts]), drawn.labels)
    first = torch.tensor([0, *torch.tensor([len(part.batch.ids) for part in parts]).cumsum(0)[:-1]])
    assert torch.equal(torch.cat([part.chosen + f for part, f in zip(parts, first, strict=True)]), drawn.chosen)
    with pytest.raises(ValueError, match="not every 2"):
        drawn[::2]


def test_token_batches_by_hand() -> None:
    batch = TokenBatch(torch.arange(10, 16), torch.tensor([1, 3, 2]))
    assert len(batch) == 3 and batch.first.tolist() == [0, 1, 4] and batch.places.tolist() == [0, 0, 1, 2, 0, 1]
    assert batch[1:].ids.tolist() == [11, 12, 13, 14, 15] and batch[1:].lengths.tolist() == [3, 2]
    assert tokens_of(batch.lengths, slice(1, 2)) == slice(1, 4) and tokens_of(batch.lengths, slice(2, 9)) == slice(4, 6)
    assert batch[:0].ids.tolist() == []


def test_nothing_to_choose() -> None:
    batch = TokenBatch(torch.tensor([0, 2, 0, 2]), torch.tensor([2, 2]))
    drawn = token_mask(0, 0, torch.tensor([0, 1]), batch, MASKING)
    assert not len(drawn.chosen) and drawn.counts.tolist() == [0, 0] and torch.equal(drawn.batch.ids, batch.ids)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5])
def test_a_share_that_is_none(rate: float) -> None:
    with pytest.raises(UserError, match="share of masked tokens must be above 0 and at most 1"):
        TokenMasking(4, 10, (), rate)
    everything = token_mask(0, 0, torch.tensor([1]), texts(torch.tensor([1])), TokenMasking(4, 10, (), 1.0))
    assert len(everything.chosen) == 47


def test_processes_draw_the_masks_of_one_and_know_the_whole_number() -> None:
    whole = Batch(2, torch.tensor([5, 0, 3, 8, 1]))
    alone = batch_token_mask(4, whole, read, MASKING)
    parts = [batch_token_mask(4, whole.shared(Ranks(rank, 2)), read, MASKING) for rank in range(2)]
    assert alone.whole_count == len(alone.chosen) > 0
    assert {part.whole_count for part in parts} == {alone.whole_count}
    assert torch.equal(torch.cat([part.labels for part in parts]), alone.labels)
    assert all(0 < len(part.chosen) < alone.whole_count for part in parts)


def read(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch = texts(rows)
    return batch.ids, batch.lengths
