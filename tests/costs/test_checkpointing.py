"""Activation checkpointing: the same loss and gradients, bit for bit, and blocks that keep their input only."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from steps import BATCH, MODEL, ODD, SHORTCUTS, bytes_kept, check_peak, peak_bytes, step_of

from sdfast.config import EngineConfig
from sdfast.costs.measure import moments
from sdfast.data.order import Batch
from sdfast.engine.prepare import prepare
from sdfast.modalities.images.model import ViTShape
from sdfast.models.blocks import Block
from sdfast.models.checkpointing import use_checkpointing

CASES: list[tuple[str, dict[str, Any]]] = [
    ("pretrain", {}),
    ("pretrain", {"mask": "bernoulli"}),
    ("distill", {}),
    ("distill", {"teacher": "live", "tokens": "all"}),
    ("distill", {"layer": 2}),
    ("distill", {"layer": 1, "mae": False}),
    ("finetune", {}),  # with dropout
]


def gradients(objective: Any, images: torch.Tensor, bf16: bool) -> list[torch.Tensor]:
    batch = Batch(0, torch.arange(len(images)))
    drawn = objective.draw(batch)
    objective.module.train()
    torch.manual_seed(7)  # dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = objective.loss(images, batch, drawn, slice(0, len(images)))["loss"]
    loss.backward()
    return [loss.detach(), *(p.grad for p in objective.module.parameters() if p.grad is not None), torch.rand(3)]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("on", [False, True], ids=["plain", "shortcuts"])
@pytest.mark.parametrize("shape", [MODEL, ODD])
@pytest.mark.parametrize(("stage", "more"), CASES)
def test_gradients_are_equal_bit_for_bit(
    shape: ViTShape, stage: str, more: dict[str, Any], on: bool, bf16: bool
) -> None:
    _, objective, images = step_of(shape, stage, **more, **dict.fromkeys(SHORTCUTS, on))
    other = copy.deepcopy(objective)
    use_checkpointing(other.module)
    expected, got = gradients(objective, images, bf16), gradients(other, images, bf16)
    assert len(got) == len(expected) > 5
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    use_checkpointing(other.module, on=False)
    assert not any(block.checkpointed for block in other.module.modules() if isinstance(block, Block))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("on", [False, True], ids=["plain", "shortcuts"])
@pytest.mark.parametrize(("stage", "more"), [case for case in CASES if "mask" not in case[1]])
def test_what_is_kept_and_the_peak(stage: str, more: dict[str, Any], on: bool, bf16: bool) -> None:
    step, objective, images = step_of(MODEL, stage, **more, **dict.fromkeys(SHORTCUTS, on))
    use_checkpointing(objective.module)
    kept, without = (moments(step, bf16=bf16, checkpointing=each).kept @ (1, BATCH) for each in (True, False))
    assert kept < 0.8 * without
    assert kept == pytest.approx(bytes_kept(objective, images, bf16), rel=0.002, abs=400)
    check_peak(step, objective, images, bf16, checkpointing=True)


def test_the_peak_falls_as_predicted() -> None:
    shape = dataclasses.replace(MODEL, encoder=dataclasses.replace(MODEL.encoder, depth=12))
    falls = {}
    for what in ("measured", "predicted"):
        peaks = []
        for on in (False, True):
            step, objective, images = step_of(shape, "distill", batch=16, **dict.fromkeys(SHORTCUTS, True))
            use_checkpointing(objective.module, on)
            predicted = max(map(sum, moments(step, checkpointing=on).at(16)))
            peaks.append(peak_bytes(objective, images, False) if what == "measured" else predicted)
        falls[what] = peaks[0] - peaks[1]
    assert falls["measured"] > 30e6
    assert falls["predicted"] == pytest.approx(falls["measured"], rel=0.1)


def test_what_is_computed_again_is_counted_apart() -> None:
    """The blocks' forward pass."""
    task, _, _ = step_of(dataclasses.replace(MODEL, image_size=(160, 160)), "finetune")
    plain, again = task.flops(), task.flops(checkpointing=True)
    encoder, tokens = MODEL.encoder, 1 + 100
    attention = 2 * tokens * 4 * encoder.width**2 + 2 * 2 * tokens * tokens * encoder.width
    assert again == (plain.step, encoder.depth * (attention + 2 * 2 * tokens * encoder.width * encoder.mlp_width))
    assert plain.again == 0


def test_the_setting() -> None:
    _, objective, images = step_of(MODEL, "pretrain")
    prepare(objective.module, EngineConfig(activation_checkpointing=True), images.device, 10)
    assert all(block.checkpointed for block in objective.module.modules() if isinstance(block, Block))
    prepare(objective.module, EngineConfig(), images.device, 10)
    assert not any(block.checkpointed for block in objective.module.modules() if isinstance(block, Block))
