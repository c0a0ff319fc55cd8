"""A small stage of texts to train, as `small_stage` is one of images."""

from __future__ import annotations

from typing import Any

import torch
from small_stage import initialise
from torch import Tensor

from sdfast.data.text_batch import TokenBatch
from sdfast.data.text_masking import TokenMasking
from sdfast.models.blocks import TransformerShape
from sdfast.models.text import Dropouts, MaskedLanguageModel, TextClassifier, TextShape
from sdfast.objectives.base import Objective
from sdfast.objectives.contrastive import add_projection
from sdfast.objectives.masked_lm import MaskedLanguageModelling
from sdfast.objectives.text_classification import TextClassification
from sdfast.objectives.text_contrastive import TextSupervisedContrastive
from sdfast.objectives.text_matching import TextPredictionMatching, TextWeightMatching
from sdfast.teacher.live_text import LiveTextTeacher

WORDS, PAD, MASK = 60, 1, 4
SHAPE = TextShape("roberta", WORDS, 40, 1, PAD, TransformerShape(32, 2, 2, 48), 1e-5)
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

    `changes` are further arguments of its class; or `dropout`, `match` (what distill matches: features by default), or
    `supcon` (the width of a projection, for contrastive fine-tuning).
    """
    dropout = changes.pop("dropout", 0.0)
    dropouts = Dropouts(dropout, dropout)
    if stage == "finetune":
        classifier = TextClassifier(SHAPE, 4, dropouts)
        initialise(classifier, 2)
        if width := changes.pop("supcon", 0):
            add_projection(classifier, width, 4)
            return TextSupervisedContrastive(classifier.to(dtype), LABELS, **{"temperature": 0.07, **changes})
        return TextClassification(classifier.to(dtype), LABELS, **changes)
    masking, match = TokenMasking(MASK, WORDS, (0, PAD, 2, MASK), rate), changes.pop("match", "features")
    module = model(2, dropouts).to(dtype)
    if match == "predictions":
        return TextPredictionMatching(module, read, masking, 5, model(3, dropouts).to(dtype), **changes)
    if match != "features":
        norm: Any = match.removeprefix("weights-")
        return TextWeightMatching(module, read, masking, 5, model(3).to(dtype).encoder, norm, **changes)
    if stage == "distill":
        tokens = changes.get("tokens", "cls")
        changes["teacher"] = LiveTextTeacher(model(3).encoder, tokens).to(dtype)
    return MaskedLanguageModelling(module, read, masking, 5, **changes)


def model(seed: int, dropouts: Dropouts = Dropouts()) -> MaskedLanguageModel:  # noqa: B008 (frozen)
    module = MaskedLanguageModel(SHAPE, dropouts)
    initialise(module, seed)
    with torch.no_grad():
        module.encoder.word_embeddings.weight[PAD] = 0
    return module
