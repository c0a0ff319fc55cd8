"""Models, batches and arms of the text benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from naive import pretraining_optimizer
from naive_text import NaiveTextDistillation, NaiveTextPretraining
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from sdfast.config import Config, EngineConfig, FinetuneConfig, PretrainConfig
from sdfast.costs.measure import text_flops
from sdfast.costs.task import Task
from sdfast.data.order import Batch, BatchOrder
from sdfast.data.text_batch import TokenBatch
from sdfast.data.text_masking import TokenMasking
from sdfast.engine.loop import Trainer
from sdfast.engine.optim import build_optimizer
from sdfast.models.text import Dropouts, TextShape
from sdfast.models.text_checkpoint import fresh_mlm, text_classifier_from_mlm
from sdfast.models.vit import TransformerShape
from sdfast.objectives.masked_lm import MaskedLanguageModelling
from sdfast.objectives.text_classification import TextClassification
from sdfast.regularizers.choose import on_loss, on_optimizer
from sdfast.regularizers.r4f import add_spectral_norm
from sdfast.teacher.targets import ResidentBank

# Tokens of the texts in 20 Newsgroups' training split (11,293) under MiniLM's tokenizer, cut at 512: every twentieth.
NEWSGROUPS = (5, 47, 65, 82, 96, 111, 124, 139, 155, 170, 187, 205, 224, 249, 276, 315, 358, 426, 512, 512, 512)
SHAPES = {
    "MiniLM": TextShape("bert", 30522, 512, 2, 0, TransformerShape(384, 6, 12, 1536)),
    "RoBERTa-base": TextShape("roberta", 50265, 514, 1, 1, TransformerShape(768, 12, 12, 3072), 1e-5),
}
STAGES = ("pretrain", "distill")
Step = Callable[[], Any]


@dataclass(frozen=True)
class Point:
    """One comparison.

    Attributes:
        model: of `SHAPES`.
        stage: `pretrain`, `distill` or `finetune`.
        lengths: `full`, 512 tokens in every text; `mix`, as in 20 Newsgroups.
        texts: of a batch.
        dropout: of hidden states and attention weights.
    """

    model: str
    stage: str
    lengths: str
    texts: int
    dropout: float

    def __str__(self) -> str:
        return f"{self.model}, {self.stage}, {self.lengths}, {self.texts} texts, dropout {self.dropout:g}"

    @property
    def shape(self) -> TextShape:
        return SHAPES[self.model]

    def batch(self) -> TokenBatch:
        """Random words of the point's lengths, in random order."""
        if self.lengths == "full":
            lengths = torch.full((self.texts,), 512)
        else:
            places = (torch.arange(self.texts) + 0.5) / self.texts * (len(NEWSGROUPS) - 1)
            table = torch.tensor(NEWSGROUPS, dtype=torch.float64)
            low = places.long()
            lengths = torch.lerp(table[low], table[low + 1], (places - low).double()).round().long()
            lengths = lengths[torch.randperm(self.texts, generator=torch.Generator().manual_seed(0))]
        rng = torch.Generator().manual_seed(1)
        return TokenBatch(torch.randint(5, self.shape.vocabulary, (int(lengths.sum()),), generator=rng), lengths)


def masking_of(point: Point) -> TokenMasking:
    return TokenMasking(4, point.shape.vocabulary, (0, 1, 2, 4))


def their_model(point: Point) -> Any:
    shape, rate = point.shape, point.dropout
    kinds = {"bert": (BertConfig, BertForMaskedLM), "roberta": (RobertaConfig, RobertaForMaskedLM)}
    config, kind = kinds[shape.kind]
    return kind(
        config(
            vocab_size=shape.vocabulary,
            hidden_size=shape.encoder.width,
            num_hidden_layers=shape.encoder.depth,
            num_attention_heads=shape.encoder.heads,
            intermediate_size=shape.encoder.mlp_width,
            max_position_embeddings=shape.positions,
            type_vocab_size=shape.types,
            layer_norm_eps=shape.norm_eps,
            hidden_dropout_prob=rate,
            attention_probs_dropout_prob=rate,
        )
    )


def objective_of(point: Point, **changes: Any) -> MaskedLanguageModelling:
    batch = point.batch()
    module = fresh_mlm(point.shape, 0, Dropouts(point.dropout, point.dropout)).train()
    teacher = None
    if point.stage == "distill":
        features = torch.randn(point.texts, point.shape.encoder.width)
        teacher = ResidentBank(features, None, torch.arange(point.texts)[None])
    return MaskedLanguageModelling(
        module, lambda rows: (batch.ids, batch.lengths), masking_of(point), 0, teacher, **changes
    )


def sdfast_step(point: Point) -> Step:
    """One optimiser step; the masks are drawn in it, as they are in training."""
    objective, texts = objective_of(point), point.batch()
    batch = Batch(0, torch.arange(point.texts))
    optimizer = build_optimizer(objective.trained_parameters(), PretrainConfig(), objective.decay_rule)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective.loss(texts, batch, objective.draw(batch), slice(0, point.texts))["loss"]
        loss.backward()
        optimizer.step()
        return loss

    return step


def finetuning(point: Point, classes: int, regularizer: str, directory: Path) -> Trainer:
    """sdfast's own loop over the point's texts, every step the same ones, ready for its first step."""
    texts, rows = point.batch(), torch.arange(point.texts)
    config = FinetuneConfig.model_validate({"batch_size": point.texts, "regularizer": regularizer})
    dropouts = Dropouts(point.dropout, point.dropout)
    module = text_classifier_from_mlm(fresh_mlm(point.shape, 0, dropouts), classes, dropouts, 0).train()
    acting = on_optimizer(config, module)
    if regularizer == "r4f":
        add_spectral_norm(module.classifier, 0)
    objective = TextClassification(module, rows % classes, r3f=on_loss(config), regularizer=acting)
    order, engine = BatchOrder(rows, point.texts, seed=0), EngineConfig()
    return Trainer("finetune", objective, config, engine, order, lambda rows: texts, directory, {}, resume=False)


def naive_step(point: Point) -> Step:
    """The same on modules of transformers; masks, labels and padding are made beforehand."""
    texts = point.batch()
    drawn = objective_of(replace(point, stage="pretrain")).draw(Batch(0, torch.arange(point.texts)))
    labels = torch.full_like(texts.ids, -100).index_copy(0, drawn.chosen, drawn.labels)
    if point.stage == "pretrain":
        pretraining = NaiveTextPretraining(their_model(point))
        pretraining.optimizer = pretraining_optimizer(pretraining.model, 1e-4, fused=True)
        return lambda: pretraining.step(drawn.batch.ids, labels, texts.lengths)
    distillation = NaiveTextDistillation(their_model(point), their_model(point))
    distillation.optimizer = pretraining_optimizer(distillation.model, 1e-4, fused=True)
    return lambda: distillation.step(drawn.batch.ids, labels, texts.lengths, texts.ids)


def flops_of(point: Point) -> int:
    """FLOPs of sdfast's step."""
    drawn = objective_of(replace(point, stage="pretrain")).draw(Batch(0, torch.arange(point.texts)))
    stage: Any = point.stage
    task = Task(stage, Config(), point.shape)
    return round(text_flops(task, drawn.batch.lengths.tolist(), drawn.counts.tolist()).step)
