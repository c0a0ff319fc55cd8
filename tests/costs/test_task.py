"""What a stage costs, from its configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from small_stage import SHAPE

from sdfast.config import Config, EngineConfig
from sdfast.modalities.images.costs import ImageTask, image_step
from sdfast.modalities.images.masking import patch_mask
from sdfast.objectives.base import SHORTCUTS, shortcuts


def task_of(stage: Any, values: dict[str, Any] | None = None, **more: Any) -> ImageTask:
    return ImageTask(stage, Config.model_validate(values or {}), SHAPE, **more)


def flops(stage: Any, values: dict[str, Any] | None = None, **more: Any) -> float:
    return task_of(stage, values, **more).flops().step


def test_what_the_keys_decide() -> None:
    plain, drawn = task_of("distill"), image_step(task_of("distill"), 1).drawn
    assert (drawn.visible_ids.shape[1], drawn.masked_ids.shape[1], plain.banked) == (4, 12, True)
    live = {"distill": {"tokens": "all"}, "teacher": {"mode": "live"}}
    assert image_step(task_of("distill", live), 1).teacher is not None
    assert image_step(task_of("distill", {"distill": {"weight": 0}, "teacher": {"mode": "live"}}), 1).teacher is None
    assert flops("distill", {"distill": {"mae_weight": 0}}) < flops("distill") - flops("pretrain") / 2
    assert flops("finetune", classes=7) - flops("finetune", classes=6) == 3 * 2 * 32
    # What is matched, and how: all patches are predicted where all are compared.
    predictions = task_of("distill", {"distill": {"match": "predictions"}})
    assert not predictions.banked
    masked = {"distill": {"match": "predictions", "predictions": {"patches": "masked"}}}
    assert flops("distill", masked) < predictions.flops().step
    assert 3 * flops("distill", masked) == 4 * flops("pretrain") + embedding_without_gradient()
    nothing = {"distill": {"match": "predictions", "weight": 0}}
    assert flops("distill", nothing) == flops("pretrain")
    weights = {"distill": {"match": "weights-mars"}, "teacher": {"mode": "live"}}
    assert flops("distill", weights) == flops("pretrain")
    # Two views of an image; the classifier has no gradient with respect to its input.
    contrastive = flops("finetune", {"finetune": {"objective": "supcon"}}, classes=7)
    once = flops("finetune", classes=7) - 3 * 2 * 32 * 7
    assert contrastive == 2 * once + 2 * 2 * 2 * 32 * 7 + 3 * 2 * 2 * 32 * (32 + 128)
    # The weights of distill say nothing about the other stages.
    assert flops("pretrain", {"distill": {"mae_weight": 0}}) == flops("pretrain")


def embedding_without_gradient() -> int:
    """What the patch embedding of the visible patches has less than a third of, for want of a gradient of pixels."""
    return 2 * 4 * SHAPE.patch_values * SHAPE.encoder.width


@pytest.mark.parametrize("ratio", [0.01, 0.4, 0.75, 0.99])
def test_masks_are_as_many_as_are_drawn(ratio: float) -> None:
    rows = torch.arange(200)
    drawn = patch_mask(0, 0, rows, SHAPE.patches, ratio)
    mask = image_step(task_of("pretrain", {"pretrain": {"mask_ratio": ratio}}), 1).drawn
    assert mask.visible_ids.shape[1] == drawn.visible_ids.shape[1]
    assert mask.masked_count == int(drawn.mask[0].sum())
    bernoulli = image_step(task_of("pretrain", {"pretrain": {"mask_ratio": ratio, "mask": "bernoulli"}}), 1).drawn
    share = patch_mask(0, 0, rows, SHAPE.patches, ratio, "bernoulli").mask.float().mean()
    assert bernoulli.masked_count == pytest.approx(float(share) * SHAPE.patches, abs=1.2)


def test_masks_of_several_sizes_have_no_tail() -> None:
    """As each image has another number of masked patches, all are predicted, whatever `engine.masked_tail` says."""
    bernoulli = {"pretrain": {"mask": "bernoulli"}}
    assert flops("pretrain", bernoulli) == flops("pretrain", {**bernoulli, "engine": {"masked_tail": False}})


def test_every_shortcut_has_a_key_of_its_name() -> None:
    assert set(SHORTCUTS) <= set(EngineConfig.model_fields)
    for name in SHORTCUTS:
        off = dataclasses.asdict(shortcuts(EngineConfig.model_validate({name: False})))
        assert off == {each: each != name for each in SHORTCUTS}
