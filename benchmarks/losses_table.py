"""Table of a run of bench_losses.py: `python benchmarks/losses_table.py FILE.json [--csv]`."""

from __future__ import annotations

import json
import sys
from typing import Any

NAMES = ("eager", "compile", "reference", "fallback", "native", "triton")


def load(path: str) -> list[dict[str, Any]]:
    """The extra_info of every benchmark of the run, and the machine and commit of the run in each."""
    with open(path, encoding="utf-8") as file:
        run = json.load(file)
    machine = f"{run['machine_info']['cpu'].get('brand_raw', 'unknown CPU')}, {run['datetime'][:10]}"
    commit = (run.get("commit_info") or {}).get("id") or "unknown commit"
    return [entry["extra_info"] | {"machine": machine, "commit": commit[:12]} for entry in run["benchmarks"]]


def markdown(entries: list[dict[str, Any]]) -> str:
    """One line a point: milliseconds of every contender, times faster than the baselines, GB/s, peak extra MB."""
    present = [name for name in NAMES if any(name in entry["rows"] for entry in entries)]
    header = ["point", *(f"{name} ms" for name in present), "x eager", "x compile", "GB/s", "of copy", "peak MB"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for entry in entries:
        rows, auto = entry["rows"], entry["rows"][entry["auto"]]
        times = [f"{rows[name]['ms']:.3f}" if name in rows else "" for name in present]
        gains = [f"{rows[name]['ms'] / auto['ms']:.1f}" for name in ("eager", "compile")]
        copy = entry.get("copy_GBps")
        share = f"{auto['GB/s'] / copy:.0%}" if copy else ""
        peak = "" if auto["peak_MB"] is None else f"{auto['peak_MB']:.0f}"
        cells = [entry["point"], *times, *gains, f"{auto['GB/s']:.1f}", share, peak]
        lines.append(f"| {' | '.join(cells)} |")
    copies = sorted({round(entry["copy_GBps"], 1) for entry in entries if entry.get("copy_GBps")})
    notes = [f"{entries[0]['machine']}, commit {entries[0]['commit']}; x: against {entries[0]['auto']}."]
    notes += [f"Copy bandwidth of this machine in the same run: {', '.join(map(str, copies))} GB/s."] if copies else []
    return "\n".join([*lines, "", *notes])


def csv(entries: list[dict[str, Any]]) -> str:
    """One line for each point and contender."""
    lines = ["point,contender,ms,ms_20,ms_80,GB/s,peak_MB,copy_GB/s,machine,commit"]
    for entry in entries:
        for name, row in entry["rows"].items():
            values = [row["ms"], row["ms_20"], row["ms_80"], row["GB/s"], row["peak_MB"], entry.get("copy_GBps")]
            numbers = ["" if value is None else f"{value:.4g}" for value in values]
            lines.append(",".join([f'"{entry["point"]}"', name, *numbers, f'"{entry["machine"]}"', entry["commit"]]))
    return "\n".join(lines)


if __name__ == "__main__":
    print((csv if "--csv" in sys.argv else markdown)(load(sys.argv[1])))
