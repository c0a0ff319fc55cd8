"""One stage of a study, trained in this process; as a program, a process that trains the stages it is sent."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
from multiprocessing.connection import Connection

import torch

from sdfast.durable import reason
from sdfast.errors import Interrupted, SdfastError
from sdfast.log import log
from sdfast.rundir import Result
from sdfast.stages.bring import Maker
from sdfast.stages.graph import distillation, finetuning, head, pretraining
from sdfast.studies.plan import Task
from sdfast.studies.store import Shared, Store

_SET_PARENT_DEATH_SIGNAL = 1


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
        if torch.cuda.is_initialized():  # give back what the stage held; code is compiled anew, as in a new process
            if "torch._dynamo" in sys.modules:
                torch._dynamo.reset()
            gc.collect()
            torch.cuda.empty_cache()


def attempt(task: Task, shared: Shared) -> tuple[Result | None, str | None]:
    """The result, or one sentence that says why there is none.

    Raises:
        Interrupted: a signal came; its state is saved.
    """
    try:
        return perform(task, shared), None
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


def main(pipe: int, threads: int, parent: int) -> int:
    """Take tasks from a pipe, and answer each as `attempt` does, until the pipe is closed or a signal comes.

    Args:
        pipe: descriptor of its end here.
        threads: of a CPU, where the configuration does not say; 0 for torch's number.
        parent: the process that asks; this one stops as at a signal when that is gone.
    """
    os.set_inheritable(pipe, False)  # else what it starts and leaves behind would hide that it ended
    if sys.platform == "linux":  # elsewhere it ends at its next word with the one that is gone
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:
        return 1
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    if threads:
        torch.set_num_threads(threads)
    shared, tasks = Shared(), Connection(pipe)
    try:
        while True:
            tasks.send(attempt(tasks.recv(), shared))
    except (EOFError, ConnectionError):  # there is nothing more to do
        return 0
    except Interrupted as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
