"""What is computed of features: CKA, distances, principal components, colours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdfast.report.evidence.layers import compared, linear_cka
from sdfast.report.evidence.maps import pca
from sdfast.report.evidence.mistakes import largest_errors, mistakes
from sdfast.report.evidence.show_layers import seen
from sdfast.report.evidence.show_map import GREY, grouped


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn(width: int) -> Tensor:
    return torch.linalg.qr(drawn(width, width, seed=9)).Q


@pytest.mark.parametrize("rows", [10, 200], ids=["fewer rows than features", "more"])
def test_cka_does_not_see_a_turn_a_scale_or_a_shift(rows: int) -> None:
    x = drawn(rows, 24)
    assert linear_cka(x, x) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, -3 * x @ turn(24) + 5) == pytest.approx(1, abs=1e-12)
    other = drawn(rows, 30, seed=1)
    a, b = (each - each.mean(0) for each in (x, other))
    by_hand = (b.t() @ a).norm() ** 2 / ((a.t() @ a).norm() * (b.t() @ b).norm())
    assert linear_cka(x, other) == pytest.approx(float(by_hand), rel=1e-9) and by_hand < 1


def test_layers_are_compared_one_by_one() -> None:
    x = drawn(3, 40, 8)
    found = compared(x, torch.stack([x[0], -x[1], 2 * x[2]]))
    assert found["cosine"] == pytest.approx([1, -1, 1]) and found["distance"] == pytest.approx([0, 2, 1])
    assert found["cka"] == pytest.approx([1, 1, 1])


def test_features_that_do_not_vary_have_no_cka() -> None:
    x = drawn(1, 40, 8)
    found = compared(x, torch.ones(1, 40, 8, dtype=torch.float64))
    assert found["cka"] == [None]
    assert compared(torch.zeros_like(x), x)["distance"] == [None]


def test_the_sentence_counts_layers() -> None:
    pairs = [
        {"models": ["initial", "pretrain"], "distance": [0.1, 0.5, 0.5], "cosine": [1, 1, 0.25]},
        {"models": ["initial", "distill"], "distance": [0.2, 0.4, 0.4], "cosine": [1, 1, 0.5]},
    ]
    assert "in 2 of 3 layers" in seen(pairs)
    assert "0.25" in seen(pairs[:1])


def test_components_are_those_of_the_covariance() -> None:
    x = drawn(60, 5) * torch.tensor([5.0, 1, 0.1, 3, 0.2]) + 7
    places, shares = pca(x)
    values = torch.linalg.eigvalsh(torch.cov(x.t(), correction=0)).flip(0)
    assert places.var(dim=0, correction=0) == pytest.approx(values[:2].numpy(), rel=1e-9)
    assert shares == pytest.approx((values[:2] / values.sum()).tolist()) and places.mean(0).abs().max() < 1e-9


def test_a_map_is_turned_as_the_one_before() -> None:
    x = drawn(60, 5) * torch.tensor([5.0, 1, 0.1, 3, 0.2])
    places, _ = pca(x)
    for like in (places, -places):
        again, _ = pca(x, like)
        torch.testing.assert_close(again, like)


def test_a_map_of_one_feature_or_none_is_flat() -> None:
    assert pca(drawn(9, 1))[0][:, 1].abs().max() == 0
    places, shares = pca(torch.ones(9, 4))
    assert places.abs().max() < 1e-12 and shares == [0, 0]


def test_mistakes_are_all_wrong_and_the_most_confident_first() -> None:
    logits, labels = drawn(50, 4), torch.arange(50) % 4
    rows = mistakes(logits, labels)
    confidence = logits.softmax(1).max(1)
    assert (confidence.indices[rows] != labels[rows]).all()
    assert len(rows) == int((confidence.indices != labels).sum())
    assert (confidence.values[rows].diff() <= 0).all()


def test_the_largest_errors_of_classes_and_of_numbers_come_first() -> None:
    labels = (drawn(20, 3, seed=2) > 0).to(torch.uint8)
    outputs = 4 * (2 * labels.double() - 1)
    outputs[7] *= -1
    order, errors = largest_errors(outputs, labels, "multi_label_classification")
    assert order[0] == 7 and errors[order].diff().max() <= 0
    numbers = drawn(20, 2) * torch.tensor([1.0, 1000.0])
    wrong = numbers.clone()
    wrong[3, 0] += 2.0
    wrong[4, 1] += 10.0  # little beside the spread
    assert largest_errors(wrong, numbers, "regression")[0][:2].tolist() == [3, 4]


def test_rows_are_drawn_by_class_or_by_number() -> None:
    names = [f"c{number}" for number in range(10)]
    colours = {"by": "class", "names": names, "more": 2, "several": False, "row": [0, 9, -1, None, 0]}
    groups = grouped(colours, 5)
    assert groups[0][0] == GREY and groups[0][2] == [2, 3]
    assert [(kind, rows) for _, kind, rows in groups[1:]] == [("dot", [0, 4]), ("triangle", [1])]
    by_number = grouped({"by": "number", "name": "x", "row": [1.0, None, 5.0, 1.0]}, 4)
    assert [rows for _, _, rows in by_number] == [[1], [0, 3], [2]]
    assert grouped({"by": "nothing"}, 3)[0][2] == [0, 1, 2]
