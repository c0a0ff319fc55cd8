"""Supervised contrastive fine-tuning against a double loop, in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from resuming import check_resumes
from small_stage import IMAGES, LABELS, objective_of
from torch import Tensor

from sdfast.config import EngineConfig, FinetuneConfig
from sdfast.data.order import Batch, BatchOrder
from sdfast.engine.loop import StageFolder, Trainer, TrainingData
from sdfast.errors import UserError
from sdfast.modalities.images.model import ViTClassifier
from sdfast.objectives.base import Shortcuts
from sdfast.objectives.contrastive import add_projection, drop_projection, supervised_contrastive_loss

BATCH, WHOLE = Batch(1, torch.arange(6)), slice(0, 6)


def by_definition(features: Tensor, labels: list[int], tau: float) -> Tensor:
    """-(tau / 0.07) times the mean over anchors of the mean log-probability of the others of its class."""
    unit, count = [each / each.norm() for each in features], len(labels)
    total = torch.zeros((), dtype=features.dtype)
    for i in range(count):
        others = [j for j in range(count) if j != i]
        denominator = torch.stack([(unit[i] @ unit[j] / tau).exp() for j in others]).sum()
        positives = [j for j in others if labels[j] == labels[i]]
        for j in positives:
            total = total + (unit[i] @ unit[j] / tau - denominator.log()) / len(positives)
    return -(tau / 0.07) * total / count


@pytest.mark.parametrize("tau", [0.07, 0.5])
@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0, 0], [0, 1, 2, 3], [1, 1], [4, 4, 4]])
def test_the_loss_is_the_double_loop(labels: list[int], tau: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(len(labels), 5, generator=generator, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    loss, expected = supervised_contrastive_loss(ours, torch.tensor(labels), tau), by_definition(theirs, labels, tau)
    torch.testing.assert_close(loss, expected)
    if expected.requires_grad:
        (3 * loss).backward()
        (3 * expected).backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_by_hand() -> None:
    """Two of one class at right angles, one of another opposite to the first: products 0, -1, 0 at tau = 1."""
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], dtype=torch.float64)
    first, second = -math.log(1 + math.exp(-1)), -math.log(2)  # the third counts as 0
    expected = -(1 / 0.07) * (first + second) / 3
    assert float(supervised_contrastive_loss(features, torch.tensor([0, 0, 1]), 1.0)) == pytest.approx(expected)


def test_large_products_do_not_overflow_and_one_feature_alone_counts_as_nothing() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 1e-4], [-1.0, 0.0]], requires_grad=True)
    supervised_contrastive_loss(features, torch.tensor([0, 0, 1]), 1e-3).backward()
    assert features.grad is not None and features.grad.isfinite().all()
    alone = torch.ones(1, 4, requires_grad=True)
    loss = supervised_contrastive_loss(alone, torch.tensor([0]))
    loss.backward()
    assert loss == 0 and alone.grad is not None and not alone.grad.any()
    assert supervised_contrastive_loss(features.bfloat16(), torch.tensor([0, 0, 1])).dtype == torch.float32


def objective(dropout: float = 0.0, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    return objective_of("finetune", dtype, dropout=dropout, supcon=7, **changes)


@pytest.mark.parametrize("cls_tail", [True, False])
def test_the_objective_is_contrastive_for_the_encoder_and_cross_entropy_for_the_classifier(cls_tail: bool) -> None:
    ours = objective(temperature=0.2, shortcuts=Shortcuts(cls_tail=cls_tail))
    drawn = ours.draw(BATCH)
    assert drawn.shape == (6, 2) and (drawn[:, 0] != drawn[:, 1]).any()
    assert torch.equal(drawn[:, 0], objective_of("finetune").draw(BATCH))
    parts = ours.loss(IMAGES[:6], BATCH, drawn, WHOLE)
    parts["loss"].backward()

    other = objective().module
    features, logits, labels = [], [], []
    for view in (0, 1):
        for row in range(6):
            pixels = ours.views.normalise(IMAGES[row : row + 1])
            pixels = pixels.flip(-1) if drawn[row, view] else pixels
            cls = other.encoder(pixels)[0, 0]
            hidden = F.relu(F.linear(cls, other.projection[0].weight, other.projection[0].bias))
            features.append(F.linear(hidden, other.projection[2].weight, other.projection[2].bias))
            logits.append(F.linear(cls.detach(), other.classifier.weight, other.classifier.bias))
            labels.append(int(LABELS[row]))
    contrastive = by_definition(torch.stack(features), labels, 0.2)
    task = torch.stack([-logit.log_softmax(0)[label] for logit, label in zip(logits, labels, strict=True)]).mean()
    torch.testing.assert_close(parts["loss_contrastive"], contrastive.detach())
    torch.testing.assert_close(parts["loss_task"], task.detach())
    torch.testing.assert_close(parts["loss"], contrastive + task)
    contrastive.backward()
    assert other.classifier.weight.grad is None
    task.backward()
    for (name, one), two in zip(ours.module.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_a_part_of_a_batch_is_refused() -> None:
    ours = objective()
    with pytest.raises(UserError, match="one process"):
        ours.loss(IMAGES[:3], BATCH, ours.draw(BATCH), slice(0, 3))
    of_two = Batch(1, torch.arange(3), torch.arange(6))
    with pytest.raises(UserError, match="one process"):
        ours.loss(IMAGES[:3], of_two, ours.draw(of_two), slice(0, 3))


def test_the_projection_is_decided_by_its_seed_and_leaves_nothing_behind() -> None:
    module = objective_of("finetune").module
    assert isinstance(module, ViTClassifier)
    names = set(module.state_dict())
    found = []
    for seed in (1, 1, 2):
        add_projection(module, 5, seed)
        found.append({n: v.clone() for n, v in module.state_dict().items() if n.startswith("projection")})
        drop_projection(module)
        assert set(module.state_dict()) == names
    drop_projection(module)  # none to drop
    assert {tuple(value.shape) for value in found[0].values()} == {(32, 32), (32,), (5, 32), (5,)}
    assert all(torch.equal(value, found[1][name]) and value.any() for name, value in found[0].items())
    assert any(not torch.equal(value, found[2][name]) for name, value in found[0].items())


def trainer_of(directory: Path, accumulate: int = 1) -> Trainer:
    config, order = FinetuneConfig(steps=12, batch_size=16, lr=1e-3), BatchOrder(torch.arange(50), 16, seed=9)
    engine, made = EngineConfig(log_every=4, accumulate=accumulate), objective(0.1, torch.float32)
    data, folder = TrainingData(order, lambda rows: IMAGES[rows]), StageFolder(directory, {"a": "b"})
    return Trainer("finetune", made, config, engine, data, folder)


def test_a_stopped_stage_resumes_bit_for_bit(tmp_path: Path) -> None:
    resumed = check_resumes(trainer_of, tmp_path)
    assert any(name.startswith("projection") for name in resumed.objective.module.state_dict())
