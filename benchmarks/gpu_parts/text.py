"""Steps on texts: sdfast's, and Hugging Face's modules run with care (padded, one backward call, cached targets)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from naive import pretraining_optimizer
from naive_text import inputs_of, padded
from step_clock import calls_for, matmul_precision, seconds_of, synchronise
from text_setup import Point, masking_of, objective_of, their_model

from gpu_parts.context import Context
from gpu_parts.evidence import Memory, compilation, compiled_modules, listening
from sdfast.config import EngineConfig, FinetuneConfig, PretrainConfig
from sdfast.data.order import Batch, BatchOrder
from sdfast.engine.loop import Trainer
from sdfast.engine.prepare import prepare
from sdfast.models.text import Dropouts, TextShape
from sdfast.models.text_checkpoint import fresh_mlm, text_classifier_from_mlm
from sdfast.models.vit import TransformerShape
from sdfast.objectives.base import Objective
from sdfast.objectives.classification import Classification
from sdfast.objectives.masked import MaskedTraining
from sdfast.objectives.texts import LabelledTexts, MaskedTexts
from sdfast.teacher.targets import ResidentBank

MAIN = ("RoBERTa-base", "distill", "mix", 64)
CLASSES = 20
STEPS = 10_000  # of a stage, so that `auto` compiles where it would
ROUNDS = 7


@dataclass(frozen=True)
class Tiny(Point):
    """A point whose model is far smaller than those it can name."""

    @property
    def shape(self) -> TextShape:
        return TextShape("bert", 1000, 512, 2, 0, TransformerShape(32, 2, 2, 64))


def tiny(stage: str) -> Tiny:
    return Tiny("tiny", stage, "mix", 4, 0.0)


def trainer_of(point: Point, device: str, settings: dict[str, Any], folder: Path) -> Trainer:
    """sdfast's own loop over one batch of texts, ready for its first step; masks are drawn in every step."""
    where, engine = torch.device(device), EngineConfig.model_validate(settings)
    texts, rows = point.batch(), torch.arange(point.texts)
    config: PretrainConfig | FinetuneConfig = PretrainConfig(batch_size=point.texts)
    if point.stage == "finetune":
        config = FinetuneConfig(batch_size=point.texts)
    objective = objective_on(point, where)
    prepare(objective.module, engine, where, STEPS)
    objective.module.train()
    on_device = texts.to(where)
    order = BatchOrder(rows, point.texts, seed=0)
    return Trainer(
        point.stage, objective, config, engine, order, lambda _: on_device, folder, {}, resume=False, unit="seq"
    )


def objective_on(point: Point, device: torch.device) -> Objective:
    """What the stage minimises, on a device; targets are drawn numbers in a bank in its memory."""
    texts, rows = point.batch(), torch.arange(point.texts)
    dropouts = Dropouts(point.dropout, point.dropout)
    module = fresh_mlm(point.shape, 0, dropouts)
    if point.stage == "finetune":
        classifier = text_classifier_from_mlm(module, CLASSES, dropouts, 0)
        return Classification(classifier.to(device), LabelledTexts(), (rows % CLASSES).to(device))
    teacher = None
    if point.stage == "distill":
        features = torch.randn(point.texts, point.shape.encoder.width, generator=torch.Generator().manual_seed(2))
        teacher = ResidentBank(features.to(device), None, rows[None])
    read = lambda _: (texts.ids, texts.lengths)  # noqa: E731
    return MaskedTraining(module.to(device), MaskedTexts(read, masking_of(point)), 0, teacher)


def honest_step(point: Point, device: str) -> Callable[[], Any]:
    """The same mathematics on transformers' modules; masks, labels and padding are made beforehand."""
    texts = point.batch()
    drawn = objective_of(replace(point, stage="pretrain")).draw(Batch(0, torch.arange(point.texts)))
    model = their_model(point).train()
    optimizer = pretraining_optimizer(model.to(device), 1e-4, fused=True)
    labels = torch.full_like(texts.ids, -100).index_copy(0, drawn.chosen, drawn.labels)
    labels = padded(labels, texts.lengths, -100).to(device)
    seen, clean = (
        {name: value.to(device) for name, value in inputs_of(ids, texts.lengths, model).items()}
        for ids in (drawn.batch.ids, texts.ids)
    )
    targets = torch.randn(point.texts, point.shape.encoder.width).to(device)

    def step() -> dict[str, Any]:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(**seen, labels=labels).loss
            if point.stage == "distill":
                first = model.base_model(**clean).last_hidden_state[:, 0]
                loss = loss + (first - targets).square().sum() / point.texts
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.detach()}

    return step


def run(context: Context) -> Iterator[dict[str, Any]]:
    """One row: the arm `sdfast` or `honest`, with or without dropout."""
    arm, rate = context.what["arm"], context.what["dropout"]
    point = Tiny("tiny", "distill", "mix", 4, rate) if context.quick else Point(*MAIN, rate)
    memory = Memory(context.device)
    facts: dict[str, Any] = {}
    with listening() as heard, matmul_precision(context.device == "cuda"):
        if arm == "sdfast":
            trainer = trainer_of(point, context.device, {}, context.folder)
            step, facts = looped(trainer), {"graphed": getattr(trainer.engine, "graphed", None)}
            facts["compiled_modules"] = compiled_modules(trainer.objective.module)
        else:
            step = honest_step(point, context.device)
        row = timed(step, context)
    row |= {"point": str(point), "texts": point.texts, "tokens": int(point.batch().lengths.sum()), **facts}
    row["seq/s"] = 1e3 * point.texts / row["ms"]
    found = compilation()
    yield {**row, **memory.row(), **found, "compiled": found["frames"] > 0, "said": heard.said}


def looped(trainer: Trainer) -> Callable[[], Any]:
    def step() -> Any:
        parts = trainer._one_step()
        trainer.step += 1
        return parts

    return step


def timed(step: Callable[[], Any], context: Context) -> dict[str, Any]:
    """The first step by itself, a few to settle, then the median."""
    begun = time.perf_counter()
    step()
    synchronise(context.device)
    row: dict[str, Any] = {"first_step_s": time.perf_counter() - begun}
    for _ in range(1 if context.quick else 6):
        step()
    calls = calls_for(step, context.device, 0.001 if context.quick else 0.2)
    seconds = [seconds_of(step, calls, context.device) for _ in range(2 if context.quick else ROUNDS)]
    return {**row, "ms": statistics.median(seconds) * 1e3, "sample_ms": [1e3 * each for each in seconds]}
