"""One stage of a study, trained in this process."""

from __future__ import annotations

import gc
import sys

import torch

from sdfast.durable import reason
from sdfast.errors import Interrupted, SdfastError
from sdfast.log import log
from sdfast.rundir import Result
from sdfast.stages.bring import Maker
from sdfast.stages.graph import distillation, finetuning, head, pretraining
from sdfast.studies.plan import Task
from sdfast.studies.store import Shared, Store


def perform(task: Task, shared: Shared) -> Result:
    """Bring a stage up to date.

    Raises:
        SdfastError: it cannot be trained.
        Interrupted: a signal came; its state is saved.
    """
    store = Store(task.out, shared)
    try:
        with store.opened(task.config) as context:
            if task.stage == "finetune":
                stage = finetuning(context, task.start, task.seed)
            else:
                found = {"head": head, "pretrain": pretraining, "distill": distillation}[task.stage](context)
                assert found is not None
                stage = found
            return Maker(context, store).make(stage)
    finally:
        _forget()


def attempt(task: Task, shared: Shared) -> tuple[Result | None, str]:
    """The result, or None and one sentence that says why there is none.

    Raises:
        Interrupted: a signal came; its state is saved.
    """
    try:
        return perform(task, shared), ""
    except Interrupted:
        raise
    except SdfastError as error:
        return None, str(error)
    except Exception as error:  # of one run; the others go on
        log.info("%s", task.stage, exc_info=True)
        if isinstance(error, OSError):
            return None, f"{error.filename or task.stage}: {reason(error)}."
        lines = str(error).strip().splitlines()
        return None, f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _forget() -> None:
    """Give back what a stage held on a GPU; compiled code is made anew, as in a process of its own."""
    if not torch.cuda.is_initialized():
        return
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
