"""Every kind of model that sdfast takes, once: its encoder beside transformers', and a step of distill.

    pytest benchmarks/bench_kinds.py --benchmark-only --benchmark-json=F; python benchmarks/kinds_table.py F

Models of the size of ViT-Ti/16 (batch 8) and of MiniLM (8 texts, lengths of 20 Newsgroups), new weights, float32, no
dropout, freed pages kept in all arms, which take turns. `transformers` and `ours` are the encoder forwards and
backwards on what is not masked, all its tokens (transformers' in SDPA, and padded); `separate` is a step of distill on
our modules with no shortcut and a live teacher, and `distill` the same with everything that is exact.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import text_setup
import torch
from kinds_setup import IMAGES, TEXTS, encoder_steps, text_encoder_steps
from step_clock import turns
from step_setup import Ours, Point, sdfast_arm

from sdfast.engine.machine import freed_pages_kept
from sdfast.objectives.base import SHORTCUTS

BATCH, ROUNDS = 8, 5
OFF: dict[str, Any] = dict.fromkeys(SHORTCUTS, False)


def _measured(benchmark: Any, modality: str, kind: str, steps: dict[str, Any]) -> None:
    with freed_pages_kept() as kept:
        for step in steps.values():
            step()
        samples = turns(steps, dict.fromkeys(steps, 1), "cpu", ROUNDS)
    benchmark.group = kind
    benchmark.extra_info.update(
        kind=kind,
        modality=modality,
        seconds=samples,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        allocator="freed pages kept" if kept else "as installed",
    )
    benchmark.pedantic(lambda: None, rounds=1)  # the samples are in extra_info


@pytest.mark.parametrize("kind", IMAGES)
def test_images(benchmark: Any, kind: str, tmp_path: Path) -> None:
    steps, point = encoder_steps(kind, BATCH), Point("distill", kind, BATCH)
    steps["separate"] = sdfast_arm(point, tmp_path, Ours(engine=OFF, teacher="live")).build()
    steps["distill"] = sdfast_arm(point, tmp_path, Ours()).build()
    _measured(benchmark, "images", kind, steps)


@pytest.mark.parametrize("kind", TEXTS)
def test_texts(benchmark: Any, kind: str) -> None:
    steps, point = text_encoder_steps(kind, BATCH), text_setup.Point(kind, "distill", "mix", BATCH, 0.0)
    steps["separate"] = text_setup.sdfast_step(point, OFF, live=True)
    steps["distill"] = text_setup.sdfast_step(point)
    _measured(benchmark, "texts", kind, steps)
