"""What DeepSpeed's ZeRO costs and saves on a CPU: memory of a rank and step time on two, step time on one.

    pytest benchmarks/bench_zero.py --benchmark-only --benchmark-json=F; python benchmarks/zero_table.py F

A step of `distill` of ViT-S/16 from a bank in memory, float32, every shortcut, freed pages kept, as in training. On two
gloo ranks of one thread each, every engine has a fresh pair of processes, and all are gone through twice, so that
whatever else the machine does meets all alike. On one process of two threads the engines take turns with the plain
loop, which is the baseline there. All start from the same weights and see the same batches: their losses are equal.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
from step_setup import Point
from zero_setup import PLAIN, Task, by_step, launched

POINT = Point("distill", "ViT-S/16", 8, images=32)
SHARED = ("ZeRO 0", "ZeRO 1", "ZeRO 2", "ZeRO 3", "ZeRO 2, offload=cpu", "ZeRO 3, offload=cpu")
ALONE = (PLAIN, "ZeRO 1", "ZeRO 2", "ZeRO 3")
CYCLES, PAIR_ROUNDS, TURNS = 2, 3, 5
SECONDS = 400.0  # after which a launch is given up
APART = 1e-4  # of the losses after the same steps, float32


def described(task: Task, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the table needs; the losses are checked here.

    Args:
        task: that was measured.
        rows: by name of the engine, each with its `loss`.
    """
    losses = {name: row["loss"] for name, row in rows.items()}
    first = next(iter(losses.values()))
    assert all(abs(loss / first - 1) <= APART for loss in losses.values()), losses
    point, versions = task.point, {name: importlib.metadata.version(name) for name in ("torch", "deepspeed")}
    where = {"stage": point.stage, "model": point.model, "batch": point.batch, "threads": task.threads}
    return {**where, "rows": rows, "versions": versions, "allocator": "freed pages kept"}


def test_two_ranks(benchmark: Any, tmp_path: Path) -> None:
    """Memory of each rank and the step's time."""
    task = Task(POINT, [[name] for name in SHARED] * CYCLES, 1, PAIR_ROUNDS)
    results, wrong = launched(task, 2, tmp_path, SECONDS)
    assert wrong is None, wrong
    rows: dict[str, dict[str, Any]] = {}
    for (name,), ranks in zip(task.sets, results, strict=True):
        same = {key: ranks[0][name][key] for key in ("loss", "precision")}
        row = rows.setdefault(name, {**same, "seconds": [], "ranks": []})
        row["seconds"] += by_step(ranks, name)
        row["ranks"].append([{key: rank[name][key] for key in ("setup_bytes", "peak_bytes", "held")} for rank in ranks])
    benchmark.group = f"{POINT} float32 on two ranks"
    benchmark.extra_info.update(world=2, **described(task, rows))
    benchmark.pedantic(lambda: None, rounds=1)  # the samples are in extra_info


def test_one_device(benchmark: Any, tmp_path: Path) -> None:
    """The step's time beside the plain loop's, in turns in one process."""
    task = Task(POINT, [ALONE], 2, TURNS)
    results, wrong = launched(task, 1, tmp_path, SECONDS)
    assert wrong is None, wrong
    benchmark.group = f"{POINT} float32 in one process"
    benchmark.extra_info.update(world=1, **described(task, results[0][0]))
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.fixture(scope="module", autouse=True)
def deepspeed_is_there() -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed: pip install 'sdfast[deepspeed]'")
