"""Tables of a run: `pytest benchmarks/bench_methods.py --benchmark-only --benchmark-json=F`, then this with F."""

from __future__ import annotations

import json
import sys
from typing import Any

SHARE = "share of a plain step"


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        run = json.load(file)
    points: list[dict[str, Any]] = [entry["extra_info"] for entry in run["benchmarks"]]
    cpu = run["machine_info"]["cpu"].get("brand_raw", "unknown CPU")
    print(f"{cpu}, {run['datetime'][:10]}; torch {points[0]['torch']}, {points[0]['threads']} threads, float32")
    for point in points:
        whole = SHARE not in point
        values = point["ratio"] if whole else point[SHARE]
        print(f"\n{point['point']}, {'whole step' if whole else 'optimiser alone'}:\n")
        print("| method | ms | " + ("times plain" if whole else "more than plain, of a plain step") + " |")
        print("|---|---|---|")
        for name, seconds in point["seconds"].items():
            shown = f"{values[name]:.2f}" if whole else f"{100 * values[name]:+.1f} %"
            print(f"| {'plain' if name == 'none' else name} | {1000 * seconds:.1f} | {shown} |")
        if whole:
            print(f"\nTwo passes' arithmetic over that of one: {point['arithmetic']:.2f}.")


if __name__ == "__main__":
    main(sys.argv[1])
