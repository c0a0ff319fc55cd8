"""The ways to run a step that the suite knows, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from honest import Speed
from step_setup import MODELS, Arm, Ours, Point, honest_arm, naive_arm, sdfast_arm, trainer_of

from gpu_parts.evidence import compiled_modules
from sdfast.config import EngineConfig
from sdfast.models.attention import why_not
from sdfast.objectives.base import SHORTCUTS
from sdfast.products import float32_products

IMAGES = 2048  # in memory
OURS: dict[str, Ours] = {
    "sdfast": Ours(),
    "sdfast, no CUDA graph": Ours({"cuda_graph": False}),
    "sdfast not compiled": Ours({"compile": False}),
    "sdfast, varlen": Ours({"attention": "varlen"}),
    "sdfast, sdpa": Ours({"attention": "sdpa"}),
    "sdfast, separate views": Ours({"packed": False}),
    "sdfast, no shortcuts": Ours(dict.fromkeys(SHORTCUTS, False)),
    "sdfast live teacher": Ours(teacher="live"),
}


def theirs(name: str, point: Point) -> Arm:
    """A baseline's arm; in bfloat16 on a GPU where it is the honest one."""
    cuda = point.device == "cuda"
    if name.startswith("naive"):
        return naive_arm(point, tf32=name == "naive TF32")
    speeds = {
        "honest": Speed(cuda),
        "honest compiled": Speed(cuda, "layers"),
        "honest compiled whole": Speed(cuda, "whole", {"mode": "reduce-overhead"} if cuda else {}),
    }
    return honest_arm(point, speeds[name])


@dataclass
class Built:
    """An arm that can be called, and what of it is known only then."""

    step: Callable[[], Any]
    arm: Arm
    facts: Callable[[], dict[str, Any]]


def why_absent(name: str, point: Point) -> str | None:
    """Why an arm cannot run here: it names an attention that is not there."""
    backend = OURS[name].engine.get("attention") if name in OURS else None
    if backend is None:
        return None
    width, _, heads = MODELS[point.model].encoder
    dtype = torch.bfloat16 if point.device == "cuda" else torch.float32
    return why_not(backend, torch.device(point.device), dtype, width // heads)


def describe(name: str, point: Point, folder: Path) -> Arm:
    """Its arithmetic and precision; nothing is built."""
    return sdfast_arm(point, folder, OURS[name]) if name in OURS else theirs(name, point)


def build(name: str, point: Point, folder: Path) -> Built:
    """Make an arm."""
    arm = describe(name, point, folder)
    if not arm.ours:
        return Built(arm.build(), arm, lambda: {"graphed": None})
    ours = OURS[name]
    trainer = trainer_of(point, ours, folder)  # as the arm's own build does: the engine says if it is captured
    products = EngineConfig(**ours.engine).fp32_products

    def step() -> Any:
        with float32_products(products):
            parts = trainer._one_step()
        trainer.step += 1
        return parts

    def facts() -> dict[str, Any]:
        graphed = getattr(trainer.engine, "graphed", None)
        return {"graphed": graphed, "compiled_modules": compiled_modules(trainer.objective.module)}

    return Built(step, arm, facts)
