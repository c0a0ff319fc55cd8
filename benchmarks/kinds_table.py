"""Table of a run: `pytest benchmarks/bench_kinds.py --benchmark-only --benchmark-json=F`, then this with F."""

from __future__ import annotations

import json
import statistics
import sys


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        run = json.load(file)
    points = [entry["extra_info"] for entry in run["benchmarks"]]
    cpu = run["machine_info"]["cpu"].get("brand_raw", "unknown CPU")
    print(f"{cpu}, {run['datetime'][:10]}; torch {points[0]['torch']}, {points[0]['threads']} threads, float32\n")
    print("| kind | encoder, transformers s | ours s | times | distill, separate s | sdfast s | times |")
    print("|---|---|---|---|---|---|---|")
    for point in points:
        median = {name: statistics.median(values) for name, values in point["seconds"].items()}
        encoder, step = median["transformers"] / median["ours"], median["separate"] / median["distill"]
        print(
            f"| {point['kind']} | {median['transformers']:.3f} | {median['ours']:.3f} | {encoder:.2f}"
            f" | {median['separate']:.3f} | {median['distill']:.3f} | {step:.2f} |"
        )


if __name__ == "__main__":
    main(sys.argv[1])
