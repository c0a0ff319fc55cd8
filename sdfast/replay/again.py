"""A stage as it was before the step that failed: rebuilt in a directory of its own, and trained up to it."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from sdfast.config import Config, ZeroConfig
from sdfast.context import Context
from sdfast.engine.loop import Trainer
from sdfast.engine.machine import fp32_matmul
from sdfast.log import log, progress_lines
from sdfast.ranks import Ranks
from sdfast.replay.watch import first_not_finite

_HISTORY = 20  # steps


@dataclass
class Way:
    """How a trainer came to the step before the one that failed.

    Attributes:
        trainer: there.
        begun: the step it began at: of a checkpoint, or 0.
        history: of the last steps, each a dictionary of `step`, `loss`, `gradient_norm` and `largest_weight`.
        losses: of all steps on the way, by step.
        broke: the step (counted from 1) whose loss, or the weights that it left, were not finite; None without such.
    """

    trainer: Trainer
    begun: int
    history: list[dict[str, float]] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)
    broke: int | None = None


def plain_config(config: Config) -> Config:
    """A configuration for one process that is observed: nothing is compiled, captured or spread."""
    precision = "bf16" if config.engine.precision == "bf16-weights" else config.engine.precision
    engine = config.engine.model_copy(update={"compile": False, "cuda_graph": False, "precision": precision})
    return config.model_copy(update={"engine": engine, "zero": ZeroConfig(), "deepspeed": {}})


def alone(context: Context) -> Context:
    """A context for one process that is observed, and told of to nobody."""
    return replace(context, config=plain_config(context.config), ranks=Ranks(), followers=())


def beginnings(directory: Path, before: int) -> list[Path | None]:
    """The checkpoints of a stage of fewer steps than `before`, newest first, and None for its start."""
    found = sorted((directory / "checkpoints").glob("step-*"), reverse=True)
    return [*(path for path in found if int(path.name.removeprefix("step-")) < before), None]


@contextmanager
def trainer_from(build: Callable[[Path, bool], Trainer], checkpoint: Path | None) -> Iterator[Trainer]:
    """A trainer that goes on from a checkpoint, or from the start, in a temporary directory.

    Args:
        build: from a directory, and whether to look for a checkpoint there.
        checkpoint: it is read where it lies.
    """
    folder = Path(tempfile.mkdtemp(prefix="sdfast-replay-"))
    try:
        if checkpoint is not None:
            (folder / "checkpoints").mkdir()
            (folder / "checkpoints" / checkpoint.name).symlink_to(checkpoint.absolute())
        trainer = build(folder, checkpoint is not None)
        trainer.objective.module.train()
        with fp32_matmul(trainer.settings.precision, trainer.device):
            yield trainer
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def go_to(trainer: Trainer, last: int) -> Way:
    """Train up to so many steps, or up to the first that goes wrong."""
    begun, parameters = trainer.steps_done, list(trainer.engine.parameters.values())
    way = Way(trainer, begun)
    say = progress_lines("replay", "steps")
    if last > begun:
        log.info("replay: from step %d to %d", begun, last)
    while trainer.steps_done < last:
        loss = float(trainer.step()["loss"])
        gradients = [each.grad for each in parameters if each.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        largest = largest_of(parameters)
        now = {"step": trainer.steps_done, "loss": loss, "gradient_norm": norm, "largest_weight": largest}
        way.losses[trainer.steps_done] = loss
        way.history = [*way.history[1 - _HISTORY :], now]
        say(trainer.steps_done - begun, last - begun)
        if not math.isfinite(loss) or first_not_finite(trainer.objective.module) is not None:
            way.broke = trainer.steps_done
            break
    return way


def largest_of(parameters: Iterable[torch.Tensor]) -> float:
    """The largest absolute value in some tensors."""
    return float(torch.nn.utils.get_total_norm([each.detach() for each in parameters], norm_type=math.inf))


def compared(way: Way, metrics: Path) -> str | None:
    """Whether the losses on the way are those that the run recorded, in words; None where it recorded none of them."""
    told = {}
    for line in metrics.read_text("utf-8", "replace").splitlines() if metrics.is_file() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            told[record["step"]] = record["loss"]
    both = [step for step in way.losses if step in told]
    if not both:
        return None
    other = next((step for step in both if told[step] != way.losses[step]), None)
    if other is None:
        return f"losses on the way, to the last bit those of metrics.jsonl: {len(both)}"
    return (
        f"the loss of step {other} is {way.losses[other]!r}, and was {told[other]!r}: the steps are not quite the same"
    )
