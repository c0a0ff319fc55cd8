"""What is prepared besides the module that is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_stage import objective_of
from small_text_stage import text_objective_of

from sdfast.config import EngineConfig
from sdfast.engine.prepare import prepare, running_teacher
from sdfast.models.blocks import Attention
from sdfast.models.compiled import Compilable
from sdfast.teacher.targets import ResidentBank


@pytest.mark.parametrize("make", [objective_of, text_objective_of], ids=["images", "texts"])
@pytest.mark.parametrize("more", [{}, {"match": "predictions"}], ids=["features", "predictions"])
def test_a_teacher_that_runs_has_the_attention_asked_for_and_is_compiled(make: Any, more: dict[str, Any]) -> None:
    objective = make("distill", **more)
    teacher = running_teacher(objective)
    assert teacher is not None and teacher is not objective.module
    prepare(
        objective.module, EngineConfig(attention="reference", compile=True), torch.device("cpu"), 10, teacher=teacher
    )
    for module in (objective.module, teacher):
        layers = [layer for layer in module.modules() if isinstance(layer, Attention)]
        assert layers and {layer.backend for layer in layers} == {"reference"}
        assert all(each.compiled for each in module.modules() if isinstance(each, Compilable))


@pytest.mark.parametrize(("stage", "more"), [("pretrain", {}), ("finetune", {}), ("distill", {"teacher": "bank"})])
def test_no_teacher_runs(stage: str, more: dict[str, Any]) -> None:
    if more:
        more = {"teacher": ResidentBank(torch.zeros(50, 32), None, torch.arange(50)[None])}
    assert running_teacher(objective_of(stage, **more)) is None
