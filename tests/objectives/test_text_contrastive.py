"""Supervised contrastive fine-tuning of texts against a double loop over two draws of dropout, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from resuming import check_resumes
from small_text_stage import LABELS, LENGTHS, text_objective_of, texts
from test_contrastive import by_definition

from sdfast.config import EngineConfig, FinetuneConfig
from sdfast.data.order import Batch
from sdfast.engine.loop import StageFolder, Trainer, TrainingData
from sdfast.errors import UserError
from sdfast.modalities.texts.order import TextBatchOrder
from sdfast.objectives.base import Shortcuts

BATCH, WHOLE = Batch(1, torch.arange(6)), slice(0, 6)


def objective(dropout: float = 0.0, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    return text_objective_of("finetune", dtype, dropout=dropout, supcon=7, **changes)


@pytest.mark.parametrize("cls_tail", [True, False])
def test_a_text_is_drawn_to_its_class_and_the_classifier_follows_alone(cls_tail: bool) -> None:
    """Without dropout both views are the same text, each encoded alone here."""
    ours = objective(temperature=0.2, shortcuts=Shortcuts(cls_tail=cls_tail))
    parts = ours.loss(texts(BATCH.rows), BATCH, None, WHOLE)
    parts["loss"].backward()
    other = objective().module
    features, logits = [], []
    for row in range(6):
        first = other.encoder(texts(torch.tensor([row])))[0]
        hidden = F.relu(F.linear(first, other.projection[0].weight, other.projection[0].bias))
        features.append(F.linear(hidden, other.projection[2].weight, other.projection[2].bias))
        dense = torch.tanh(F.linear(first.detach(), other.dense.weight, other.dense.bias))
        logits.append(F.linear(dense, other.classifier.weight, other.classifier.bias))
    contrastive = by_definition(torch.stack(features * 2), LABELS[:6].tolist() * 2, 0.2)
    task = torch.stack([-logit.log_softmax(0)[LABELS[row]] for row, logit in enumerate(logits)]).mean()
    torch.testing.assert_close(parts["loss_contrastive"], contrastive.detach())
    torch.testing.assert_close(parts["loss_task"], task.detach())
    torch.testing.assert_close(parts["loss"], contrastive + task)
    contrastive.backward()
    assert other.dense.weight.grad is None and other.classifier.weight.grad is None
    task.backward()
    for (name, one), two in zip(ours.module.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_the_views_are_two_draws_of_dropout() -> None:
    ours, seen = objective(dropout=0.3, temperature=0.2), []
    ours.module.train()
    ours.module.projection.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    parts = ours.loss(texts(BATCH.rows), BATCH, None, WHOLE)
    one, two = seen[0].chunk(2)
    assert len(one) == 6 and (one != two).any(dim=1).all()
    projected = ours.module.get_submodule("projection")(seen[0])
    expected = by_definition(projected, LABELS[:6].tolist() * 2, 0.2)
    torch.testing.assert_close(parts["loss_contrastive"], expected.detach())


def test_a_part_of_a_batch_of_texts_is_refused() -> None:
    ours = objective()
    with pytest.raises(UserError, match="one process"):
        ours.loss(texts(BATCH.rows[:3]), BATCH, None, slice(0, 3))
    of_two = Batch(1, torch.arange(3), torch.arange(6))
    with pytest.raises(UserError, match=r"data\.token_budget"):
        ours.loss(texts(of_two.rows), of_two, None, slice(0, 3))


def trainer_of(directory: Path) -> Trainer:
    config, order = FinetuneConfig(steps=12, batch_size=16, lr=1e-3), TextBatchOrder(torch.arange(50), LENGTHS, 16, 9)
    made = objective(0.1, torch.float32)
    data, folder = TrainingData(order, texts), StageFolder(directory, {"a": "b"})
    return Trainer("finetune", made, config, EngineConfig(log_every=4), data, folder)


def test_a_stopped_contrast_of_texts_resumes_bit_for_bit(tmp_path: Path) -> None:
    resumed = check_resumes(trainer_of, tmp_path)
    assert any(name.startswith("projection") for name in resumed.objective.module.state_dict())
