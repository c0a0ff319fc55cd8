"""Models that can be named without a checkpoint, and what is measured of one."""

from __future__ import annotations

from typing import Any

from sdfast.config import Config
from sdfast.costs.task import Stage, Task
from sdfast.modalities.images.costs import ImageTask
from sdfast.modalities.images.model import TransformerShape, ViTShape
from sdfast.modalities.texts.costs import TextTask
from sdfast.modalities.texts.model import Dropouts, TextShape

_BASE, _LARGE = TransformerShape(768, 12, 12, 3072), TransformerShape(1024, 24, 16, 4096)
_DECODER = TransformerShape(512, 8, 16, 2048)  # of MAE


def _vit(encoder: TransformerShape, patch_size: int = 16) -> ViTShape:
    return ViTShape((224, 224), patch_size, 3, encoder, _DECODER)


def _roberta(encoder: TransformerShape) -> TextShape:
    return TextShape("roberta", 50_265, 514, 1, 1, encoder)


NAMED: dict[str, ViTShape | TextShape] = {
    "vit-ti": _vit(TransformerShape(192, 12, 3, 768)),
    "vit-s": _vit(TransformerShape(384, 12, 6, 1536)),
    "vit-b": _vit(_BASE),
    "vit-l": _vit(_LARGE),
    "vit-h": _vit(TransformerShape(1280, 32, 16, 5120), 14),
    "roberta-base": _roberta(_BASE),
    "roberta-large": _roberta(_LARGE),
}
PUBLISHED_DROPOUTS = Dropouts(0.1, 0.1)  # of RoBERTa


def task_of(stage: Stage, config: Config, shape: ViTShape | TextShape, classes: int = 10, **more: Any) -> Task:
    """A stage of a model of either modality; `more` is what only texts have."""
    if isinstance(shape, TextShape):
        return TextTask(stage, config, shape, classes, **more)
    return ImageTask(stage, config, shape, classes)
