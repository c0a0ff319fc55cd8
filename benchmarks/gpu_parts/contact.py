"""Tiny steps of every stage, in which nothing may wait for the GPU, and the capture of one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import text_setup
import torch
from step_clock import matmul_precision, synchronise
from step_setup import Ours, Point, trainer_of

from gpu_parts import text
from gpu_parts.context import Context
from gpu_parts.evidence import Memory, listening
from sdfast.engine.loop import Trainer

FREE = 2  # steps that may wait: kernels are loaded and attention is chosen in them
STEPS = 8  # the fourth is captured, the later ones are replays


def run(context: Context) -> Iterator[dict[str, Any]]:
    """A row that says how far it came, with what was said on the way."""
    stage, settings = context.what["stage"], {"compile": False}
    memory = Memory(context.device)
    with listening() as heard:
        if stage.startswith("text "):
            point = text.tiny(stage.removeprefix("text "))
            trainer = text_setup.trainer_of(point, context.folder, context.device, settings)
        else:
            trainer = trainer_of(Point(stage, "tiny", 4, context.device, 32), Ours(settings), context.folder)
        row = {"losses": losses(trainer, context.device)}
        synchronise(context.device)
        graphed = getattr(trainer.engine, "graphed", None)
        yield {**row, "graphed": graphed, "steps": STEPS, **memory.row(), "said": heard.said}


def losses(trainer: Trainer, device: str) -> list[float]:
    """The loss of every step.

    Raises:
        RuntimeError: a step waited for the GPU, or a loss is not finite.
    """
    found = []
    with matmul_precision(device == "cuda"):
        for number in range(STEPS):
            with no_waiting(device) if number >= FREE else contextlib.nullcontext():
                loss = trainer.step()["loss"].detach().clone()
            found.append(loss)
    numbers = [float(loss) for loss in found]
    if not all(abs(number) < float("inf") for number in numbers):
        raise RuntimeError(f"the loss is not finite: {numbers}")
    return numbers


@contextlib.contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Inside, what makes the host wait for the GPU is an error."""
    if device != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
