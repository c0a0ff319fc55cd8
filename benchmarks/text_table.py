"""Table of a run: `pytest benchmarks/bench_text.py --benchmark-only --benchmark-json=F`, then this with F."""

from __future__ import annotations

import json
import statistics
import sys

PRODUCT = "float32 product"


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        run = json.load(file)
    points = [entry["extra_info"] for entry in run["benchmarks"]]
    cpu = run["machine_info"]["cpu"].get("brand_raw", "unknown CPU")
    print(f"{cpu}, {run['datetime'][:10]}; torch {points[0]['torch']}, {points[0]['threads']} threads, float32\n")
    print("| step | naive s | sdfast s | times | by the fastest | of the product's peak | logits MB, naive | sdfast |")
    print("|---|---|---|---|---|---|---|---|")
    for point in points:
        median = {name: statistics.median(values) for name, values in point["seconds"].items()}
        fastest = {name: min(values) for name, values in point["seconds"].items()}
        peak = point["flops"][PRODUCT] / fastest[PRODUCT]
        logits = {name: size / 1e6 for name, size in point["logit_bytes"].items()}
        print(
            f"| {point['point']} | {median['naive']:.2f} | {median['sdfast']:.2f}"
            f" | {median['naive'] / median['sdfast']:.2f} | {fastest['naive'] / fastest['sdfast']:.2f}"
            f" | {point['flops']['sdfast'] / fastest['sdfast'] / peak:.2f}"
            f" | {logits['naive']:.0f} | {logits['sdfast']:.0f} |"
        )


if __name__ == "__main__":
    main(sys.argv[1])
