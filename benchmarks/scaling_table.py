"""Tables of a run of bench_scaling.py: `python benchmarks/scaling_table.py FILE.json`."""

from __future__ import annotations

import sys
from typing import Any

from losses_table import load


def markdown(entries: list[dict[str, Any]]) -> str:
    """A table an axis: a step's time and rates by its FLOPs, and its memory."""
    lines = []
    for axis in dict.fromkeys(entry["axis"] for entry in entries):
        header = [axis, "GFLOP a step", "ms", "img/s", "TFLOP/s", "of the fastest round", "product TFLOP/s"]
        header += ["allocated MB", "predicted MB"]
        lines += [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        for entry in entries:
            if entry["axis"] == axis:
                cells = [str(entry["point"][axis]), f"{entry['gflop']:.2f}", f"{entry['ms']:.1f}"]
                cells += [f"{entry['img_per_s']:.0f}"]
                cells += [f"{entry[key]:.3f}" for key in ("tflops", "tflops_fastest", "product_tflops")]
                cells += [f"{entry[key]:.1f}" for key in ("memory_mb", "memory_predicted_mb")]
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    first = entries[0]
    return "\n".join(
        [*lines, f"{first['machine']}, {first['threads']} threads, torch {first['torch']}, commit {first['commit']}."]
    )


if __name__ == "__main__":
    print(markdown(load(sys.argv[1])))
