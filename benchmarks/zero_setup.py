"""The set-up of benchmarks/bench_zero.py and of the GPU suite's part: engines by name, their clock, their launch."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from step_clock import calls_for, turns
from step_setup import Ours, Point, shape_of, trainer_of
from zero_held import count_before_steps

from sdfast.config import ZeroConfig
from sdfast.costs.resident import PeakGrowth
from sdfast.engine.loop import Trainer
from sdfast.engine.machine import fp32_matmul, resolve_precision
from sdfast.ranks import Ranks
from sdfast.teacher.targets import ResidentBank

HERE = Path(__file__).parent
SAMPLE = {"cpu": 0.0, "cuda": 0.08}  # seconds, at least
WARM = {"cpu": 1, "cuda": 2}  # steps before the first sample
GRAPHED_AFTER = 5  # steps, after which the plain loop's are CUDA graphs


@dataclass(frozen=True)
class Way:
    """An engine: what ZeRO spreads, where it keeps it, and other settings of the loop."""

    zero: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "cpu"] = "none"
    engine: dict[str, Any] = field(default_factory=dict)


PLAIN = "plain loop"
WAYS = {
    PLAIN: Way(),  # one process
    "plain loop, no CUDA graph": Way(engine={"cuda_graph": False}),
    "ZeRO 0": Way(),  # several processes
    "ZeRO 1": Way(1),
    "ZeRO 2": Way(2),
    "ZeRO 3": Way(3),
    "ZeRO 2, offload=cpu": Way(2, "cpu"),
    "ZeRO 3, offload=cpu": Way(3, "cpu"),
}


@dataclass
class Task:
    """What a launch measures.

    Attributes:
        point: the step; its batch is that of all processes together.
        sets: names of ways; those of a set take turns. On a CPU each set has new processes.
        threads: of a process.
        rounds: samples of each way.
    """

    point: Point
    sets: Sequence[Sequence[str]]
    threads: int
    rounds: int

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Task:
        values = json.loads(path.read_text("utf-8"))
        return cls(**{**values, "point": Point(**values["point"])})


def prepared(name: str, point: Point, ranks: Ranks, directory: Path) -> tuple[Trainer, Callable[[], None], list[Any]]:
    """A loop on an engine, nothing compiled, with drawn features in a bank in memory; its step; the steps' losses."""
    way = WAYS[name]
    features = torch.randn(point.rows, shape_of(point.model).encoder.width, generator=torch.Generator().manual_seed(1))
    bank = ResidentBank(features.to(point.device), None, torch.arange(point.rows)[None])
    ours = Ours({"compile": False, **way.engine})
    zero = ZeroConfig(stage=way.zero, offload=way.offload)
    trainer = trainer_of(point, ours, directory, teacher=bank, ranks=ranks, zero=zero)

    losses: list[Any] = []

    def step() -> None:
        with fp32_matmul(trainer.settings.precision, trainer.device):
            parts = trainer.step()
        losses.append(parts["loss"].clone())  # a CUDA graph writes the next into the same place

    return trainer, step, losses


def measure(names: Sequence[str], point: Point, ranks: Ranks, directory: Path, rounds: int) -> dict[str, Any]:
    """This process's row for each way: seconds of steps, the loss of the last, memory.

    A way by itself is measured for memory: the largest growth of the process (on a GPU of what is allocated there) from
    before the model's copy, until the engine was set up and until the end; on a CPU also what `zero_held` counts.
    """
    alone, cuda = len(names) == 1, point.device == "cuda"
    memory = grown(point.device)
    trainers, steps, losses, rows = {}, {}, {}, {}
    for name in names:
        trainers[name], steps[name], losses[name] = prepared(name, point, ranks, directory)
        rows[name] = {"setup_bytes": memory()} if alone else {}
        if alone and not cuda:
            rows[name]["held"] = count_before_steps(trainers[name])
        graphed = cuda and trainers[name].settings.cuda_graph and not WAYS[name].zero and ranks.world == 1
        for _ in range(GRAPHED_AFTER if graphed else WARM[point.device]):
            steps[name]()
    calls = dict.fromkeys(names, 1)
    if SAMPLE[point.device]:
        calls = {
            name: max(ranks.exchange(calls_for(steps[name], point.device, SAMPLE[point.device]))) for name in names
        }
    for name, seconds in turns(steps, calls, point.device, rounds).items():
        precision = resolve_precision(trainers[name].settings.precision, trainers[name].device)
        loss = sum(ranks.exchange(float(losses[name][-1])))
        rows[name] |= {"seconds": seconds, "loss": loss, "precision": precision}
        if alone:
            rows[name]["peak_bytes"] = memory()
    for trainer in trainers.values():
        trainer.engine.release()
    return rows


def grown(device: str) -> Callable[[], int | None]:
    """A meter: the largest growth of memory since now, in bytes."""
    if device == "cpu":
        return PeakGrowth().bytes
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return lambda: torch.cuda.max_memory_allocated() - before


def launched(task: Task, world: int, folder: Path, seconds: float) -> tuple[list[list[dict[str, Any]]], str | None]:
    """Run a task in so many processes under torchrun: each set's rows by rank, and what went wrong.

    A set that not every process finished is left out, with all after it.
    """
    task.write(folder / "task.json")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    with open(folder / "said", "w+b") as said:
        worker = [*command, str(HERE / "zero_worker.py"), str(folder)]
        process = subprocess.Popen(worker, env=environment, stdout=said, stderr=said)
        try:
            wrong = None if process.wait(seconds) == 0 else "a process failed"
        except subprocess.TimeoutExpired:
            wrong = f"stopped after {seconds:.0f} s"
        finally:
            if process.poll() is None:
                process.terminate()  # torchrun ends its processes
                process.wait(30)
        said.seek(0)
        if wrong == "a process failed":
            lines = [line for line in said.read().decode(errors="replace").splitlines() if "Error: " in line]
            wrong = f"{wrong}: {lines[0][-300:] if lines else 'it said nothing'}"
    results = []
    for number in range(len(task.sets)):
        files = [folder / f"{number}-{rank}.json" for rank in range(world)]
        if not all(file.exists() for file in files):
            break
        results.append([json.loads(file.read_text("utf-8")) for file in files])
    return results, wrong


def by_step(ranks: Sequence[dict[str, Any]], name: str) -> list[float]:
    """Seconds of a way's samples: of the slowest process each."""
    return [max(each) for each in zip(*(rows[name]["seconds"] for rows in ranks), strict=True)]
