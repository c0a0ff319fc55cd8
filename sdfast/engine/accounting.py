"""From a run's configuration to what its steps cost."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Literal

from sdfast.config import Config
from sdfast.data.masking import visible_count
from sdfast.models.flops import StepSpec
from sdfast.models.text import TextShape
from sdfast.models.text_flops import TextStepSpec
from sdfast.models.vit import ViTShape
from sdfast.objectives.base import shortcuts
from sdfast.regularizers.choose import on_loss
from sdfast.teacher.features import blocks_before

Stage = Literal["pretrain", "distill", "finetune"]


def step_spec(stage: Stage, config: Config, shape: ViTShape, classes: int = 0) -> StepSpec:
    """What a stage's step computes for one image.

    With `pretrain.mask=bernoulli` the mean number of masked patches is taken, and padding is left out.

    Args:
        stage: its name.
        config: of the run.
        shape: of the model.
        classes: outputs of the classifier, for `finetune`.
    """
    ratio, patches = config.pretrain.patch_ratio, shape.patches
    fixed = config.pretrain.mask == "fixed"
    taken, distill = shortcuts(config.engine), config.distill
    match = _match(config)
    if stage == "distill" and match == "predictions" and distill.weight and distill.predictions.patches == "all":
        taken = replace(taken, masked_tail=False)
    visible = visible_count(patches, ratio) if fixed else round(patches * (1 - ratio))
    return StepSpec(
        shape,
        stage,
        visible=visible,
        masked=patches - visible,
        tokens=distill.tokens,
        layer=blocks_before(distill.layer) if match == "features" else None,
        teacher=config.teacher.mode,
        mae=bool(distill.mae_weight),
        distill=bool(distill.weight),
        match=match,
        classes=classes,
        passes=_passes(stage, config),
        projection=_projection(stage, config),
        **asdict(taken),
    )


def text_step_spec(stage: Stage | Literal["head"], config: Config, shape: TextShape, classes: int = 0) -> TextStepSpec:
    """What a stage's step on texts computes.

    Args:
        stage: its name.
        config: of the run.
        shape: of the model.
        classes: outputs of the classifier, for `finetune`.
    """
    taken, match = shortcuts(config.engine), _match(config)
    return TextStepSpec(
        shape,
        stage,
        tokens="all" if config.distill.tokens == "all" else "cls",
        layer=blocks_before(config.distill.layer) if match == "features" else None,
        teacher=config.teacher.mode,
        **asdict(taken),
        mlm=bool(config.distill.mae_weight),
        distill=bool(config.distill.weight),
        match=match,
        compared=config.distill.predictions.patches,
        classes=classes,
        passes=_passes(stage, config),
        projection=_projection(stage, config),
    )


def _match(config: Config) -> Literal["features", "predictions", "weights"]:
    match = config.distill.match
    return "weights" if match.startswith("weights") else "predictions" if match == "predictions" else "features"


def _passes(stage: str, config: Config) -> int:
    return 2 if stage == "finetune" and on_loss(config.finetune) is not None else 1


def _projection(stage: str, config: Config) -> int:
    given = config.finetune
    return given.supcon.projection if stage == "finetune" and given.objective == "supcon" else 0
