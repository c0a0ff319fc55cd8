"""What one step shows: planted faults of several kinds are named, with what helps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_stage import IMAGES, SHAPE, initialise, objective_of
from torch import Tensor

from sdfast.config import EngineConfig, FinetuneConfig, PretrainConfig
from sdfast.data.order import BatchOrder
from sdfast.engine.loop import StageFolder, Trainer, TrainingData
from sdfast.modalities.images.model import MaskedAutoencoder
from sdfast.objectives.several import SquaredError
from sdfast.replay.again import go_to
from sdfast.replay.causes import Finding, diagnose
from sdfast.teacher.targets import ResidentBank

ROWS = torch.arange(50)
NAMES = [f"picture{row}.png" for row in range(50)]


def trainer_of(
    folder: Path, stage: str = "pretrain", read: Callable[[Tensor], Any] = lambda rows: IMAGES[rows], **given: Any
) -> Trainer:
    engine = EngineConfig(**{name: given.pop(name) for name in ("precision", "accumulate") if name in given})
    config = (FinetuneConfig if stage == "finetune" else PretrainConfig)(steps=9, batch_size=16, lr=1e-3, warmup=0.1)
    order = BatchOrder(ROWS, 16, seed=9)
    objective = objective_of(stage, **given)
    data, place = TrainingData(order, read), StageFolder(folder, {"a": "b"})
    return Trainer(stage, objective, config, engine, data, place)


def found_in(trainer: Trainer) -> Finding:
    start = MaskedAutoencoder(SHAPE)
    initialise(start, 2)
    batch = trainer.order.batch(trainer.steps_done)
    names = [NAMES[row] for row in batch.rows.tolist()]
    return diagnose(go_to(trainer, trainer.steps_done), start, trainer.stage, names)


def test_a_step_that_is_finite(tmp_path: Path) -> None:
    found = found_in(trainer_of(tmp_path))
    assert found.cause is None and "not reproduced" in found.sentence


def test_pixels(tmp_path: Path) -> None:
    def read(rows: Tensor) -> Tensor:
        pixels = IMAGES[rows].float()
        pixels[rows == row, 3, 4, 1] = float("nan")
        return pixels

    trainer = trainer_of(tmp_path, read=read)
    row = int(trainer.order.batch(0).rows[5])
    found = found_in(trainer)
    assert (found.cause, found.rows) == ("inputs", [row])
    assert f"picture{row}.png" in found.sentence


def test_a_row_of_the_teachers_bank(tmp_path: Path) -> None:
    features = torch.randn(50, 32)
    trainer = trainer_of(tmp_path, "distill", teacher=ResidentBank(features, None, ROWS[None]))
    row = int(trainer.order.batch(0).rows[7])
    features[row, 3] = float("nan")
    found = found_in(trainer)
    assert (found.cause, found.tensor, found.rows) == ("teacher", "teacher bank", [row])
    assert "sdfast cache verify --out {out}" in found.remedies


def test_a_large_number_among_the_labels(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "finetune", cross_entropy=SquaredError(), dropout=0.0)
    labels = torch.zeros(50, 4)
    row = int(trainer.order.batch(0).rows[2])
    labels[row, 1] = 1e25
    trainer.objective.labels = labels  # type: ignore[attr-defined]
    found = found_in(trainer)
    assert (found.cause, found.tensor, found.rows) == ("rows", "labels", [row])
    assert f"picture{row}.png" in found.sentence and "1e+25" in found.sentence and "mse_loss" in found.sentence


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_what_overflows_in_half_precision_alone(precision: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "finetune", precision=precision, dropout=0.0)
    with torch.no_grad():
        trainer.objective.module.get_parameter("encoder.blocks.1.fc1.bias").fill_(1e5)
    found = found_in(trainer)
    if precision == "fp32":
        assert found.cause is None
        return
    assert found.cause == "precision" and found.remedies == ["engine.precision=bf16", "engine.precision=fp32"]
    assert (found.tensor or "").startswith("encoder.blocks.1")


def test_weights_that_have_grown(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    with torch.no_grad():
        trainer.objective.module.get_parameter("decoder.blocks.0.fc2.weight").fill_(1e38)
    found = found_in(trainer)
    assert (found.cause, found.tensor) == ("rate", "decoder.blocks.0.fc2.weight")
    assert found.remedies == ["pretrain.lr=0.0001", "pretrain.clip=1"]
    assert "decoder.blocks.0" in found.sentence and found.seen is not None and found.seen.operator


def test_a_gradient(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    whole, norm = trainer.objective.loss, trainer.objective.module.get_parameter("encoder.norm.weight")

    def loss(*given: Any) -> dict[str, Tensor]:
        parts = whole(*given)
        return {**parts, "loss": parts["loss"] + (0 * norm).sum().square().sqrt()}

    trainer.objective.loss = loss  # type: ignore[method-assign]
    found = found_in(trainer)
    assert (found.cause, found.tensor) == ("gradient", "the gradient of encoder.norm.weight")
    assert "SqrtBackward0" in found.sentence or "PowBackward0" in found.sentence or "MulBackward0" in found.sentence


def test_micro_batches_are_observed_too(tmp_path: Path) -> None:
    assert found_in(trainer_of(tmp_path, accumulate=3)).cause is None
