"""Every kind of text model goes through the objectives as RoBERTa does: exact shortcuts, parts that sum, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from resuming import check_resumes
from small_text_stage import LENGTHS, SHAPES, text_objective_of, texts
from torch import Tensor

from sdfast.config import FinetuneConfig, PretrainConfig
from sdfast.data.order import Batch
from sdfast.engine.loop import EngineConfig, StageFolder, Trainer, TrainingData
from sdfast.modalities.texts.order import TextBatchOrder
from sdfast.models.checkpointing import use_checkpointing
from sdfast.objectives.base import Shortcuts

KINDS = [kind for kind in SHAPES if kind != "roberta"]
STAGES: list[tuple[str, dict[str, Any]]] = [
    ("pretrain", {}),
    ("distill", {}),
    ("distill", {"tokens": "all"}),
    ("distill", {"match": "predictions", "weight": 0.3}),
    ("distill", {"match": "weights-l2", "weight": 0.3}),
    ("finetune", {}),
]
BATCH = Batch(2, torch.arange(6))


def loss_and_gradients(objective: Any, parts: int = 1) -> dict[str, Tensor]:
    drawn, size = objective.draw(BATCH), 6 // parts
    total = torch.zeros((), dtype=torch.float64)
    for first in range(0, 6, size):
        part = slice(first, first + size)
        loss = objective.loss(texts(BATCH.rows[part]), BATCH, drawn, part)["loss"]
        loss.backward()
        total += loss.detach()
    grads = {name: p.grad for name, p in objective.module.named_parameters() if p.grad is not None}
    return {"loss": total, **grads}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("stage", "more"), STAGES)
def test_shortcuts_parts_and_checkpointing_change_nothing(stage: str, more: dict[str, Any], kind: str) -> None:
    def made(**changes: Any) -> Any:
        return text_objective_of(stage, torch.float64, rate=0.3, kind=kind, **more, **changes)

    plain = loss_and_gradients(made(shortcuts=Shortcuts(packed=False, cls_tail=False, masked_tail=False)))
    checkpointed = made()
    use_checkpointing(checkpointed.module.train())
    trained = {name for name, _ in made().trained_parameters()}
    assert len(plain) > 10 and trained <= plain.keys()
    for ours in (loss_and_gradients(made()), loss_and_gradients(made(), 3), loss_and_gradients(checkpointed)):
        assert ours.keys() == plain.keys()
        for name, value in plain.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-10, atol=1e-11, msg=name)


@pytest.mark.parametrize(
    ("kind", "stage"),
    [("electra", "distill"), ("distilbert", "finetune"), ("modernbert", "distill"), ("eurobert", "distill")],
)
def test_a_stopped_stage_resumes_bit_for_bit(kind: str, stage: str, tmp_path: Path) -> None:
    def make(folder: Path) -> Trainer:
        objective = text_objective_of(stage, kind=kind, dropout=0.1)
        settings = FinetuneConfig if stage == "finetune" else PretrainConfig
        config, order = settings(steps=12, batch_size=16, lr=1e-3), TextBatchOrder(torch.arange(50), LENGTHS, 16, 9)
        data = TrainingData(order, texts)
        return Trainer(stage, objective, config, EngineConfig(log_every=4), data, StageFolder(folder, {"a": "b"}))

    check_resumes(make, tmp_path)


@pytest.mark.parametrize("kind", SHAPES)
def test_what_the_blocks_add_to_is_of_the_weights_dtype_under_autocast(kind: str) -> None:
    encoder = text_objective_of("pretrain", kind=kind).module.encoder
    seen: list[torch.dtype] = []
    for block in encoder.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        encoder(texts(BATCH.rows))
    assert seen == [torch.float32] * len(encoder.blocks)
