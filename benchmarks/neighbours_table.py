"""Table of a run of bench_neighbours.py: `python benchmarks/neighbours_table.py FILE.json`."""

from __future__ import annotations

import statistics
import sys
from typing import Any

from losses_table import load

OURS, ONE_THREAD = "sdfast", "sdfast, one thread"


def shares(entry: dict[str, Any], count: str) -> dict[str, list[float]]:
    """For each arm: img/s, times naive's, times its own without neighbours, and times its fair share of that.

    A fair share is what an arm's threads get of the processors when all that are busy get as much.
    """
    median = {
        number: {name: statistics.median(seconds) for name, seconds in rows.items()}
        for number, rows in entry["samples"].items()
    }
    found = {}
    for name, seconds in median[count].items():
        threads = 1 if name == ONE_THREAD else entry["threads"]
        fair = min(1.0, entry["processors"] / (threads + int(count)))
        kept = median["0"][name] / seconds
        found[name] = [entry["batch"] / seconds, median[count]["naive"] / seconds, kept, kept / fair]
    return found


def markdown(entries: list[dict[str, Any]]) -> str:
    """A line for every arm and number of neighbours."""
    header = ["pretrain", "neighbours", "arm", "img/s", "x naive", "of its own alone", "of its fair share"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for entry in entries:
        for count in entry["samples"]:
            for name, (rate, gain, kept, fair) in shares(entry, count).items():
                cells = [entry["point"], count, name, f"{rate:.1f}", f"{gain:.2f}", f"{kept:.0%}", f"{fair:.0%}"]
                lines.append(f"| {' | '.join(cells)} |")
    first = entries[0]
    rounds = len(next(iter(first["samples"]["0"].values())))
    said = f"{first['threads']} threads on {first['processors']} processors, torch {first['torch']}"
    return "\n".join(
        [*lines, "", f"{first['machine']}, {said}, commit {first['commit']}; medians of {rounds} samples."]
    )


if __name__ == "__main__":
    print(markdown(load(sys.argv[1])))
