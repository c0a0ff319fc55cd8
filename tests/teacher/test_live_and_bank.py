"""Training against a bank is training against the live teacher: the same losses and the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank_samples import COUNT, TRANSFORM, make_module, make_recipe

from sdfast.config import EngineConfig, PretrainConfig
from sdfast.data.order import BatchOrder
from sdfast.engine.loop import StageFolder, Trainer, TrainingData
from sdfast.engine.teacher_bank import bank_targets
from sdfast.modalities.images.objectives import MaskedImages
from sdfast.modalities.images.reader import Normalise
from sdfast.modalities.images.teacher import ImageRecipe
from sdfast.objectives.masked import MaskedTraining
from sdfast.teacher.build import prepare_bank
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.targets import Teacher

STEPS = 200


def train(
    recipe: ImageRecipe,
    teacher: Teacher,
    dtype: torch.dtype,
    batch_size: int,
    seed: int,
    directory: Path,
    accumulate: int,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The loss of every step, and the weights after the last."""
    module = make_module(8).to(dtype)
    normalise = Normalise(TRANSFORM.mean, TRANSFORM.std).to(dtype)
    masked = MaskedImages(normalise, PretrainConfig(), recipe.augment)
    objective = MaskedTraining(module, masked, seed, teacher, recipe.tokens, recipe.layer)
    images = torch.from_numpy(recipe.images)
    trainer = Trainer(
        "distill",
        objective,
        PretrainConfig(steps=STEPS, batch_size=batch_size, lr=1e-3),
        EngineConfig(accumulate=accumulate),
        TrainingData(BatchOrder(torch.from_numpy(recipe.rows), batch_size, seed), lambda rows: images[rows]),
        StageFolder(directory, {}),
    )
    losses = [float(trainer.step()["loss"]) for _ in range(STEPS)]
    return losses, {name: value.clone() for name, value in module.state_dict().items()}


class Stopped(Exception):
    pass


def interrupted_build(directory: Path, recipe: ImageRecipe) -> Any:
    """A bank whose build was stopped after each of its batches once."""

    def stop_at(row: int) -> Any:
        def progress(done: int, total: int) -> None:
            if done == row:
                raise Stopped

        return progress

    for row in (64, 128):
        with pytest.raises(Stopped):
            prepare_bank(directory, recipe, progress=stop_at(row), commit_seconds=0)
        assert not directory.exists()
    return prepare_bank(directory, recipe)


@pytest.mark.parametrize(
    ("tokens", "layer", "batch_size", "seed", "accumulate"),
    [("cls", "last", 16, 0, 1), ("cls", "last", 7, 5, 2), ("all", "last", 16, 0, 1), ("patch", 1, 16, 0, 1)],
)
def test_the_same_losses_and_weights_in_float64(
    tmp_path: Path, tokens: str, layer: Any, batch_size: int, seed: int, accumulate: int
) -> None:
    whole = make_recipe(tokens=tokens, dtype="float64", layer=layer)
    recipe = replace(whole, rows=np.arange(0, COUNT, 2))
    live = LiveTeacher(recipe.encoder, recipe.tokens, layer).double()
    bank = bank_targets(interrupted_build(tmp_path / "teacher", whole), recipe)
    arguments = (torch.float64, batch_size, seed, tmp_path, accumulate)
    losses, weights = train(recipe, live, *arguments)
    banked, bank_weights = train(recipe, bank, *arguments)
    np.testing.assert_allclose(banked, losses, rtol=1e-9)
    assert losses[-1] < 0.9 * losses[0]
    for name, value in weights.items():
        torch.testing.assert_close(bank_weights[name], value, rtol=1e-9, atol=1e-9)


def test_the_same_in_float32_to_rounding(tmp_path: Path) -> None:
    recipe = make_recipe()
    bank = bank_targets(prepare_bank(tmp_path / "teacher", recipe), recipe)
    arguments = (torch.float32, 16, 0, tmp_path, 1)
    losses, _ = train(recipe, LiveTeacher(recipe.encoder, "cls"), *arguments)
    banked, _ = train(recipe, bank, *arguments)
    np.testing.assert_allclose(banked[:20], losses[:20], rtol=1e-5)
    np.testing.assert_allclose(banked, losses, rtol=1e-3)


def test_a_wrong_row_shows(tmp_path: Path) -> None:
    """The comparison above can fail: with the rows shifted by one the losses are others."""
    recipe = make_recipe(dtype="float64")
    bank = bank_targets(prepare_bank(tmp_path / "teacher", recipe), recipe)
    bank.bank_rows = bank.bank_rows.roll(1, dims=1)
    arguments = (torch.float64, 16, 0, tmp_path, 1)
    losses, _ = train(recipe, LiveTeacher(recipe.encoder, "cls").double(), *arguments)
    shifted, _ = train(recipe, bank, *arguments)
    assert abs(shifted[0] / losses[0] - 1) > 1e-6
