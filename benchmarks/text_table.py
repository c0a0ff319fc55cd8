"""Table of a run: `pytest benchmarks/bench_text.py --benchmark-only --benchmark-json=F`, then this with F."""

from __future__ import annotations

import json
import statistics
import sys

PRODUCT = "float32 product"
ARMS = ("honest", "honest bf16", "sdfast", "sdfast bf16")


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        run = json.load(file)
    points = [entry["extra_info"] for entry in run["benchmarks"]]
    cpu = run["machine_info"]["cpu"].get("brand_raw", "unknown CPU")
    where = f"{cpu}, {run['datetime'][:10]}; torch {points[0]['torch']}, {points[0]['threads']} threads"
    print(f"{where}, float32 but for the arms named bf16\n")
    print("Times the naive step; the last column is sdfast in bf16, times the honest step in bf16.\n")
    print("| step | naive s | sdfast s | honest | honest bf16 | sdfast | sdfast bf16 | of the product's peak", end=" ")
    print("| logits MB, naive | sdfast | x honest bf16 |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for point in points:
        median = {name: statistics.median(values) for name, values in point["seconds"].items()}
        fastest = {name: min(values) for name, values in point["seconds"].items()}
        peak = point["flops"][PRODUCT] / fastest[PRODUCT]
        logits = {name: size / 1e6 for name, size in point["logit_bytes"].items()}
        times = " | ".join(f"{median['naive'] / median[arm]:.2f}" for arm in ARMS)
        print(
            f"| {point['point']} | {median['naive']:.2f} | {median['sdfast']:.2f} | {times}"
            f" | {point['flops']['sdfast'] / fastest['sdfast'] / peak:.2f}"
            f" | {logits['naive']:.0f} | {logits['sdfast']:.0f} | {median['honest bf16'] / median['sdfast bf16']:.2f} |"
        )


if __name__ == "__main__":
    main(sys.argv[1])
