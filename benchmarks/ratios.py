"""Table of a run: `pytest benchmarks/bench_step.py --benchmark-only --benchmark-json=F`, then this with F."""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any

PRODUCT, OURS, INSTALLED = "float32 product", "sdfast", "naive, allocator as installed"
OURS_BF16 = "sdfast bf16"
BASELINES = ("naive", "honest", "honest compiled")
BF16_BASELINES = ("honest bf16", "honest bf16 compiled")
NAMES = {
    "installed": "the naive step, allocator as installed",
    "naive": "the naive step, freed pages kept",
    "honest": "the honest baseline",
    "honest bf16": "the honest bf16 baseline",
    "peak": "of the product's peak",
}
# What sdfast with its default settings is wanted to reach: stage, model (None: each), against what, must, aim.
TARGETS = [
    ("pretrain", None, "installed", 1.15, None),
    ("pretrain", None, "naive", 1.15, None),
    ("distill", None, "installed", 1.5, 1.7),
    ("distill", None, "naive", 1.5, 1.7),
    ("distill", None, "honest", 1.1, 1.2),
    ("distill", "ViT-S/16", "peak", 0.7, None),
]
# What it is wanted to reach in bfloat16 on a processor with AMX, against the naive step in float32.
BF16_TARGETS = [
    ("pretrain", None, "naive", 2.2, None),
    ("pretrain", None, "honest bf16", 1.3, None),
    ("distill", None, "naive", 3.0, 4.0),
    ("distill", None, "honest bf16", 1.4, 1.7),
    ("finetune", None, "honest bf16", 1.2, None),
]


def load(path: str) -> tuple[list[dict[str, Any]], str]:
    """The extra_info of every point of a run, its sweeps taken together, and a line about the machine."""
    with open(path, encoding="utf-8") as file:
        run = json.load(file)
    points = together([entry["extra_info"] for entry in run["benchmarks"] if "rows" in entry["extra_info"]])
    cpu = run["machine_info"]["cpu"].get("brand_raw", "unknown CPU")
    commit = ((run.get("commit_info") or {}).get("id") or "unknown")[:12]
    said = f"{cpu}, {run['datetime'][:10]}, commit {commit}"
    if points:
        info = points[0]
        said += f"; torch {info['torch']}, {info['threads']} threads, float32 but for the arms named bf16"
        said += f", {info['allocator']}"
        said += f"; sdfast's products: {info.get('products', 'ieee')}"
    return points, said


