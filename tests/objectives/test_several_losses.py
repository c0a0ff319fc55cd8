"""The losses of several classes a row and of numbers: beside torch in float64, by rows apart, resumed and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from resuming import check_resumes
from small_stage import IMAGES, objective_of
from small_text_stage import text_objective_of, texts
from torch import Tensor, nn

from sdfast.config import EngineConfig, FinetuneConfig
from sdfast.data.order import BatchOrder
from sdfast.data.problem import REGRESSION, SEVERAL, SINGLE, ProblemType
from sdfast.engine.loop import StageFolder, Trainer, TrainingData
from sdfast.errors import UserError
from sdfast.objectives.classification import classification_loss
from sdfast.objectives.cross_entropy import LabelLoss
from sdfast.objectives.several import (
    BinaryCrossEntropy,
    Scaling,
    SquaredError,
    check_problem,
    label_loss,
    rarity_weights,
)
from sdfast.regularizers.r3f import R3F

WEIGHTS = torch.tensor([1.0, 0.25, 3.0, 7.0])
SWITCHES = torch.randint(0, 2, (50, 4), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
NUMBERS = torch.randn(50, 4, generator=torch.Generator().manual_seed(4))
CASES: dict[str, tuple[LabelLoss, Tensor, Callable[[Tensor, Tensor], Tensor]]] = {
    "plain": (BinaryCrossEntropy(), SWITCHES, F.binary_cross_entropy_with_logits),
    "weighted": (
        BinaryCrossEntropy(WEIGHTS),
        SWITCHES,
        lambda given, wanted: F.binary_cross_entropy_with_logits(given, wanted, pos_weight=WEIGHTS.double()),
    ),
    "smoothed": (
        BinaryCrossEntropy(smoothing=0.2),
        SWITCHES,
        lambda given, wanted: F.binary_cross_entropy_with_logits(given, 0.8 * wanted + 0.1),
    ),
    "numbers": (SquaredError(), NUMBERS, F.mse_loss),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_of_a_batch_sum_to_the_loss_of_torch(case: str) -> None:
    """Values and gradients, in float32 within rounding of float64."""
    loss, labels, expected = CASES[case]
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(5)) * 4
    exact = logits.double().requires_grad_()
    wanted = expected(exact, labels.double())
    wanted.backward()
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        given = logits.to(dtype).requires_grad_()
        parts = [classification_loss(given[rows], labels[rows], 50, cross_entropy=loss)["loss"] for rows in PARTS]
        total = sum(parts[1:], parts[0])
        total.backward()
        torch.testing.assert_close(total.double(), wanted.detach(), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(given.grad.double(), exact.grad, rtol=10 * tolerance, atol=tolerance)  # type: ignore[union-attr]
    assert loss.divisor(labels) == 50 and not loss.weighs_rows


PARTS = [slice(0, 7), slice(7, 30), slice(30, 50)]


def test_divergences_are_those_of_the_distributions() -> None:
    """Of Bernoulli variables and of normal ones of deviation 1, both ways, a mean over the outputs."""
    left, right = (torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)).double() for seed in (6, 7))

    def symmetric(kind: Callable[[Tensor], torch.distributions.Distribution]) -> Tensor:
        kl = torch.distributions.kl_divergence
        one, other = kind(left), kind(right)
        return (kl(one, other) + kl(other, one)).sum() / 4

    bernoulli = symmetric(lambda logits: torch.distributions.Bernoulli(logits=logits))
    normal = symmetric(lambda mean: torch.distributions.Normal(mean, torch.ones_like(mean)))
    torch.testing.assert_close(BinaryCrossEntropy(WEIGHTS, 0.5).divergence(left, right), bernoulli)
    torch.testing.assert_close(SquaredError().divergence(left, right), normal)


@pytest.mark.parametrize("case", ["weighted", "numbers"])
def test_r3f_adds_the_divergence_of_its_kind(case: str) -> None:
    loss, labels, _ = CASES[case]
    logits = torch.randn(100, 4, generator=torch.Generator().manual_seed(8))
    found = classification_loss(logits, labels, 50, R3F(2.0), loss)
    task = loss.share(logits[:50], labels, 50)
    divergence = loss.divergence(logits[:50], logits[50:])
    torch.testing.assert_close(found["loss"], task + 2 * divergence / 50)
    torch.testing.assert_close(found["loss_r3f"], 2 * divergence / 50)


def test_balanced_weights_are_rows_without_by_rows_with() -> None:
    labels = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 1]], dtype=torch.uint8)
    assert rarity_weights(labels).tolist() == [1 / 3, 1, 1 / 3]
    loss = label_loss(FinetuneConfig(class_weights="balanced"), SEVERAL, labels, 3)
    assert isinstance(loss, BinaryCrossEntropy) and loss.pos_weight is not None
    assert loss.pos_weight.tolist() == pytest.approx([1 / 3, 1, 1 / 3])
    given = label_loss(FinetuneConfig(class_weights=(1, 2, 3), label_smoothing=0.1), SEVERAL, labels, 3)
    assert isinstance(given, BinaryCrossEntropy) and given.smoothing == 0.1
    assert given.pos_weight is not None and given.pos_weight.tolist() == [1, 2, 3]
    assert isinstance(label_loss(FinetuneConfig(), REGRESSION, labels, 3), SquaredError)


def test_a_folded_head_gives_the_units_of_the_data() -> None:
    numbers = torch.tensor([[1000.0, -1.0], [1010.0, 3.0], [float("nan"), 0.0], [1030.0, 4.0]])
    known = numbers[[0, 1, 3]].double().numpy()
    scaling = Scaling.of(numbers[[0, 1, 3]])
    np.testing.assert_allclose(scaling.mean.numpy(), known.mean(axis=0))
    np.testing.assert_allclose(scaling.deviation.numpy(), known.std(axis=0))
    standard = scaling.standardised(numbers)
    assert standard.isnan().any(dim=1).tolist() == [False, False, True, False]
    np.testing.assert_allclose(standard[[0, 1, 3]].numpy(), (known - known.mean(0)) / known.std(0), rtol=1e-6)
    head, states = nn.Linear(5, 2), torch.randn(7, 5)
    before = head(states).double() * scaling.deviation + scaling.mean
    shared = {name: (value, value.clone()) for name, value in head.state_dict().items()}
    scaling.fold(head)
    assert all(torch.equal(*pair) for pair in shared.values())  # as the best weights so far are
    torch.testing.assert_close(head(states).double(), before, rtol=1e-6, atol=1e-5)
    assert Scaling.of(torch.ones(3, 1)).deviation.tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "problem", "said"),
    [
        (
            {"objective": "supcon"},
            SEVERAL,
            r"objective=supcon compares rows of one class each, and here rows have several",
        ),
        ({"objective": "supcon"}, REGRESSION, r"objective=supcon compares .* labels are numbers: leave it away\.$"),
        (
            {"sampling": "balanced"},
            SEVERAL,
            r"sampling=balanced .*, or weigh the classes by finetune.class_weights=bal",
        ),
        ({"sampling": "balanced"}, REGRESSION, r"sampling=balanced takes as many rows of each class.*leave it away\.$"),
        ({"class_weights": "balanced"}, REGRESSION, r"class_weights=balanced weighs classes"),
        ({"class_weights": (1, 2)}, REGRESSION, r"class_weights=\[1.0,2.0\] weighs classes"),
        ({"label_smoothing": 0.1}, REGRESSION, r"label_smoothing=0.1 is of classes"),
        ({"class_weights": (1, 2)}, SEVERAL, r"has 2 weights, and the data have 3 classes"),
        ({"class_weights": (1, 2, 3), "label_smoothing": 0.1, "regularizer": "r3f"}, SEVERAL, ""),
        ({"regularizer": "r4f"}, REGRESSION, ""),
        ({"sampling": "balanced", "label_smoothing": 0.1}, SINGLE, ""),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], problem: ProblemType, said: str) -> None:
    config = FinetuneConfig(**changes)
    if not said:
        check_problem(config, problem, ["a", "b", "c"])
        return
    with pytest.raises(UserError, match=said):
        check_problem(config, problem, ["a", "b", "c"])


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("case", ["weighted", "numbers"])
def test_a_stage_resumes_bit_for_bit(tmp_path: Path, case: str, text: bool) -> None:
    loss, labels, _ = CASES[case]

    def trainer_of(directory: Path) -> Trainer:
        objective: Any = (text_objective_of if text else objective_of)("finetune", dropout=0.1)
        objective.labels, objective.cross_entropy = labels, loss
        data = TrainingData(BatchOrder(torch.arange(50), 16, 9), texts if text else lambda rows: IMAGES[rows])
        config = FinetuneConfig(steps=12, batch_size=16, lr=1e-3)
        folder = StageFolder(directory, {"a": "b"})
        return Trainer("finetune", objective, config, EngineConfig(log_every=4), data, folder)

    check_resumes(trainer_of, tmp_path)
