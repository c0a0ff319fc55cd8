"""Runs tasks in processes of their own: what fails, crashes, hangs or poisons its process ends there.

A failed capture of a CUDA graph can leave a process unable to allocate, and the private pools of several graphs add up:
so every arm of a step has a process. Processes are forked from one that has imported everything and never touched the
GPU; where that does not work they begin anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_parts import rows as kept
from gpu_parts.plan import Task
from gpu_parts.rows import Row

LEAST = 3.0  # seconds; a task is not begun with less
EARLY = 1.0  # seconds before its end at which a process says where it is
SAID = 20_000  # characters of what a process said that are kept where it did not end well
_PR_SET_PDEATHSIG = 1


@dataclass
class Suite:
    """A run of tasks.

    Attributes:
        device: cuda or cpu.
        quick: tiny sizes, nothing compiled.
        rows: the file they go to.
        began: by `time.monotonic`.
        deadline: by the same clock; then everything is stopped.
        processes: how they begin.
        threads: of a process by itself.
    """

    device: str
    quick: bool
    rows: Path
    began: float
    deadline: float
    processes: Any
    threads: int = 1

    def keep(self, row: Row) -> None:
        kept.append(self.rows, {**row, "at": time.monotonic() - self.began})


def warm_first(tasks: Sequence[Task], device: str) -> None:
    """Make the first model in this process, to see with `process_kind` that it can be forked afterwards."""
    for task in tasks:
        if task.part == "steps":
            warm(task, device)
            return


def run(suite: Suite, tasks: Sequence[Task], after: Callable[[], None] = lambda: None) -> None:
    """Task after task, those that may side by side; `after` is called after each of these groups."""
    for group in groups(tasks):
        seconds = min(max(task.most for task in group), suite.deadline - time.monotonic())
        if seconds < LEAST:
            for task in group:
                suite.keep({"part": task.part, **task.what, "error": "not reached: the suite's time was spent"})
        else:
            run_group(suite, group, seconds)
        after()


def groups(tasks: Sequence[Task]) -> Iterator[list[Task]]:
    """Tasks in a row that run at the same time."""
    group: list[Task] = []
    for task in tasks:
        if group and not (task.beside and task.beside == group[-1].beside):
            yield group
            group = []
        group.append(task)
    if group:
        yield group


def run_group(suite: Suite, tasks: list[Task], seconds: float) -> None:
    """Each in a process, all stopped when the time is up; who asks for a new process has it for the rest."""
    from gpu_parts.context import AGAIN

    end = time.monotonic() + seconds
    for task in tasks if suite.processes.get_start_method() == "fork" else ():
        warm(task, suite.device)
    left = tasks
    while left and end - time.monotonic() >= LEAST:
        with contextlib.ExitStack() as stack:
            running = [Running(suite, task, end - time.monotonic(), len(left), stack) for task in left]
            left = [each.task for each in running if each.ended(end) == AGAIN]


def warm(task: Task, device: str) -> None:
    """Make what the task's process, and later ones, find ready in a forked one; what fails here fails there again."""
    module = importlib.import_module(f"gpu_parts.{task.part}")
    try:
        getattr(module, "warm", lambda what, device: None)(task.what, device)
    except Exception:
        traceback.print_exc()