def together(sweeps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a point, with the samples of all its sweeps; compilation took what it took the first time."""
    points: dict[tuple[str, str], dict[str, Any]] = {}
    for sweep in sweeps:
        point = points.setdefault((sweep["stage"], sweep["model"]), {**sweep, "rows": {}})
        for name, row in sweep["rows"].items():
            point["rows"].setdefault(name, {**row, "seconds": []})["seconds"] += row["seconds"]
    return list(points.values())


def figures(point: dict[str, Any]) -> dict[str, dict[str, float]]:
    """For every arm: img/s by the median and by the fastest round, FLOP/s, its share of the product's, ratios."""
    rows, batch = point["rows"], point["batch"]
    median = {name: statistics.median(row["seconds"]) for name, row in rows.items()}
    fastest = {name: min(row["seconds"]) for name, row in rows.items()}
    honest = min((name for name in BASELINES[1:] if name in rows), key=median.__getitem__)
    honest_bf16 = min((name for name in BF16_BASELINES if name in rows), key=median.__getitem__, default=None)
    peak = rows[PRODUCT]["flops"] / fastest[PRODUCT]
    found = {}
    for name, row in rows.items():
        if name == PRODUCT:
            continue
        rate = row["flops"] * batch / median[name]
        found[name] = {
            "img/s": batch / median[name],
            "installed": median.get(INSTALLED, median["naive"]) / median[name],
            "naive": median["naive"] / median[name],
            "honest": median[honest] / median[name],
            "naive, fastest": fastest["naive"] / fastest[name],
            "honest, fastest": fastest[honest] / fastest[name],
            "GFLOP/s": rate / 1e9,
            "peak": rate / peak,
            "first": row["first_extra_s"],
        }
        if honest_bf16 is not None:
            found[name]["honest bf16"] = median[honest_bf16] / median[name]
    return found


def table(points: list[dict[str, Any]]) -> str:
    """One line an arm; sdfast is marked where a baseline is faster."""
    header = [
        "stage",
        "model",
        "batch",
        "arm",
        "img/s",
        "x naive",
        "x honest",
        "x honest bf16",
        "of the fastest rounds",
    ]
    header += ["GFLOP/s", "of peak", "compile s"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for point in points:
        for name, row in figures(point).items():
            shown = name
            if name == OURS and min(row["naive"], row["honest"]) < 1:
                shown = f"{name}, **slower than a baseline**"
            fastest = f"{row['naive, fastest']:.2f}, {row['honest, fastest']:.2f}"
            compiled = f"{row['first']:.0f}" if "compiled" in name else ""
            cells = [point["stage"], point["model"], str(point["batch"]), shown, f"{row['img/s']:.2f}"]
            bf16 = f"{row['honest bf16']:.2f}" if "honest bf16" in row else ""
            peak = "" if "bf16" in name else f"{row['peak']:.0%}"  # the product's is in float32
            cells += [f"{row['naive']:.2f}", f"{row['honest']:.2f}", bf16, fastest]
            cells += [f"{row['GFLOP/s']:.0f}", peak, compiled]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def targets(points: list[dict[str, Any]]) -> str:
    """One line a target and model: what was reached, and whether that is enough."""
    lines = ["| target | model | reached | must | | aim | |", "|---|---|---|---|---|---|---|"]
    wanted = [(OURS, *target) for target in TARGETS] + [(OURS_BF16, *target) for target in BF16_TARGETS]
    for arm, stage, only, against, must, aim in wanted:
        for point in points:
            if point["stage"] != stage or only not in (None, point["model"]):
                continue
            if arm == OURS_BF16 and (arm not in point["rows"] or point["products"] != "bf16x6"):  # as AMX makes them
                continue
            reached = figures(point)[arm][against]
            form = "{:.1%}" if against == "peak" else "{:.3f}"  # a digit more than the wanted figure
            what = f"{stage}{' in bf16' if arm == OURS_BF16 else ''}, "
            what += f"{'share' if against == 'peak' else 'times'} {NAMES[against]}"
            cells = [what, point["model"], form.format(reached), form.format(must), verdict(reached, must)]
            cells += ["", ""] if aim is None else [form.format(aim), verdict(reached, aim)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(reached: float, wanted: float) -> str:
    return "met" if reached >= wanted else "**missed**"


def report(path: str) -> str:
    """Both tables and what they were measured on."""
    points, said = load(path)
    peaks = [row["flops"] / min(row["seconds"]) / 1e9 for row in (p["rows"][PRODUCT] for p in points)]
    counts = {p["model"]: len(p["rows"][OURS]["seconds"]) for p in points}
    rounds = ", ".join(f"{model} {count}" for model, count in counts.items())
    notes = [
        f"{said}.",
        f"Medians of the rounds ({rounds}), the arms in turns; x honest: against the faster of the two honest arms in"
        " float32, x honest bf16: of those in bfloat16;"
        " of the fastest rounds: both ratios of each arm's fastest round, to tell a disturbed median.",
        "The peak, the fastest round of a matrix product (1024, float32) that took its turn in each point:"
        f" {min(peaks):.0f} to {max(peaks):.0f} GFLOP/s."
        if peaks
        else "",
    ]
    return "\n\n".join([*notes, table(points), targets(points)])


if __name__ == "__main__":
    print(report(sys.argv[1]))
