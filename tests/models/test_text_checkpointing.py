"""Activation checkpointing of texts: the same loss and gradients, bit for bit, with the same dropout."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_text_stage import text_objective_of, texts

from sdfast.config import EngineConfig
from sdfast.data.order import Batch
from sdfast.engine.prepare import prepare
from sdfast.objectives.base import Shortcuts
from sdfast.regularizers.r3f import R3F

ROWS = torch.tensor([4, 17, 3, 40, 8])
CASES: list[tuple[str, dict[str, Any]]] = [
    ("pretrain", {}),
    ("pretrain", {"head_only": True}),
    ("distill", {}),
    ("distill", {"tokens": "all"}),
    ("distill", {"layer": 1, "shortcuts": Shortcuts(packed=False, cls_tail=False, masked_tail=False)}),
    ("finetune", {}),
    ("finetune", {"r3f": R3F()}),
]


def gradients(objective: Any, bf16: bool) -> list[torch.Tensor]:
    batch = Batch(0, ROWS)
    drawn = objective.draw(batch)
    objective.module.train()
    torch.manual_seed(7)  # dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = objective.loss(texts(ROWS), batch, drawn, slice(0, len(ROWS)))["loss"]
    loss.backward()
    return [loss.detach(), *(p.grad for p in objective.module.parameters() if p.grad is not None), torch.rand(3)]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize(("stage", "more"), CASES)
def test_gradients_are_equal_bit_for_bit(stage: str, more: dict[str, Any], dropout: float, bf16: bool) -> None:
    objective = text_objective_of(stage, dropout=dropout, **more)
    other = copy.deepcopy(objective)
    prepare(other.module, EngineConfig(activation_checkpointing=True), ROWS.device, 10)
    expected, got = gradients(objective, bf16), gradients(other, bf16)
    assert len(got) == len(expected) > 5
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    if dropout:
        assert not torch.equal(gradients(text_objective_of(stage, **more), bf16)[0], expected[0])
