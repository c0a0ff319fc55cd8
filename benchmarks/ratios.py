"""Table of a run: `pytest benchmarks/bench_step.py --benchmark-only --benchmark-json=F`, then this with F."""

from __future__ import annotations

import json
import sys


def table(path: str) -> str:
    """img/s of the naive step and ours by medians, their ratio, and the ratio of the fastest rounds, as Markdown."""
    with open(path, encoding="utf-8") as file:
        run = json.load(file)
    medians: dict[tuple[str, str, int], dict[str, float]] = {}
    fastest: dict[tuple[str, str, int], dict[str, float]] = {}
    for entry in run["benchmarks"]:
        info = entry["extra_info"]
        key = (info["stage"], info["model"], info["batch"])
        medians.setdefault(key, {})[info["who"]] = entry["stats"]["median"]
        fastest.setdefault(key, {})[info["who"]] = entry["stats"]["min"]
    lines = ["| stage | model | batch | naive img/s | sdfast img/s | ratio | of the fastest rounds |"]
    lines.append("|---|---|---|---|---|---|---|")
    for (stage, model, batch), median in medians.items():
        naive, ours = batch / median["naive"], batch / median["sdfast"]
        best = fastest[stage, model, batch]["naive"] / fastest[stage, model, batch]["sdfast"]
        lines.append(f"| {stage} | {model} | {batch} | {naive:.2f} | {ours:.2f} | {ours / naive:.2f} | {best:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(sys.argv[1]))
