"""Train the stages of a study, each after those it needs: here one by one, or several at a time in workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from sdfast.engine.stopping import stop_on_signal
from sdfast.errors import Interrupted
from sdfast.locks import check_held
from sdfast.portable import processors
from sdfast.studies.plan import Node
from sdfast.studies.progress import Progress
from sdfast.studies.store import Shared
from sdfast.studies.worker import attempt

_LOOK_SECONDS = 0.5  # between looks at a signal
_PATIENCE_SECONDS = 120.0  # for workers that save their state


def train(
    nodes: Iterable[Node],
    out: Path,
    jobs: int,
    device: str,
    shared: Shared,
    tell: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """Give every node its result, or the reason why it has none.

    Args:
        nodes: what the study needs, each after those it needs.
        out: the study's directory, for the workers' logs.
        jobs: stages at a time.
        device: where they are trained: `cpu` or `cuda`.
        shared: what is open in this process.
        tell: after each stage, how many are done of how many.

    Raises:
        Interrupted: a signal came; what was being trained is saved.
    """
    todo = in_order([node for node in nodes if node.result is None])
    if not todo:
        return
    progress = Progress(todo, jobs, tell)
    with progress.shown():
        if jobs > 1:
            _Crew(todo, out, jobs, device, progress).work()
            return
        for node in todo:
            if not _failed_before(node):
                node.result, node.failure = attempt(node.task, shared)
            progress.finished(node)


def in_order(nodes: Sequence[Node]) -> list[Node]:
    """Fold by fold or chain by chain, and in each those first that most others wait for.

    So a study that is stopped has whole units of all arms, not one arm of all units. What a node needs is before it.
    """
    waits = Counter(need for node in nodes for need in node.needs)
    places = {unit: place for place, unit in enumerate(dict.fromkeys(node.unit for node in nodes))}
    return sorted(nodes, key=lambda node: (places[node.unit], -waits[node]))


def _failed_before(node: Node) -> bool:
    """Whether a stage that it needs failed; it has then failed too."""
    failed = next((need for need in node.needs if need.failure is not None), None)
    if failed is not None:
        node.failure = f"{failed.task.stage}, which it needs, failed"
    return failed is not None


@dataclass
class _Worker:
    """A process, the pipe to it, and what it is doing."""

    number: int
    process: subprocess.Popen[bytes]
    pipe: Connection[Any, Any]
    node: Node | None = None

    def end(self) -> int:
        """Wait for it, which has nothing more to do; returns its exit code."""
        self.pipe.close()
        try:
            return self.process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@dataclass
class _Crew:
    """Workers that take stages as they become ready."""

    todo: list[Node]
    out: Path
    jobs: int
    device: str
    progress: Progress
    vacant: list[int] = field(default_factory=list)  # numbers of workers that are not there, hired when needed
    idle: list[_Worker] = field(default_factory=list)
    busy: list[_Worker] = field(default_factory=list)

    def work(self) -> None:
        """Hand out the stages in their order, each when it can be trained, until none is left or a signal comes."""
        waiting = self.todo
        self.vacant = list(range(self.jobs))
        with stop_on_signal() as stop:
            try:
                while waiting or self.busy:
                    check_held(self.out)
                    waiting = self._hand_out(waiting)
                    answered = wait([worker.pipe for worker in self.busy], _LOOK_SECONDS) if self.busy else []
                    for worker in [each for each in self.busy if each.pipe in answered]:
                        self._answer(worker)
                    if stop.signal_number is not None:
                        done = self.progress.done
                        raise Interrupted(
                            f"stopped with {done} of {self.progress.total} stages done; the state of the others is"
                            " saved, and the same command continues from here.",
                            stop.signal_number,
                        )
            finally:
                for worker in self.busy:  # ask all that work to save and end
                    worker.process.send_signal(signal.SIGTERM)
                for worker in [*self.idle, *self.busy]:
                    worker.end()

    def _hand_out(self, waiting: list[Node]) -> list[Node]:
        """Give ready stages to idle workers; returns what still waits."""
        left = []
        for node in waiting:
            if _failed_before(node):
                self.progress.finished(node)
            elif (self.idle or self.vacant) and all(need.result is not None for need in node.needs):
                worker = self._free_worker()
                worker.node = node
                self.busy.append(worker)
                with contextlib.suppress(ConnectionError):  # it ended; its answer says so
                    worker.pipe.send(node.task)
            else:
                left.append(node)
        return left

    def _free_worker(self) -> _Worker:
        """An idle one that is still there, else a new one."""
        while self.idle:
            worker = self.idle.pop()
            if worker.process.poll() is None:
                return worker
            worker.end()
            self.vacant.append(worker.number)
        return self._hire(self.vacant.pop(0))

    def _answer(self, worker: _Worker) -> None:
        """Take what a worker says about its stage, or that it is gone."""
        node, worker.node = worker.node, None
        assert node is not None
        self.busy.remove(worker)
        try:
            node.result, node.failure = worker.pipe.recv()
            self.idle.append(worker)
        except (EOFError, OSError):  # it was gone before its answer, or in the midst of it
            code = worker.end()
            self.vacant.append(worker.number)
            ended = f"signal {-code}" if code < 0 else f"exit code {code}"
            node.failure = f"its worker ended with {ended}; see {self._log(worker.number)}"
        self.progress.finished(node)

    def _log(self, number: int) -> Path:
        return self.out / "logs" / f"worker-{number}.txt"

    def _hire(self, number: int) -> _Worker:
        if self.device == "cuda":
            threads, environment = 0, {"CUDA_VISIBLE_DEVICES": _cuda_device(number)}
        else:
            threads = max(1, processors() // self.jobs)
            environment = {"OMP_NUM_THREADS": str(threads)}
        self._log(number).parent.mkdir(parents=True, exist_ok=True)
        if sys.platform == "win32":
            raise AssertionError("`run` refuses it")
        ours, theirs = Pipe()
        command = [sys.executable, "-m", "sdfast.studies.worker", *map(str, (theirs.fileno(), threads, os.getpid()))]
        with theirs, open(self._log(number), "ab") as said:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**os.environ, **environment},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C reaches it through this process alone
            )
        return _Worker(number, process, ours)


def _cuda_device(number: int) -> str:
    """That of a worker, in turn of those that this process may use."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()] or [str(index) for index in range(count)]
    return names[number % count]
