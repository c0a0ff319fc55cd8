"""What the fine-tuning baselines cost: steps of ViT-S, and of MiniLM on texts, with each against plain fine-tuning, in
turns, in one run.

    pytest benchmarks/bench_methods.py --benchmark-only --benchmark-json=F; python benchmarks/methods_table.py F

sdfast's own loop, float32, freed pages kept. `test_steps` has whole steps; R3F and R4F are to cost their second pass,
and `arithmetic` is that of the two passes over that of one. `test_optimizers` has what RecAdam and MARS add to, the
optimiser's step alone (with MARS's projection): beside a step of a second their milliseconds drown in the noise, so
`share of a plain step` is the difference of the optimisers over the plain step.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import text_setup
import torch
from step_clock import turns
from step_setup import CLASSES, Ours, Point, shape_of, trainer_of

from sdfast.config import Config
from sdfast.engine.loop import Trainer
from sdfast.engine.machine import freed_pages_kept
from sdfast.engine.single import SingleEngine
from sdfast.modalities.images.costs import ImageTask
from sdfast.modalities.texts.costs import TextTask, text_flops

METHODS = ("none", "recadam", "mars", "r3f", "r4f")
ON_OPTIMIZER = ("none", "recadam", "mars")
POINT = Point("finetune", "ViT-S/16", 8)
TEXTS = text_setup.Point("MiniLM", "finetune", "mix", 8, 0.1)
KINDS = ("images", "texts")
ROUNDS, OPTIMIZER_ROUNDS = 5, 15


@pytest.mark.parametrize("kind", KINDS)
def test_steps(benchmark: Any, tmp_path: Path, kind: str) -> None:
    steps = {name: step_of(trainer_with(kind, name, tmp_path)) for name in METHODS}
    with freed_pages_kept():
        turns(steps, dict.fromkeys(steps, 1), "cpu", 1)
        seconds = medians(turns(steps, dict.fromkeys(steps, 1), "cpu", ROUNDS))
    record(benchmark, kind, seconds, {name: value / seconds["none"] for name, value in seconds.items()}, "ratio")
    benchmark.extra_info["arithmetic"] = flops(kind, "r3f") / flops(kind, "none")


@pytest.mark.parametrize("kind", KINDS)
def test_optimizers(benchmark: Any, tmp_path: Path, kind: str) -> None:
    trainers = {name: trainer_with(kind, name, tmp_path) for name in ON_OPTIMIZER}
    with freed_pages_kept():
        for trainer in trainers.values():  # gradients, and the optimiser's state
            step_of(trainer)()
        plain = {"": step_of(trainers["none"])}
        step = medians(turns(plain, {"": 1}, "cpu", ROUNDS))[""]
        engines = {name: trainer.engine for name, trainer in trainers.items()}
        alone = {name: engine.optimizer.step for name, engine in engines.items() if isinstance(engine, SingleEngine)}
        turns(alone, dict.fromkeys(alone, 1), "cpu", 2)
        seconds = medians(turns(alone, dict.fromkeys(alone, 2), "cpu", OPTIMIZER_ROUNDS))
    shares = {name: (value - seconds["none"]) / step for name, value in seconds.items()}
    record(benchmark, kind, seconds, shares, "share of a plain step")
    benchmark.extra_info["plain step"] = step


def trainer_with(kind: str, name: str, folder: Path) -> Trainer:
    if kind == "texts":
        return text_setup.trainer_of(TEXTS, folder / name, regularizer=name)
    return trainer_of(POINT, Ours(finetune={"regularizer": name}), folder / name)


def flops(kind: str, regularizer: str) -> float:
    config = Config.model_validate({"finetune": {"regularizer": regularizer}})
    if kind == "texts":
        task = TextTask("finetune", config, TEXTS.shape, text_setup.CLASSES)
        return text_flops(task, TEXTS.batch().lengths.tolist(), []).step
    return ImageTask("finetune", config, shape_of(POINT.model), CLASSES).flops().step


def step_of(trainer: Trainer) -> Any:
    def step() -> None:
        trainer.step()

    return step


def record(benchmark: Any, kind: str, seconds: dict[str, float], against: dict[str, float], what: str) -> None:
    point = str(POINT if kind == "images" else TEXTS)
    versions = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    benchmark.extra_info.update(point=point, seconds=seconds, **versions, **{what: against})
    benchmark.pedantic(lambda: None, rounds=1)  # the samples are in extra_info


def medians(samples: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(seconds) for name, seconds in samples.items()}
