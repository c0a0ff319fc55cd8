"""The arithmetic behind the tables of training steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ratios
import step_clock


def test_arms_take_turns() -> None:
    log: list[str] = []
    steps = {name: (lambda name=name: log.append(name)) for name in "abc"}
    samples = step_clock.turns(steps, {"a": 1, "b": 2, "c": 1}, "cpu", 2)
    assert "".join(log) == "abbcbbca"
    assert {name: len(seconds) for name, seconds in samples.items()} == {"a": 2, "b": 2, "c": 2}


def run_of(tmp_path: Path, seconds: dict[str, list[float]], products: str = "ieee") -> str:
    rows: dict[str, Any] = {
        name: {"seconds": values, "flops": 1e9, "first_extra_s": 0.0} for name, values in seconds.items()
    }
    rows[ratios.PRODUCT] = {"seconds": [0.02, 0.02, 0.01], "flops": 2e9}
    info = {
        "stage": "distill",
        "model": "ViT-S/16",
        "batch": 8,
        "rows": rows,
        "threads": 2,
        "torch": "2",
        "allocator": "kept",
        "products": products,
    }
    run = {
        "machine_info": {"cpu": {"brand_raw": "a CPU"}},
        "datetime": "2026-11-24T00:00:00",
        "commit_info": {"id": "0123456789abcdef"},
        "benchmarks": [{"extra_info": info}, {"extra_info": {}}],
    }
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run))
    return str(path)


def test_sweeps_of_a_point_are_taken_together() -> None:
    def sweep(stage: str, seconds: list[float], extra: float) -> dict[str, Any]:
        row = {"seconds": seconds, "flops": 1e9, "first_extra_s": extra}
        return {"stage": stage, "model": "ViT-S/16", "batch": 8, "rows": {"naive": row}}

    given = [sweep("distill", [1.0, 2.0], 3.0), sweep("pretrain", [5.0], 0.5), sweep("distill", [4.0], 0.1)]
    distill, pretrain = ratios.together(given)
    assert distill["rows"]["naive"] == {"seconds": [1.0, 2.0, 4.0], "flops": 1e9, "first_extra_s": 3.0}
    assert pretrain["rows"]["naive"]["seconds"] == [5.0]
    assert given[0]["rows"]["naive"]["seconds"] == [1.0, 2.0]


def test_table_names_targets_and_losing_points(tmp_path: Path) -> None:
    base = {ratios.INSTALLED: [0.18, 0.18, 0.18]}
    base |= {"naive": [0.16, 0.17, 0.15], "honest": [0.2, 0.2, 0.2], "honest compiled": [0.112, 0.112, 0.9]}
    report = ratios.report(run_of(tmp_path, {**base, "sdfast": [0.1, 0.1, 0.1]}))
    assert (
        "a CPU, 2026-11-24, commit 0123456789ab; torch 2, 2 threads, float32 but for the arms named bf16, kept;"
        " sdfast's products: ieee." in report
    )
    assert "| distill | ViT-S/16 | 8 | sdfast | 80.00 | 1.60 | 1.12 |  | 1.50, 1.12 | 80 | 40% |" in report
    installed = (
        "| distill, times the naive step, allocator as installed | ViT-S/16 | 1.800 | 1.500 | met | 1.700 | met |"
    )
    assert installed in report
    assert (
        "| distill, times the naive step, freed pages kept | ViT-S/16 | 1.600 | 1.500 | met | 1.700 | **missed** |"
        in report
    )
    assert "| distill, times the honest baseline | ViT-S/16 | 1.120 | 1.100 | met | 1.200 | **missed** |" in report
    assert "| distill, share of the product's peak | ViT-S/16 | 40.0% | 70.0% | **missed** |  |  |" in report
    assert "slower" not in report
    slow = ratios.report(run_of(tmp_path, {**base, "sdfast": [0.12, 0.12, 0.12]}))
    assert "| sdfast, **slower than a baseline** | 66.67 |" in slow


def test_bf16_is_compared_with_the_faster_honest_arm_in_bf16_and_wanted_where_amx_is(tmp_path: Path) -> None:
    rows = {name: [0.32] for name in ("naive", "honest", "honest compiled", "sdfast")}
    rows |= {"honest bf16": [0.15], "honest bf16 compiled": [0.14], "sdfast bf16": [0.1]}
    report = ratios.report(run_of(tmp_path, rows, "bf16x6"))
    assert "| distill | ViT-S/16 | 8 | sdfast bf16 | 80.00 | 3.20 | 3.20 | 1.40 | 3.20, 3.20 | 80 |  |  |" in report
    assert (
        "| distill in bf16, times the naive step, freed pages kept | ViT-S/16 | 3.200 | 3.000 | met | 4.000 |" in report
    )
    assert (
        "| distill in bf16, times the honest bf16 baseline | ViT-S/16 | 1.400 | 1.400 | met | 1.700 | **missed** |"
    ) in report
    assert "in bf16, times" not in ratios.report(run_of(tmp_path, rows))
