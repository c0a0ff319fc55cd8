"""Table of a run of bench_attention.py: `python benchmarks/attention_table.py FILE.json`."""

from __future__ import annotations

import sys
from typing import Any

from losses_table import load

NOISE = 1.03  # a point is lost when auto's median exceeds the best other's by more than this


def markdown(entries: list[dict[str, Any]]) -> str:
    """One line a point: medians and GFLOP/s of every backend, and how many times faster auto's is than the best other.

    Where that ratio and the one of the fastest rounds differ much, other work disturbed the medians.
    """
    names = list(entries[0]["rows"])
    header = ["point", *(f"{name} ms" for name in names), *(f"{name} GFLOP/s" for name in names)]
    header += ["auto", "x best other", "of the fastest rounds"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for entry in entries:
        rows, auto = entry["rows"], entry["auto"]
        ratios = {}
        for key in ("ms", "ms_fastest"):
            ratios[key] = min(row[key] for name, row in rows.items() if name != auto) / rows[auto][key]
        lost = " (lost)" if ratios["ms"] * NOISE < 1.0 else ""
        cells = [f"{rows[name]['ms']:.2f}" for name in names] + [f"{rows[name]['GFLOP/s']:.0f}" for name in names]
        cells += [auto, f"{ratios['ms']:.2f}{lost}", f"{ratios['ms_fastest']:.2f}"]
        lines.append(f"| {entry['point']} | {' | '.join(cells)} |")
    first = entries[0]
    return "\n".join([*lines, "", f"{first['machine']}, {first['threads']} threads, commit {first['commit']}."])


if __name__ == "__main__":
    print(markdown(load(sys.argv[1])))
