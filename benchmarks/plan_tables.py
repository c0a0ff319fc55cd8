"""Prints the tables of docs/plan.md: python benchmarks/plan_tables.py.

H100 80 GB, 989 TFLOP/s of dense bf16 of which a step reaches 0.4, 450 GB/s between the 8 devices of a node, 50 GB/s a
device between nodes: assumptions, not measurements.
"""

from __future__ import annotations

from dataclasses import replace

from sdfast.config import Config
from sdfast.costs.plan import Machine, bank_bytes, make_plan
from sdfast.costs.task import Stage
from sdfast.costs.workload import workload
from sdfast.costs.zero_memory import Setup
from sdfast.modalities.named import NAMED, PUBLISHED_DROPOUTS, task_of

H100 = Machine(80_000_000_000, 989e12, 0.4, 450e9)
DEVICES = (1, 8, 64, 1024)
A_DEVICE = {"image": 64, "sequence": 16}  # examples
EXAMPLES = 10_000
STAGES: tuple[Stage, ...] = ("pretrain", "distill")


def table(devices: int) -> list[str]:
    """Markdown lines; of each cell the four ZeRO stages."""
    machine = H100 if devices <= 8 else replace(H100, link=50e9)
    lines = [
        "| model | stage | batch | GB a device | largest batch a device | GB sent | step, ms |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    config = Config()
    for name, shape in NAMED.items():
        for stage in STAGES:
            work = workload(task_of(stage, config, shape, dropouts=PUBLISHED_DROPOUTS))
            batch = devices * A_DEVICE["sequence" if work.tokens else "image"]
            held = bank_bytes(work, config, EXAMPLES), EXAMPLES * work.example
            plans = [
                make_plan(work, Setup(devices, zero, precision="bf16"), machine, batch, *held)
                for zero in ((0, 1, 2, 3) if devices > 1 else (0,))
            ]
            cells = [
                " / ".join(f"{plan.memory.total / 1e9:.1f}" for plan in plans),
                " / ".join(str(plan.largest) for plan in plans),
                " / ".join(f"{plan.sent / 1e9:.2g}" for plan in plans),
                " / ".join(f"{1000 * (plan.seconds or 0):.0f}" for plan in plans),
            ]
            lines.append(f"| {name} | {stage} | {batch} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    for devices in DEVICES:
        print(f"### {devices} device{'s' * (devices > 1)}\n")
        print("\n".join(table(devices)) + "\n")


if __name__ == "__main__":
    main()
