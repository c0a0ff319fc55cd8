"""Tables of a run of bench_zero.py: `python benchmarks/zero_table.py FILE.json`."""

from __future__ import annotations

import statistics
import sys
from typing import Any

from losses_table import load
from zero_held import KINDS


def times(entry: dict[str, Any]) -> dict[str, list[str]]:
    """For each engine: milliseconds (median, fastest), img/s, and times the first engine's seconds by both."""
    samples = {name: row["seconds"] for name, row in entry["rows"].items()}
    first = next(iter(samples.values()))
    cells = {}
    for name, seconds in samples.items():
        median, fastest = statistics.median(seconds), min(seconds)
        ratios = [f"{median / statistics.median(first):.3f}", f"{fastest / min(first):.3f}"]
        cells[name] = [f"{median * 1e3:.0f}", f"{fastest * 1e3:.0f}", f"{entry['batch'] / median:.2f}", *ratios]
    return cells


def memory(row: dict[str, Any]) -> list[str]:
    """Of the rank that has most, in MB: growth of the process at its end and when set up, what was counted, its sum."""
    ranks = [rank for cycle in row["ranks"] for rank in cycle]

    def most(key: str) -> str:
        known = [rank[key] for rank in ranks if rank[key] is not None]
        return f"{max(known) / 1e6:.0f}" if known else ""

    fullest = max((rank["held"] for rank in ranks), key=lambda held: sum(held.values()))
    counted = [f"{fullest[kind] / 1e6:.0f}" for kind in KINDS]
    return [most("peak_bytes"), most("setup_bytes"), f"{sum(fullest.values()) / 1e6:.0f}", *counted]


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)] + [""]


def markdown(entries: list[dict[str, Any]]) -> str:
    """For each entry a line about it and its times; for several ranks their memory as well."""
    lines = []
    for entry in entries:
        rows, base = entry["rows"], next(iter(entry["rows"]))
        shared, threads = entry["world"] > 1, f"{entry['threads']} thread{'s' if entry['threads'] > 1 else ''}"
        where = f"{entry['world']} ranks of {threads} each" if shared else f"one process of {threads}"
        steps = f"{len(rows[base]['seconds'])} steps of each"
        lines += [f"**{entry['stage']} {entry['model']}, batch {entry['batch']} in all, {where}**; {steps}.", ""]
        header = ["engine", "ms", "fastest ms", "img/s", f"ms / {base}'s", "of the fastest"]
        lines += table(header, [[name, *cells] for name, cells in times(entry).items()])
        if shared:
            header = ["engine", "process grew MB", "by set-up MB", "counted MB", *KINDS]
            lines += table(header, [[name, *memory(row)] for name, row in rows.items()])
    first = entries[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    precisions = ", ".join(dict.fromkeys(row["precision"] for entry in entries for row in entry["rows"].values()))
    said = f"{versions}, {precisions}, {first['allocator']}, commit {first['commit']}"
    return "\n".join([*lines, f"{first['machine']}, {said}."])


if __name__ == "__main__":
    print(markdown(load(sys.argv[1])))
