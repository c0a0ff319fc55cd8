"""How often a training run compiles, and for which sizes, without waiting for a compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_graphs import recorded_graphs
from small_stage import IMAGES, objective_of
from small_text_stage import text_objective_of, texts
from torch._dynamo.utils import counters

from sdfast.config import EngineConfig, FinetuneConfig, PretrainConfig
from sdfast.data.order import BatchOrder
from sdfast.engine.loop import StageFolder, Trainer, TrainingData
from sdfast.engine.prepare import prepare, running_teacher
from sdfast.objectives.base import Objective
from sdfast.regularizers.r3f import R3F
from sdfast.teacher.targets import ResidentBank

BATCH, ROWS = 8, 28  # the fourth batch of each epoch has 4 rows
BANK, ALL = (ResidentBank(torch.zeros(50, *shape), None, torch.arange(50)[None]) for shape in ((32,), (17, 32)))


def graphs_after_each_step(objective: Objective, inputs: Any, steps: int, directory: Path) -> tuple[Any, list[int]]:
    """Train as a run does, compiled; what was traced, and how many graphs there were after each step."""
    kind = FinetuneConfig if objective.decay_rule == "finetune" else PretrainConfig
    config, engine = kind(batch_size=BATCH, steps=steps), EngineConfig(compile=True)
    order = BatchOrder(torch.arange(ROWS), BATCH, 0)
    with recorded_graphs() as graphs:
        prepare(objective.module, engine, torch.device("cpu"), steps, teacher=running_teacher(objective))
        objective.module.train()
        data, folder = TrainingData(order, inputs), StageFolder(directory, {}, resume=False)
        trainer = Trainer("stage", objective, config, engine, data, folder)
        counts = []
        for _ in range(steps):
            trainer.step()
            counts.append(len(graphs.modules))
        assert graphs.breaks == [] and not counters["unimplemented"]
    return graphs, counts


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("pretrain", {}),
        ("distill", {"teacher": BANK}),
        ("distill", {}),
        ("distill", {"teacher": ALL, "tokens": "all"}),
        ("finetune", {}),
        ("finetune", {"r3f": R3F()}),
    ],
    ids=["pretrain", "distill with a bank", "distill with a live teacher", "distill all tokens", "finetune", "R3F"],
)
def test_images_are_compiled_for_one_size_once(stage: str, changes: dict[str, Any], tmp_path: Path) -> None:
    objective = objective_of(stage, **changes)
    graphs, counts = graphs_after_each_step(objective, lambda rows: IMAGES[rows], 9, tmp_path)
    assert not any(graphs.symbols)
    assert counts == counts[:1] * 9 and 2 <= counts[0] <= 10


@pytest.mark.parametrize("stage", ["pretrain", "distill", "finetune"])
def test_texts_are_compiled_for_every_length_at_once(stage: str, tmp_path: Path) -> None:
    graphs, counts = graphs_after_each_step(text_objective_of(stage), texts, 9, tmp_path)
    assert all(graphs.symbols)
    assert counts == counts[:1] * 9 and 1 <= counts[0] <= 4
