"""What a stage costs, from its configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from small_stage import SHAPE

from sdfast.config import Config, EngineConfig
from sdfast.data.masking import patch_mask
from sdfast.engine.accounting import step_spec
from sdfast.models.flops import step_flops
from sdfast.objectives.base import SHORTCUTS, shortcuts


def spec(stage: Any, values: dict[str, Any] | None = None, **more: Any) -> Any:
    return step_spec(stage, Config.model_validate(values or {}), SHAPE, **more)


def test_what_the_keys_decide() -> None:
    plain = spec("distill")
    assert (plain.visible, plain.masked, plain.tokens, plain.teacher) == (4, 12, "cls", "bank")
    assert spec("distill", {"distill": {"tokens": "all"}, "teacher": {"mode": "live"}}).live_teacher
    assert not spec("distill", {"distill": {"weight": 0}, "teacher": {"mode": "live"}}).live_teacher
    assert not spec("distill", {"distill": {"mae_weight": 0}}).masked_view
    assert step_flops(spec("finetune", classes=7)).forward["classifier"] == 2 * 32 * 7
    # What is matched, and how: all patches are predicted where all are compared.
    predictions = spec("distill", {"distill": {"match": "predictions"}})
    assert not predictions.clean_view and not predictions.masked_tail and not predictions.banked
    masked = spec("distill", {"distill": {"match": "predictions", "predictions": {"patches": "masked"}}})
    assert masked.masked_tail and step_flops(masked).total < step_flops(predictions).total
    nothing = spec("distill", {"distill": {"match": "predictions", "weight": 0}})
    assert nothing.masked_tail and step_flops(nothing).total == step_flops(spec("pretrain")).total
    weights = spec("distill", {"distill": {"match": "weights-mars"}, "teacher": {"mode": "live"}})
    assert step_flops(weights).total == step_flops(spec("pretrain")).total
    contrastive = step_flops(spec("finetune", {"finetune": {"objective": "supcon"}}, classes=7)).forward
    assert contrastive["classifier"] == 2 * 2 * 32 * 7 and contrastive["projection"] == 2 * 2 * 32 * (32 + 128)
    # The weights of distill say nothing about the other stages.
    assert spec("pretrain", {"distill": {"mae_weight": 0}}).masked_view
    assert not spec("pretrain").clean_view


@pytest.mark.parametrize("ratio", [0.01, 0.4, 0.75, 0.99])
def test_masks_are_as_many_as_are_drawn(ratio: float) -> None:
    rows = torch.arange(200)
    drawn = patch_mask(0, 0, rows, SHAPE.patches, ratio)
    assert spec("pretrain", {"pretrain": {"mask_ratio": ratio}}).visible == drawn.visible_ids.shape[1]
    assert spec("pretrain", {"pretrain": {"mask_ratio": ratio}}).masked == int(drawn.mask[0].sum())
    bernoulli = spec("pretrain", {"pretrain": {"mask_ratio": ratio, "mask": "bernoulli"}})
    share = patch_mask(0, 0, rows, SHAPE.patches, ratio, "bernoulli").mask.float().mean()
    assert bernoulli.masked == pytest.approx(float(share) * SHAPE.patches, abs=1.2)


def test_every_shortcut_has_a_key_of_its_name() -> None:
    assert set(SHORTCUTS) <= set(EngineConfig.model_fields)
    for name in SHORTCUTS:
        off = dataclasses.asdict(shortcuts(EngineConfig.model_validate({name: False})))
        assert off == {each: each != name for each in SHORTCUTS}
