"""Steps on texts: sdfast's, and Hugging Face's modules run with care (padded, one backward call, cached targets)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from naive import pretraining_optimizer
from naive_text import inputs_of, padded
from step_clock import calls_for, matmul_precision, seconds_of, synchronise
from text_setup import Point, masks_of, their_model, trainer_of

from gpu_parts.context import Context
from gpu_parts.evidence import Memory, compilation, compiled_modules, listening
from sdfast.engine.loop import Trainer
from sdfast.modalities.texts.model import TextShape
from sdfast.models.blocks import TransformerShape

MAIN = ("RoBERTa-base", "distill", "mix", 64)
ROUNDS = 7


@dataclass(frozen=True)
class Tiny(Point):
    """A point whose model is far smaller than those it can name."""

    @property
    def shape(self) -> TextShape:
        return TextShape("bert", 1000, 512, 2, 0, TransformerShape(32, 2, 2, 64))


def tiny(stage: str) -> Tiny:
    return Tiny("tiny", stage, "mix", 4, 0.0)


def honest_step(point: Point, device: str) -> Callable[[], Any]:
    """The same mathematics on transformers' modules; masks, labels and padding are made beforehand."""
    texts = point.batch()
    drawn = masks_of(point)
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
            trainer = trainer_of(point, context.folder, context.device)
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
        parts = trainer.step()
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