class Running:
    """A task's process, and what becomes of it."""

    def __init__(self, suite: Suite, task: Task, seconds: float, beside: int, stack: contextlib.ExitStack) -> None:
        from gpu_parts.context import Context

        self.suite, self.task, self.seconds = suite, task, seconds
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.context = Context(
            suite.device,
            suite.quick,
            task.part,
            task.what,
            seconds - 2 * EARLY,
            self.folder,
            suite.rows,
            suite.began,
            max(1, suite.threads // beside),
            frozenset(row["item"] for row in self.rows() if "item" in row),
        )
        self.before = len(self.rows())
        self.process = suite.processes.Process(target=child, args=(self.context,))
        self.started = time.monotonic()
        self.process.start()

    def rows(self) -> list[Row]:
        """What the task has written so far."""
        wanted = {"part": self.task.part, **self.task.what}.items()
        return [row for row in kept.read(self.suite.rows) if wanted <= row.items()]

    def ended(self, end: float) -> int | None:
        """Wait for it, and stop it at the end of its time; records how it ended, and gives its exit code."""
        self.process.join(max(0.0, end - time.monotonic()))
        stopped = self.process.is_alive()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)  # what it started, too: the compiler keeps some
        if stopped:
            self.process.kill()  # where it has no group of its own yet
        self.process.join()
        code, took = self.process.exitcode, time.monotonic() - self.started
        from gpu_parts.context import AGAIN

        if stopped:
            self.record(f"stopped after {took:.0f} s", took)
        elif code not in (0, AGAIN) and not any("error" in row for row in self.rows()[self.before :]):
            how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with exit code {code}"
            self.record(f"its process ended {how}", took)
        self.suite.keep({"part": "suite", "task": str(self.task), "seconds": took, "exit_code": code})
        return code

    def record(self, error: str, took: float) -> None:
        """A row that says what happened, with what the process said last."""
        path = self.folder / "said"
        said = path.read_text("utf-8", errors="replace")[-SAID:] if path.exists() else ""
        words = {"error": error, "traceback": said, "seconds": took}
        self.suite.keep({"part": self.task.part, **self.task.what, **words})


def child(context: Any) -> None:
    """Run a part, keeping each row that it yields."""
    os.setsid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a suite that is killed leaves nothing on the GPU
    import torch

    from gpu_parts.context import failure

    said = open(context.folder / "said", "w", buffering=1, encoding="utf-8")  # noqa: SIM115 (until the process ends)
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    sys.stdout = sys.stderr = said
    faulthandler.enable(said)
    faulthandler.dump_traceback_later(max(0.1, context.seconds + EARLY), file=said)
    gc.freeze()  # what was imported is not looked through again at every collection
    context.started = last = time.monotonic()
    torch.set_num_threads(context.threads)
    if context.quick:
        torch.compiler.set_stance("force_eager")
    try:
        for row in importlib.import_module(f"gpu_parts.{context.part}").run(context):
            context.write({"seconds": time.monotonic() - last, **row})
            last = time.monotonic()
    except Exception as error:
        context.write({"seconds": time.monotonic() - last, **failure(error)})
        sys.exit(1)


def import_parts(names: Sequence[str]) -> int:
    """Everything that the parts need, once, before their processes are forked; the threads that torch would use."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # before anything is computed: the threads of a pool are missing in a forked process
    # accelerate imports it wherever a model is saved, which takes seconds and may touch the GPU. ZeRO's part has it.
    sys.modules.setdefault("deepspeed", None)  # type: ignore[arg-type]
    compiling = ("torch._inductor.compile_fx",) if {"compile", "steps", "losses", "text"}.intersection(names) else ()
    for name in ("torch._dynamo", *compiling, *(f"gpu_parts.{part}" for part in names)):
        importlib.import_module(name)
    if "transformers" in sys.modules:
        sys.modules["transformers"].utils.logging.disable_progress_bar()
    return threads


def process_kind(device: str) -> Any:
    """How the processes begin: forked, so that everything is imported once, or new where that fails.

    This process must not touch the GPU to be forked; what it imported may have done so. None without a GPU.
    """
    for kind in ("fork", "spawn"):
        processes: Any = multiprocessing.get_context(kind)
        process = processes.Process(target=touch, args=(device,))
        process.start()
        process.join()
        if process.exitcode == 0:
            return processes
    return None


def touch(device: str) -> None:
    """Exit code 0 when a tensor can be made on the device."""
    try:
        import torch

        torch.zeros(1, device=device)
    except Exception:  # whatever torch says: there is none to be had
        os._exit(1)
    os._exit(0)
