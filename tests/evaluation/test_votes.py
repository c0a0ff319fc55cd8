"""The mean of what several rows say of an item: beside numpy's mean of probabilities, in any order of the rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sdfast.evaluation.votes import answers_of, vote, voters


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 300.0])  # 300: probabilities that float32 cannot hold
def test_a_vote_is_the_mean_of_probabilities(dtype: torch.dtype, scale: float) -> None:
    rng = np.random.default_rng(0)
    items = torch.from_numpy(rng.permutation(np.repeat(np.arange(9), [1, 2, 3, 1, 5, 1, 2, 9, 1])))
    logits = torch.from_numpy(scale * rng.standard_normal((len(items), 4))).to(dtype)
    found = vote(logits, items, 9)
    assert found.dtype == dtype and found.shape == (9, 4)
    rows = logits.double().numpy()
    logs = rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)
    for item in range(9):
        own = logs[items.numpy() == item]
        by_hand = np.logaddexp.reduce(own, axis=0) - np.log(len(own))
        np.testing.assert_allclose(found[item].double(), by_hand, rtol=2e-6, atol=1e-6)
    means = torch.stack([logits[items == item].double().softmax(1).mean(0) for item in range(9)])
    torch.testing.assert_close(found.double().softmax(1), means, atol=1e-6, rtol=1e-5)
    labels = torch.arange(9) % 4
    if scale == 1:
        loss = -means[torch.arange(9), labels].log().mean()
        torch.testing.assert_close(F.cross_entropy(found, labels).double(), loss, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_votes_on_several_classes_and_on_numbers(scale: float) -> None:
    rng = np.random.default_rng(1)
    items = torch.from_numpy(rng.permutation(np.repeat(np.arange(5), [1, 4, 2, 1, 3])))
    logits = torch.from_numpy(scale * rng.standard_normal((len(items), 3)))
    groups = [logits[items == item].numpy() for item in range(5)]
    numbers = vote(logits, items, 5, "output")
    np.testing.assert_allclose(numbers, [group.mean(0) for group in groups], rtol=1e-12)
    each = vote(logits, items, 5, "sigmoid")
    means = np.stack([(1 / (1 + np.exp(-group))).mean(0) for group in groups])
    np.testing.assert_allclose(each.sigmoid(), means, rtol=1e-9)
    others = np.stack([(1 / (1 + np.exp(group))).mean(0) for group in groups])
    np.testing.assert_allclose((-each).sigmoid(), others, rtol=1e-9)  # of no probability near 1 anything is lost


def test_voters_are_the_rows_of_each_item() -> None:
    item_of, wanted = np.array([0, 0, 1, 3, 3, 3, 4]), torch.tensor([3, 0, 4])
    rows, places = voters(item_of, wanted)
    assert rows.tolist() == [3, 4, 5, 0, 1, 6] and places.tolist() == [0, 0, 0, 1, 1, 2]
    none = voters(item_of, torch.zeros(0, dtype=torch.int64))
    assert [len(each) for each in none] == [0, 0]


def test_without_voters_the_answers_are_those_of_the_rows() -> None:
    rows = torch.tensor([4, 1])
    assert answers_of("split", rows, None, lambda seen, which: (seen, which)) == ("split", rows)  # type: ignore[arg-type, return-value, comparison-overlap]
