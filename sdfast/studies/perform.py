"""One stage of a study, trained in this process."""

from __future__ import annotations

import gc
import sys

from sdfast.durable import reason
from sdfast.errors import Interrupted, SdfastError
from sdfast.log import log
from sdfast.rundir import Result
from sdfast.studies.plan import Task
from sdfast.studies.store import Shared, StudyRun


def perform(task: Task, shared: Shared) -> Result:
    """Bring a stage up to date.

    Raises:
        SdfastError: it cannot be trained.
        Interrupted: a signal came; its state is saved.
    """
    run = StudyRun(task.config, task.out, shared)
    try:
        if task.stage == "finetune":
            return run.finetune(task.start, task.seed)
        if task.stage == "head":
            head = run.head()
            assert head is not None
            return head
        return run.pretrain() if task.stage == "pretrain" else run.distill()
    finally:
        _forget(run)


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


def _forget(run: StudyRun) -> None:
    """Give back what a stage held on its device; compiled code is made anew, as in a process of its own."""
    device = run.__dict__.get("device")
    if device is None or device.type != "cuda":
        return
    import torch

    run._readers.clear()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
