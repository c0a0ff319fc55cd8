"""A training step beside other work: images a second with some busy processes on the machine's processors.

    pytest benchmarks/bench_neighbours.py --benchmark-only --benchmark-json=F; python benchmarks/neighbours_table.py F

Every arm has a process of its own, as how its threads wait is decided when torch is loaded. A neighbour is a process of
one thread that is always busy. The arms take turns, one computing while the others sleep; a sample is a second and a
half of steps, after a second of them that is not counted. `pretrain`, float32, freed pages kept; the same processes go
on with every number of neighbours.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from step_setup import Model, Ours, Point, naive_arm, sdfast_arm

from sdfast.engine.machine import freed_pages_kept
from sdfast.engine.waiting import waiting_adapts

SMALL = Model((96, 6, 3), (64, 2, 2), 32, 4)  # sizes of the bundled model
POINTS = {"32 px": (SMALL, 64), "ViT-Ti/16": (Model((192, 12, 3), (192, 4, 3)), 16)}
NEIGHBOURS = (0, 1, 3)
ROUNDS, IGNORED_SECONDS, COUNTED_SECONDS = 5, 1.0, 1.5
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
AS_LOADED = {"GOMP_SPINCOUNT": "300000"}  # libgomp's own number; said, it switches off what sdfast does
ARMS: dict[str, tuple[str, dict[str, str]]] = {
    "naive": ("naive", {}),
    "sdfast": ("ours", {}),
    "sdfast, libgomp's waiting": ("ours", AS_LOADED),
    "sdfast, OMP_WAIT_POLICY=PASSIVE": ("ours", {"OMP_WAIT_POLICY": "PASSIVE"}),
    "sdfast, one thread": ("ours", {"OMP_NUM_THREADS": "1"}),
}


@contextlib.contextmanager
def started(*command: str, environment: dict[str, str] | None = None, **how: Any) -> Iterator[subprocess.Popen[str]]:
    """A Python process, which ends with the block."""
    kept = {name: value for name, value in os.environ.items() if name not in WAITING}
    env = {**kept, **(environment or {})}
    with subprocess.Popen([sys.executable, *command], env=env, text=True, **how) as process:
        try:
            yield process
        finally:
            process.kill()


def answer(process: subprocess.Popen[str]) -> float:
    """The number that a worker sends; libraries write other lines."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("answer "):
            return float(line.split()[1])
    raise RuntimeError(f"a worker ended with exit code {process.wait()}")


def sample(process: subprocess.Popen[str]) -> float:
    """Seconds of a step."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return answer(process)


@pytest.mark.parametrize("point", POINTS)
def test_neighbours(benchmark: Any, point: str) -> None:
    """Samples of every arm, for each number of neighbours."""
    samples: dict[str, dict[str, list[float]]] = {}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, (arm, environment) in ARMS.items():
            command = (__file__, arm, point)
            workers[name] = stack.enter_context(started(*command, environment=environment, **pipes))
            answer(workers[name])  # it is set up
        names = list(workers)
        for count in NEIGHBOURS:
            rows = samples[str(count)] = {name: [] for name in names}
            with contextlib.ExitStack() as busy:
                for _ in range(count):
                    busy.enter_context(started("-c", "while True: pass"))
                for turn in range(ROUNDS):
                    for number in range(len(names)):
                        name = names[(number + turn) % len(names)]
                        rows[name].append(sample(workers[name]))
    benchmark.group = f"pretrain {point} float32 beside others"
    where = {"processors": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads(), "torch": torch.__version__}
    benchmark.extra_info.update(point=point, batch=POINTS[point][1], samples=samples, **where)
    benchmark.pedantic(lambda: None, rounds=1)  # the samples are in extra_info


def work(arm: str, point: str) -> None:
    """A worker: says when it is set up, and answers every line with the seconds of a step."""
    model, batch = POINTS[point]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder, freed_pages_kept():
        patch.setitem(sys.modules["step_setup"].MODELS, point, model)
        what = Point("pretrain", point, batch)
        step = (naive_arm(what) if arm == "naive" else sdfast_arm(what, Path(folder), Ours())).build()
        step()
        with contextlib.nullcontext() if arm == "naive" else waiting_adapts():
            print("answer 0", flush=True)
            for _ in sys.stdin:
                for seconds in (IGNORED_SECONDS, COUNTED_SECONDS):
                    steps, start = 0, time.perf_counter()
                    while time.perf_counter() - start < seconds:
                        step()
                        steps += 1
                    taken = (time.perf_counter() - start) / steps
                print(f"answer {taken}", flush=True)


if __name__ == "__main__":
    work(*sys.argv[1:])
