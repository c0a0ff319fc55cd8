"""Counting what a rank holds, and the tables of ZeRO."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zero_held
import zero_table


def test_memory_of_the_plain_loop_is_counted(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import zero_setup
    from step_setup import Point

    from sdfast.ranks import Ranks

    trainer, step, losses = zero_setup.prepared("plain loop", Point("distill", "tiny", 4), Ranks(), tmp_path)
    step()
    found = zero_held.count_before_steps(trainer)
    step()
    trained = sum(4 * p.numel() for _, p in trainer.objective.trained_parameters() if p.requires_grad)
    assert found["gradients"] == trained
    assert 2 * trained < found["moments"] < 2.01 * trained  # and the counts of steps
    assert found["parameters"] == sum(4 * p.numel() for p in trainer.objective.module.parameters())
    assert found["copies"] == found["buckets"] == 0
    assert trainer.steps_done == len(losses) == 2


def test_shared_memory_is_counted_once() -> None:
    flat, part, gradient = torch.zeros(8), torch.zeros(4), torch.zeros(4)
    parameters = [torch.nn.Parameter(flat[:4]), torch.nn.Parameter(flat[4:])]
    part.grad = gradient
    inner = SimpleNamespace(state={part: {"exp_avg": torch.zeros(4), "exp_avg_sq": torch.zeros(4)}})
    optimizer = SimpleNamespace(
        optimizer=inner,
        bit16_groups_flat=[flat],
        single_partition_of_fp32_groups=[part],
        averaged_gradients={0: [gradient[:2], gradient[2:]]},
        ipg_buckets={torch.float32: SimpleNamespace(buffer=[torch.zeros(2)], elements=2)},
    )
    module = SimpleNamespace(parameters=lambda: iter(parameters))
    engine = SimpleNamespace(_deepspeed=SimpleNamespace(optimizer=optimizer))
    trainer: Any = SimpleNamespace(engine=engine, objective=SimpleNamespace(module=module))
    expected = {"moments": 32, "parameters": 32, "copies": 16, "gradients": 16, "buckets": 8}
    assert zero_held.held(trainer) == expected


def test_tables(tmp_path: Path) -> None:
    held = dict.fromkeys(zero_held.KINDS, 2_000_000)
    least = {"setup_bytes": 5_000_000, "peak_bytes": 20_000_000, "held": held}
    most = {"setup_bytes": 6_000_000, "peak_bytes": 30_000_000, "held": {**held, "gradients": 4_000_000}}
    rows: dict[str, Any] = {
        "ZeRO 0": {"seconds": [2.0, 1.0, 4.0], "precision": "fp32", "ranks": [[least, least], [least, most]]},
        "ZeRO 3": {"seconds": [3.0, 3.0, 9.0], "precision": "fp32", "ranks": [[least, least], [least, least]]},
    }
    same = {"stage": "distill", "model": "ViT-S/16", "batch": 8, "allocator": "kept", "versions": {"torch": "2"}}
    run = {
        "machine_info": {"cpu": {"brand_raw": "a CPU"}},
        "datetime": "2026-11-25T00:00:00",
        "commit_info": {"id": "0123456789abcdef"},
        "benchmarks": [
            {"extra_info": {"world": 2, "threads": 1, "rows": rows, **same}},
            {"extra_info": {"world": 1, "threads": 2, "rows": rows, **same}},
        ],
    }
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run))
    text = zero_table.markdown(zero_table.load(str(path)))
    assert text.count("| ZeRO 0 | 2000 | 1000 | 4.00 | 1.000 | 1.000 |") == 2
    assert text.count("| ZeRO 3 | 3000 | 3000 | 2.67 | 1.500 | 3.000 |") == 2
    assert text.count("| ZeRO 0 | 30 | 6 | 12 | 2 | 2 | 2 | 4 | 2 |") == 1
    assert "2 ranks of 1 thread each**; 3 steps" in text and "one process of 2 threads**" in text
    assert text.endswith("a CPU, 2026-11-25, torch 2, fp32, kept, commit 0123456789ab.")
