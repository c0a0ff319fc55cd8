"""Masks and order: their counts, their distribution, and that they depend on the address alone."""

from __future__ import annotations

import pytest
import torch

from sdfast.data.order import BatchOrder, all_batches
from sdfast.modalities.images.masking import patch_mask, visible_count


def test_fixed_masks_keep_maes_count() -> None:
    assert visible_count(196, 0.75) == 49
    drawn = patch_mask(1, 0, torch.arange(8), 196, 0.75)
    assert drawn.visible_ids.shape == (8, 49)
    assert drawn.visible_valid is None
    assert (drawn.mask.sum(1) == 147).all()
    assert not drawn.mask.gather(1, drawn.visible_ids).any()
    assert len({tuple(ids) for ids in drawn.visible_ids.tolist()}) == 8


def test_masks_do_not_depend_on_the_batch() -> None:
    for kind in ("fixed", "bernoulli"):
        together = patch_mask(5, 3, torch.tensor([9, 4, 7]), 49, 0.75, kind)
        alone = patch_mask(5, 3, torch.tensor([4]), 49, 0.75, kind)
        assert torch.equal(together.mask[1:2], alone.mask)


def test_every_patch_is_masked_equally_often() -> None:
    share = patch_mask(2, 0, torch.arange(4000), 49, 0.75).mask.float().mean(0)
    assert (share - 37 / 49).abs().max() < 0.04


@pytest.mark.parametrize("ratio", [0.1, 0.75, 0.99])
def test_bernoulli_masks(ratio: float) -> None:
    drawn = patch_mask(2, 1, torch.arange(3000), 16, ratio, "bernoulli")
    counts = drawn.mask.sum(1)
    assert counts.min() >= 1 and counts.max() <= 15
    assert drawn.visible_valid is not None
    assert torch.equal(drawn.visible_valid.sum(1), 16 - counts)
    seen = torch.ones_like(drawn.mask)
    for row in range(200):
        seen[row, drawn.visible_ids[row][drawn.visible_valid[row]]] = False
    assert torch.equal(seen[:200], drawn.mask[:200])
    if ratio == 0.75:
        assert abs(drawn.mask.float().mean() - ratio) < 0.02
        assert counts.float().var() > 2  # binomial: 3; the fixed rule has none


def test_part_of_a_mask() -> None:
    drawn = patch_mask(2, 1, torch.arange(6), 16, 0.5, "bernoulli")
    part = drawn[2:4]
    assert part.visible_valid is not None and drawn.visible_valid is not None
    assert torch.equal(part.mask, drawn.mask[2:4])
    assert torch.equal(part.visible_valid, drawn.visible_valid[2:4])


def test_each_epoch_sees_each_row_once_and_keeps_the_last_partial_batch() -> None:
    rows = torch.arange(100, 123)
    order = BatchOrder(rows, 10, seed=4)
    assert order.batches_per_epoch == 3
    epochs = [[order.batch(step) for step in range(3 * epoch, 3 * epoch + 3)] for epoch in range(2)]
    for number, batches in enumerate(epochs):
        assert [len(batch.rows) for batch in batches] == [10, 10, 3]
        assert all(batch.epoch == number for batch in batches)
        assert torch.equal(torch.cat([batch.rows for batch in batches]).sort().values, rows)
    assert not torch.equal(epochs[0][0].rows, epochs[1][0].rows)
    assert torch.equal(BatchOrder(rows, 10, seed=4).batch(4).rows, epochs[1][1].rows)  # any step, at once


def test_evaluation_batches_cover_all_rows() -> None:
    assert [batch.rows.tolist() for batch in all_batches(torch.arange(5), 2)] == [[0, 1], [2, 3], [4]]
    assert all_batches(torch.arange(0), 2) == []
