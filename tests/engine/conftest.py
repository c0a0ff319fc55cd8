"""A small stage to train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from small_stage import CPU, IMAGES, objective_of

from sdfast.config import EngineConfig, FinetuneConfig, PretrainConfig
from sdfast.data.order import BatchOrder
from sdfast.engine.followers import Follower
from sdfast.engine.loop import StageFolder, Trainer, TrainingData


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(
        stage: str,
        *,
        directory: Path = tmp_path,
        fingerprint: str = "f",
        device: torch.device = CPU,
        flops_per_row: Callable[[], float] | None = None,
        followers: Sequence[Follower] = (),
        **engine: object,
    ) -> Trainer:
        torch.manual_seed(0)
        images = IMAGES.to(device)
        kind = FinetuneConfig if stage == "finetune" else PretrainConfig
        return Trainer(
            stage,
            objective_of(stage, device=device),
            kind(steps=12, batch_size=16, lr=1e-3),
            EngineConfig(log_every=4, **engine),  # type: ignore[arg-type]
            TrainingData(
                BatchOrder(torch.arange(50), 16, seed=9),
                lambda rows: images[rows.to(device, non_blocking=True)],
                flops_per_row=flops_per_row,
            ),
            StageFolder(directory, {"identity": fingerprint}),
            followers=followers,
        )

    return make
