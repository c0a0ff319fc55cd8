"""Tables of a run: `pytest benchmarks/bench_scaling.py --benchmark-only --benchmark-json=F`, then this with F."""

from __future__ import annotations

import json
import sys


def tables(path: str) -> str:
    """For each axis: what a step costs, how fast it runs, and memory predicted against counted, as Markdown."""
    with open(path, encoding="utf-8") as file:
        entries = json.load(file)["benchmarks"]
    lines: list[str] = []
    for axis, unit in (("batch", "batch"), ("image size", "side"), ("depth", "depth")):
        chosen = [entry for entry in entries if entry["extra_info"]["axis"] == axis]
        if not chosen:
            continue
        lines += [f"| {axis} | GFLOP/step | ms | img/s | TFLOP/s | MB predicted | allocated | ratio | process grew |"]
        lines += ["|---" * 9 + "|"]
        for entry in chosen:
            info, seconds = entry["extra_info"], entry["stats"]["median"]
            predicted, allocated, grown = (info[f"bytes_{kind}"] for kind in ("predicted", "allocated", "grown"))
            cells = [info[unit], f"{info['gflop']:.2f}", f"{1000 * seconds:.1f}", f"{info['batch'] / seconds:.1f}"]
            cells += [f"{info['tflops']:.3f}", f"{predicted / 1e6:.1f}", f"{allocated / 1e6:.1f}"]
            cells += [f"{predicted / allocated:.3f}", "?" if grown is None else f"{grown / 1e6:.0f}"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables(sys.argv[1]))
