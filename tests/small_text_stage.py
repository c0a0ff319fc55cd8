"""A small stage of texts to train, as `small_stage` is one of images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from pre_norm_shapes import pre_norm_shape
from small_stage import initialise
from torch import Tensor

from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.masking import TokenMasking
from sdfast.modalities.texts.model import Dropouts, MaskedLanguageModel, TextShape
from sdfast.modalities.texts.modern import masked_model, text_classifier
from sdfast.modalities.texts.objectives import LabelledTexts, MaskedTexts
from sdfast.models.blocks import TransformerShape
from sdfast.objectives.base import Objective
from sdfast.objectives.classification import Classification
from sdfast.objectives.contrastive import SupervisedContrastive, add_projection
from sdfast.objectives.masked import MaskedTraining
from sdfast.objectives.matching import PredictionMatching, WeightMatching
from sdfast.teacher.live import LiveTeacher

WORDS, PAD, MASK = 60, 1, 4
SHAPE = TextShape("roberta", WORDS, 40, 1, PAD, TransformerShape(32, 2, 2, 48), 1e-5)
SHAPES = {
    **{kind: replace(SHAPE, kind=kind) for kind in ("roberta", "xlm-roberta", "camembert")},
    "bert": replace(SHAPE, kind="bert", types=2),
    "distilbert": replace(SHAPE, kind="distilbert", types=0, norm_eps=1e-12),
    "electra": replace(SHAPE, kind="electra", types=2, embedding=24),
    **{kind: pre_norm_shape(kind, WORDS, 40, PAD, SHAPE.encoder) for kind in ("modernbert", "eurobert")},
}
_RNG = torch.Generator().manual_seed(1)
TEXTS = [
    torch.cat((torch.tensor([0]), torch.randint(5, WORDS, (length,), generator=_RNG), torch.tensor([2])))
    for length in torch.randint(2, 30, (50,), generator=_RNG).tolist()
]
LENGTHS = torch.tensor([len(text) for text in TEXTS])
LABELS = torch.arange(50) % 4


def read(rows: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([TEXTS[row] for row in rows.tolist()]), LENGTHS[rows]


def texts(rows: Tensor) -> TokenBatch:
    return TokenBatch(*read(rows))


def text_objective_of(stage: str, dtype: torch.dtype = torch.float32, rate: float = 0.15, **changes: Any) -> Objective:
    """The objective of a stage from fixed weights.

    `changes` are further arguments of its class; or `kind` (of the model), `dropout`, `match` (what distill matches:
    features by default), or `supcon` (the width of a projection, for contrastive fine-tuning).
    """
    dropout, kind = changes.pop("dropout", 0.0), changes.pop("kind", "roberta")
    dropouts = Dropouts(dropout, dropout)
    if stage == "finetune":
        classifier = text_classifier(SHAPES[kind], 4, dropouts)
        initialise(classifier, 2)
        if width := changes.pop("supcon", 0):
            add_projection(classifier, width, 4)
            return SupervisedContrastive(classifier.to(dtype), LabelledTexts(), LABELS, **changes)
        return Classification(classifier.to(dtype), LabelledTexts(), LABELS, **changes)
    module, match = model(2, dropouts, kind).to(dtype), changes.pop("match", "features")
    masking = TokenMasking(MASK, WORDS, (0, PAD, 2, MASK), rate)
    masked = MaskedTexts(read, masking, changes.pop("mean", "token"))
    if match == "predictions":
        return PredictionMatching(module, masked, 5, model(3, dropouts, kind).to(dtype), **changes)
    if match != "features":
        norm: Any = match.removeprefix("weights-")
        return WeightMatching(module, masked, 5, model(3, kind=kind).to(dtype), norm, **changes)
    if stage == "distill":
        tokens = changes.get("tokens", "cls")
        changes["teacher"] = LiveTeacher(model(3, kind=kind).encoder, tokens).to(dtype)
    return MaskedTraining(module, masked, 5, **changes)


def model(seed: int, dropouts: Dropouts = Dropouts(), kind: str = "roberta") -> MaskedLanguageModel:  # noqa: B008
    """With fixed weights."""
    module = masked_model(SHAPES[kind], dropouts)
    initialise(module, seed)
    with torch.no_grad():
        module.encoder.word_embeddings.weight[PAD] = 0
    return module
