"""Training steps on texts on the CPU: the naive step on Hugging Face modules (padded, a head for every token, a live
teacher), the same modules run with care against cached targets, and sdfast's, in turns, in one run.

    pytest benchmarks/bench_text.py --benchmark-only --benchmark-json=F; python benchmarks/text_table.py F

float32 but for the arms named bf16 (autocast), AdamW (fused in all), freed pages kept in all, dropout 0.1 (with which
MiniLM and RoBERTa are published) or 0 (with which ModernBERT is). `full` has 512 tokens in every text; `mix` the
lengths of 20 Newsgroups. sdfast's step draws its masks, the others have masks and labels made beforehand. Name points
to run fewer: `-k "MiniLM and mix"`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from honest import Speed
from step_clock import product, turns
from text_setup import SHAPES, STAGES, Point, flops_of, honest_step, naive_step, sdfast_step

from sdfast.engine.machine import freed_pages_kept
from sdfast.ops.linear_chunks import rows_of_a_chunk

TEXTS = {("MiniLM", "full"): 4, ("MiniLM", "mix"): 8, ("RoBERTa-base", "full"): 2, ("RoBERTa-base", "mix"): 4}
TEXTS |= {("ModernBERT-base", "full"): 2, ("ModernBERT-base", "mix"): 4}
ROUNDS = {"MiniLM": 4, "RoBERTa-base": 3, "ModernBERT-base": 3}
RATES = {"MiniLM": (0.1, 0.0), "RoBERTa-base": (0.1, 0.0), "ModernBERT-base": (0.0,)}
PRODUCT, SIZE, PRODUCTS = "float32 product", 1024, 20


def logit_bytes(point: Point) -> dict[str, int]:
    """The most logits that are there at a time: for every token with its padding, or for the rows of a chunk."""
    lengths, words = point.batch().lengths, point.shape.vocabulary
    masked = round(0.15 * int(lengths.sum()))
    chunk = rows_of_a_chunk(masked, words, torch.float32, "cpu")
    return {"naive": 4 * words * len(lengths) * int(lengths.max()), "sdfast": 4 * words * chunk}


@pytest.mark.parametrize(("model", "dropout"), [(model, rate) for model in SHAPES for rate in RATES[model]])
@pytest.mark.parametrize("lengths", ["full", "mix"])
@pytest.mark.parametrize("stage", STAGES)
def test_text_step(benchmark: Any, model: str, stage: str, lengths: str, dropout: float) -> None:
    point = Point(model, stage, lengths, TEXTS[model, lengths], dropout)
    with freed_pages_kept() as kept:
        steps = {
            "naive": naive_step(point),
            "honest": honest_step(point, Speed()),
            "honest bf16": honest_step(point, Speed(bf16=True)),
            "sdfast": sdfast_step(point),
            "sdfast bf16": sdfast_step(point, {"precision": "bf16"}),
        }
        for step in steps.values():
            step()
        steps[PRODUCT] = product(SIZE, torch.float32, "cpu")
        calls = {name: PRODUCTS if name == PRODUCT else 1 for name in steps}
        samples = turns(steps, calls, "cpu", ROUNDS[model])
    benchmark.group = str(point)
    benchmark.extra_info.update(
        point=str(point),
        texts=point.texts,
        tokens=int(point.batch().lengths.sum()),
        seconds=samples,
        flops={"sdfast": flops_of(point), PRODUCT: 2 * SIZE**3},
        logit_bytes=logit_bytes(point),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        allocator="freed pages kept" if kept else "as installed",
    )
    benchmark.pedantic(lambda: None, rounds=1)  # the samples are in extra_info
