"""Models, batches and arms of the text benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from honest import HonestTexts, Speed
from naive import pretraining_optimizer
from naive_text import NaiveTextDistillation, NaiveTextPretraining, inputs_of, padded
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from sdfast.config import Config
from sdfast.context import Context
from sdfast.data.order import Batch
from sdfast.engine.loop import Trainer
from sdfast.modalities.drawn import DrawnPack, DrawnTexts
from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.checkpoint import Companions, PretrainedMLM, fresh_mlm
from sdfast.modalities.texts.costs import TextTask, text_flops
from sdfast.modalities.texts.modality import TEXTS
from sdfast.modalities.texts.model import Dropouts, TextShape
from sdfast.modalities.texts.prenorm import PreNorm
from sdfast.modalities.texts.tokenization import Tokenization
from sdfast.models.blocks import Style, TransformerShape
from sdfast.ranks import Ranks
from sdfast.stages.build import build_stage
from sdfast.stages.graph import Stage
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.targets import ResidentBank, Teacher

# Tokens of the texts in 20 Newsgroups' training split (11,293) under MiniLM's tokenizer, cut at 512: every twentieth.
NEWSGROUPS = (5, 47, 65, 82, 96, 111, 124, 139, 155, 170, 187, 205, 224, 249, 276, 315, 358, 426, 512, 512, 512)
SHAPES = {
    "MiniLM": TextShape("bert", 30522, 512, 2, 0, TransformerShape(384, 6, 12, 1536)),
    "RoBERTa-base": TextShape("roberta", 50265, 514, 1, 1, TransformerShape(768, 12, 12, 3072), 1e-5),
    "ModernBERT-base": TextShape(
        "modernbert",
        50368,
        8192,
        0,
        50283,
        TransformerShape(768, 22, 12, 1152, Style(gated=True, norm_bias=False, proj_bias=False, mlp_bias=False)),
        1e-5,
        pre_norm=PreNorm(160_000.0, 10_000.0, window=64, local=(False, True, True)),
    ),
}
STAGES = ("pretrain", "distill")
CLASSES = 20
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


def their_model(point: Point) -> Any:
    shape, rate = point.shape, point.dropout
    if shape.kind == "modernbert":  # its configuration's own sizes
        return ModernBertForMaskedLM(ModernBertConfig(embedding_dropout=rate, mlp_dropout=rate, attention_dropout=rate))
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


def trainer_of(
    point: Point,
    folder: Path,
    device: str = "cpu",
    engine: dict[str, Any] | None = None,
    regularizer: str = "none",
    live: bool = False,
) -> Trainer:
    """A run's own trainer over one batch of texts, ready for its first step; masks are drawn in every step.

    Targets are drawn numbers in a bank in memory, or those of a teacher that runs beside the student (`live`).
    """
    shape, dropouts, rows = point.shape, Dropouts(point.dropout, point.dropout), torch.arange(point.texts)
    sections: dict[str, Any] = {stage: {"batch_size": point.texts} for stage in (*STAGES, "finetune")}
    sections["finetune"] |= {"regularizer": regularizer, "dropout": point.dropout}
    mode = {"mode": "live" if live else "bank"}
    config = Config.model_validate({**sections, "engine": engine or {}, "teacher": mode}).resolved("texts")
    model = PretrainedMLM(
        fresh_mlm(shape, 0, dropouts), shape, "drawn", "", [], dropouts, Companions(), fresh_head=False
    )
    texts = point.batch()
    how = Tokenization("", shape.vocabulary, 512, (1,), (2,), (0, 1, 2, 4), 4, 0)
    pack = DrawnPack(DrawnTexts(point.texts, CLASSES, texts.ids, texts.lengths.numpy()), how)
    context = Context(config, TEXTS, torch.device(device), Ranks(), model, pack)
    teacher: Teacher | None = None
    if live:
        teacher = LiveTeacher(fresh_mlm(shape, 1).encoder, "cls").to(device)
    elif point.stage == "distill":
        features = torch.randn(point.texts, shape.encoder.width, generator=torch.Generator().manual_seed(2))
        teacher = ResidentBank(features.to(device), None, rows[None])
    stage, on_device = Stage(point.stage, point.stage), texts.to(torch.device(device))  # type: ignore[arg-type]
    trainer = build_stage(context, stage, model.module, folder, teacher=teacher, read=lambda _: on_device)
    trainer.objective.module.train()
    return trainer


def masks_of(point: Point) -> Any:
    """What a step of the point draws."""
    with TemporaryDirectory() as folder:
        trainer = trainer_of(replace(point, stage="pretrain"), Path(folder))
    return trainer.objective.draw(Batch(0, torch.arange(point.texts)))


def sdfast_step(point: Point, engine: dict[str, Any] | None = None, live: bool = False) -> Step:
    """One step of a run; the masks are drawn in it, as they are in training."""
    with TemporaryDirectory() as folder:
        return trainer_of(point, Path(folder), engine=engine, live=live).step


def honest_step(point: Point, speed: Speed) -> Step:
    """The same with care on modules of transformers: no teacher runs, and the padding too is made beforehand."""
    texts, drawn, model = point.batch(), masks_of(point), their_model(point)
    labels = torch.full_like(texts.ids, -100).index_copy(0, drawn.chosen, drawn.labels)
    targets = torch.randn(point.texts, point.shape.encoder.width, generator=torch.Generator().manual_seed(2))
    honest = HonestTexts(model, targets if point.stage == "distill" else None, speed=speed)
    seen, clean = (inputs_of(ids, texts.lengths, model) for ids in (drawn.batch.ids, texts.ids))
    return lambda: honest.step(seen, padded(labels, texts.lengths, -100), clean)


def naive_step(point: Point) -> Step:
    """The same on modules of transformers; masks, labels and padding are made beforehand."""
    texts = point.batch()
    drawn = masks_of(point)
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
    drawn = masks_of(point)
    stage: Any = point.stage
    task = TextTask(stage, Config(), point.shape)
    return round(text_flops(task, drawn.batch.lengths.tolist(), drawn.counts.tolist()).step)
