"""A stage's model as a Hugging Face folder of its own: finished, or as far as it has come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdfast.context import Context
from sdfast.durable import copy_folder, recover_directory, staged_directory
from sdfast.errors import UserError, nearest
from sdfast.occupant import Occupant
from sdfast.rundir import RESULT, check_model
from sdfast.stages.build import scaling_of
from sdfast.store import checkpoint


def export_stage(out: Path, context: Callable[[], Context], name: str, to: Path) -> int:
    """Write the model of a stage; the run may go on meanwhile.

    A checkpoint is the same whatever number of processes and ZeRO stage wrote it. Its tensors are
    mapped from the disk, so that no second copy is made in the memory.

    Args:
        out: the run directory; nothing is trained.
        context: opens the run's model (its weights are not needed) and its pack as it lies there; called for a stage
            that has not ended.
        name: folder of the stage there, such as `pretrain`, `distill`, `distill/round-1`, `finetune`.
        to: folder to make.

    Returns:
        The optimiser steps that the model has seen.

    Raises:
        UserError: the stage has neither a model nor a checkpoint, or one that is damaged, or `to` is there already.
        RunError: a file of the model cannot be copied.
    """
    directory = out / name
    if to.exists():
        raise UserError(f"--to {to} is there already; choose another folder.")
    recover_directory(directory / "model")
    ended = (directory / RESULT).exists()
    if ended and (directory / "model").is_dir():
        with staged_directory(to) as staging:
            copy_folder(directory / "model", staging, to)
            return check_model(directory, staging).steps
    path = checkpoint.newest(directory / "checkpoints")
    if path is None and ended:
        return check_model(directory).steps
    if path is None:
        there = Occupant.of(out)
        names = [] if there is None else list(there.stages)
        help_ = nearest(name, names, "run `sdfast train` with this --out first")
        raise UserError(f"{directory} holds neither a model nor a checkpoint; {help_}")
    found, run = checkpoint.Checkpoint.open(path), context()
    classes: list[str] | None = (run.pack.class_names or []) if name.startswith("finetune") else None
    prefix = "module/"
    state = {key.removeprefix(prefix): found.read(key) for key in found.names if key.startswith(prefix)}
    module: Any = run.modality.filled(state, run.config, run.model.shape, None if classes is None else len(classes))
    with staged_directory(to) as staging:
        if classes is None:
            kind: Any = name.partition("/")[0]
            run.modality.write(run, module, staging, kind, found.step)
        else:
            if (scaling := scaling_of(run)) is not None:
                scaling.fold(module.classifier)
            run.modality.write_classifier(run, module, staging, classes, found.step)
    return found.step
