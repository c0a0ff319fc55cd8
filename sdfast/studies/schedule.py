"""Train the stages of a study, each after those it needs: here one by one, or several at a time in workers."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdfast.engine.stopping import stop_on_signal
from sdfast.errors import Interrupted
from sdfast.locks import check_held
from sdfast.rundir import Result
from sdfast.studies.perform import attempt
from sdfast.studies.plan import Node
from sdfast.studies.progress import Progress
from sdfast.studies.store import Shared

_LOOK_SECONDS = 0.5  # between looks at a signal
_PATIENCE_SECONDS = 120.0  # for workers that save their state


def train(nodes: dict[str, Node], out: Path, jobs: int, device: str, shared: Shared) -> None:
    """Give every node its result, or the reason why it has none.

    Args:
        nodes: by key, each after those it needs.
        out: the study's directory, for the workers' logs.
        jobs: stages at a time.
        device: where they are trained: `cpu` or `cuda`.
        shared: what is open in this process.

    Raises:
        Interrupted: a signal came; what was being trained is saved.
    """
    todo = [node for node in nodes.values() if node.result is None]
    if not todo:
        return
    progress = Progress(todo, jobs, bar=jobs > 1)
    try:
        if jobs == 1:
            for node in todo:
                if not _failed_before(node, nodes):
                    found, failure = attempt(node.task, shared)
                    node.result, node.failure = found, None if found else failure
                progress.finished(node)
        else:
            _Crew(nodes, todo, out, jobs, device, progress).work()
    finally:
        progress.close()


def _failed_before(node: Node, nodes: dict[str, Node]) -> bool:
    """Whether a stage that it needs failed; it has then failed too."""
    for key in node.needs:
        if nodes[key].failure is not None:
            node.failure = f"{nodes[key].task.stage}, which it needs, failed"
            return True
    return False


@dataclass
class _Worker:
    """A process and what it is doing."""

    number: int
    process: subprocess.Popen[str]
    node: Node | None = None


@dataclass
class _Crew:
    """Workers that take stages as they become ready."""

    nodes: dict[str, Node]
    todo: list[Node]
    out: Path
    jobs: int
    device: str
    progress: Progress
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    vacant: list[int] = field(default_factory=list)  # numbers of workers that are not there, hired when needed
    idle: list[_Worker] = field(default_factory=list)
    busy: list[_Worker] = field(default_factory=list)

    def work(self) -> None:
        """Hand out the stages, those first that most others wait for, until none is left or a signal comes."""
        waiting = sorted(self.todo, key=lambda node: -self._dependants(node))  # stable: else in the order declared
        with stop_on_signal() as stop:
            try:
                self.vacant = list(range(self.jobs))
                while waiting or self.busy:
                    check_held(self.out)
                    waiting = self._hand_out(waiting)
                    for key, _ in self.selector.select(_LOOK_SECONDS) if self.busy else ():
                        self._answer(key.data)
                    if stop.signal_number is not None:
                        self._stop()
                        done = self.progress.done
                        raise Interrupted(
                            f"stopped with {done} of {self.progress.total} stages done; the state of the others is"
                            " saved, and the same command continues from here.",
                            stop.signal_number,
                        )
            finally:
                self._dismiss()

    def _dependants(self, node: Node) -> int:
        return sum(node.key in other.needs for other in self.todo)

    def _hand_out(self, waiting: list[Node]) -> list[Node]:
        """Give ready stages to idle workers; returns what still waits."""
        left = []
        for node in waiting:
            if _failed_before(node, self.nodes):
                self.progress.finished(node)
            elif (self.idle or self.vacant) and all(self.nodes[key].result is not None for key in node.needs):
                worker = self._free_worker()
                worker.node = node
                self.busy.append(worker)
                task = node.task
                given = {**vars(task), "config": task.config.model_dump(mode="json"), "out": str(task.out)}
                assert worker.process.stdin is not None
                with contextlib.suppress(BrokenPipeError):  # it ended; its answer says so
                    worker.process.stdin.write(json.dumps(given) + "\n")
                    worker.process.stdin.flush()
            else:
                left.append(node)
        return left

    def _free_worker(self) -> _Worker:
        """An idle one that is still there, else a new one."""
        while self.idle:
            worker = self.idle.pop()
            if worker.process.poll() is None:
                return worker
            self._part_with(worker)
            self.vacant.append(worker.number)
        return self._hire(self.vacant.pop(0))

    def _answer(self, worker: _Worker) -> None:
        """Take what a worker says about its stage, or that it is gone."""
        assert worker.process.stdout is not None
        line = worker.process.stdout.readline()
        (self.busy if worker in self.busy else self.idle).remove(worker)
        node, worker.node = worker.node, None
        if not line or "interrupted" in (answer := json.loads(line)):
            code = self._part_with(worker)
            self.vacant.append(worker.number)
            if node is None:
                return
            node.failure = f"its worker ended with {_named(code)}; see {self._log(worker.number)}"
        else:
            assert node is not None
            node.result = _result(answer["result"])
            node.failure = None if node.result else answer["failure"]
            self.idle.append(worker)
        self.progress.finished(node)

    def _log(self, number: int) -> Path:
        return self.out / "logs" / f"worker-{number}.txt"

    def _hire(self, number: int) -> _Worker:
        environment = dict(os.environ)
        threads = 0
        if self.device == "cuda":
            environment["CUDA_VISIBLE_DEVICES"] = device_of(number)
        else:
            threads = max(1, len(os.sched_getaffinity(0)) // self.jobs)
            environment["OMP_NUM_THREADS"] = str(threads)
        self._log(number).parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "sdfast.studies.worker", str(threads), str(os.getpid())]
        with open(self._log(number), "a", encoding="utf-8") as said:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C reaches it through this process alone
            )
        worker = _Worker(number, process)
        assert process.stdout is not None
        self.selector.register(process.stdout, selectors.EVENT_READ, worker)
        return worker

    def _stop(self) -> None:
        """Ask all that work to save and end, and wait for them."""
        for worker in self.busy:
            worker.process.send_signal(signal.SIGTERM)
        for worker in self.busy:
            self._part_with(worker)
        self.busy = []

    def _dismiss(self) -> None:
        """End all workers."""
        for worker in [*self.idle, *self.busy]:
            if worker.node is not None:
                worker.process.send_signal(signal.SIGTERM)
            self._part_with(worker)
        self.selector.close()

    def _part_with(self, worker: _Worker) -> int:
        process = worker.process
        assert process.stdin is not None and process.stdout is not None
        self.selector.unregister(process.stdout)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            return process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            process.stdout.close()


def device_of(number: int) -> str:
    """The CUDA device of a worker, in turn of those that this process may use."""
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()] or [str(index) for index in range(count)]
    return names[number % count]


def _named(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _result(values: dict[str, Any] | None) -> Result | None:
    return None if values is None else Result(**{**values, "model": Path(values["model"])})
