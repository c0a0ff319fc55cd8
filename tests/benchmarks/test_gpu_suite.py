"""The GPU suite without a GPU: every part runs tiny, what goes wrong is recorded, and the table shows all of it."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gpu_suite
import pytest
import torch
from gpu_parts import derived, kernels, render, zero
from gpu_parts.context import Context

ROOT = Path(__file__).parents[2]


def suite(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_suite.py"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_quick_run_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    out = tmp_path / "results" / "cpu.json"
    done = suite("--quick", "--device", "cpu", "--out", str(out))
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text("utf-8"))
    parts = written["parts"]
    assert list(parts) == list(gpu_suite.PARTS)
    assert all("part_error" not in part for part in parts.values())
    assert parts["environment"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert parts["environment"]["products"]["fp32"] > 0

    tests = parts["correctness"]["tests"]
    assert tests["tests"] == tests["skipped"] > 0
    assert all(backends["sdpa"]["met"] for backends in parts["correctness"]["attention"].values())
    assert {"plain, fp32", "default, fp32", "default, bf16"} <= parts["correctness"]["settings"]["rows"].keys()
    assert parts["correctness"]["banks"]["stream"]["met"]

    assert {point["stage"] for point in parts["steps"]["points"].values()} == {"pretrain", "distill", "finetune"}
    for name, point in parts["steps"]["points"].items():
        expected = {derived.WHOLE_ARM} if name.endswith(derived.WHOLE) else {"naive", "honest", "honest compiled"}
        assert {"sdfast", *expected} <= point["arms"].keys()
        assert all(arm["img/s"] > 0 and arm["flops"] > 0 for arm in point["arms"].values())
    assert 0 <= parts["profile"]["arms"]["sdfast"]["idle"] < 1
    assert "product" in parts["profile"]["arms"]["sdfast"]["kinds_us"]
    assert all(rows["sdpa"]["ms"] > 0 for rows in parts["attention"]["rows"].values())
    assert len(parts["losses"]["rows"]) == 1
    check_zero(parts["zero"])

    table = out.with_suffix(".md").read_text("utf-8")
    assert table.startswith("# no GPU (cpu)") and "quick run" in table
    for name, point in parts["steps"]["points"].items():
        assert all(f"| {name} | {arm}" in table for arm in point["arms"])
    assert table in done.stdout
    assert suite("--render", str(out)).stdout == table


def check_zero(part: dict[str, Any]) -> None:
    """Every way was measured, in one process and in two, and all of a point computed the same."""
    if importlib.util.find_spec("deepspeed") is None:
        assert part == {"absent": "deepspeed is not installed"}
        return
    alone, shared = part["points"].values()
    assert list(alone) == list(zero.ALONE)
    assert list(shared) == ["ZeRO 0", "ZeRO 3, offload=cpu"]
    for ways in (alone, shared):
        assert all(row["ms"] > 0 and row["img/s"] > 0 for row in ways.values())
        losses = [row["loss"] for row in ways.values()]
        assert losses == pytest.approx([losses[0]] * len(ways), rel=1e-4)


def test_without_deepspeed_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (part,) = zero.run(Context("cpu", True, 10.0))
    assert part == {"absent": "deepspeed is not installed"}
    assert render.zero(part) == "## ZeRO\n\nSkipped: deepspeed is not installed."
    assert gpu_suite.found_wrong({"zero": part}) == []


def test_ways_of_zero_and_their_table() -> None:
    figures = {"seconds": [0.5], "precision": "bf16", "loss": 1.0}
    ways = {
        "plain loop": {"ms": 100.0, "img/s": 640.0, "peak_bytes": 8_000_000_000, **figures},
        "ZeRO 2": {"ms": 150.0, "img/s": 426.7, "peak_bytes": 10_000_000_000, **figures},
        "ZeRO 3": {"error": "not reached: the time was spent"},
        "ZeRO 3, offload=cpu": {"error": "ValueError: no"},
    }
    part = {"points": {"a point": ways}}
    text = render.zero(part)
    assert "| a point | plain loop | bf16 | 640 | 100 | 1.000 | 8 | 1.00 |" in text
    assert "| a point | ZeRO 2 | bf16 | 426.7 | 150 | 1.500 | 10 | 1.25 |" in text
    assert "| a point | ZeRO 3 | not reached: the time was spent |" in text
    assert gpu_suite.found_wrong({"zero": part}) == ["zero, a point, ZeRO 3, offload=cpu: ValueError: no"]


def test_without_a_gpu_one_sentence() -> None:
    done = suite()
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1 and "no CUDA device" in done.stderr


def works(context: Context) -> Iterator[dict[str, Any]]:
    yield {"device": context.device}


def raises(context: Context) -> Iterator[dict[str, Any]]:
    yield {"first": 1}
    raise ValueError("the second is missing")


def crashes(context: Context) -> Iterator[dict[str, Any]]:
    yield {"first": 1}
    os._exit(3)


def sleeps(context: Context) -> Iterator[dict[str, Any]]:
    yield {"first": float("nan")}
    time.sleep(60)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (works, {"device": "cpu"}),
        (raises, {"first": 1, "part_error": "ValueError: the second is missing"}),
        (crashes, {"first": 1, "part_error": "its process ended with exit code 3"}),
        (sleeps, {"first": None, "part_error": "stopped after 2 s"}),
    ],
)
def test_a_part_ends_as_it_may(run: Any, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    part = ModuleType("gpu_parts.example")
    part.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, part.__name__, part)
    monkeypatch.setattr(gpu_suite, "LEAST", 0.0)
    started = time.monotonic()
    result = gpu_suite.in_a_process(multiprocessing.get_context("fork"), "example", 2.0, Context("cpu", False, 2.0))
    assert result == expected
    assert time.monotonic() - started < 30
    assert gpu_suite.found_wrong({"example": result}) == (
        [f"example: {expected['part_error']}"] if "part_error" in expected else []
    )


def test_a_part_is_not_begun_without_time() -> None:
    result = gpu_suite.in_a_process(None, "example", 1.0, Context("cpu", False, 1.0))
    assert "not reached" in result["part_error"]


def test_missed_checks_and_failed_tests_are_wrong() -> None:
    points = {"a": {"arms": {"x": {"error": "out of memory"}, "y": {"error": "ValueError: no"}}}, "b": {"error": "no"}}
    assert gpu_suite.found_wrong({"steps": {"points": points}}) == ["steps, a, y: ValueError: no", "steps, b, : no"]
    correctness = {"tests": {"failed": ["a::b: no"]}, "banks": {"device": {"met": True}, "stream": {"met": False}}}
    assert gpu_suite.found_wrong({"correctness": correctness}) == [
        "test a::b: no",
        "missed: correctness, banks, stream",
    ]


def test_attempts_record_what_went_wrong() -> None:
    context = Context("cpu", False, 100.0)

    def exhausted() -> None:
        raise torch.OutOfMemoryError("many words")

    assert context.attempt(exhausted) == {"error": "out of memory"}
    assert context.attempt(lambda: 1 // 0)["error"].startswith("ZeroDivisionError")
    assert "not reached" in context.attempt(lambda: 1, needs=1000)["error"]
    assert context.attempt(lambda: 1) == 1


def arm(images_per_second: float, ours: bool = False, **more: Any) -> dict[str, Any]:
    row = {"img/s": images_per_second, "ms": 64e3 / images_per_second, "TFLOP/s": 1.0, "of_peak": 0.5}
    return {**row, "precision": "bf16", "host_waits": 0, "first_step_s": 1.0, "interleaved": True, "ours": ours, **more}


def test_derived_figures_and_their_table() -> None:
    arms = {
        "sdfast": arm(2000, ours=True),
        "sdfast compiled": arm(2560, ours=True),
        "sdfast, loader spared": arm(2500, ours=True),
        "sdfast live teacher": arm(1600, ours=True),
        "sdfast, no shortcuts": arm(1900, ours=True),
        "honest": arm(1000),
        "honest compiled": arm(2048),
        "naive": arm(400),
        "naive TF32": {"error": "out of memory"},
    }
    parts = {
        "steps": {"points": {"distill ViT-B/16 batch 64": {"stage": "distill", "arms": arms}}},
        "losses": {
            "auto": "triton",
            "rows": {"batch256-ViT-B-tokens-bfloat16": {"lost": True, "of_copy": 0.75, **losses_row()}},
        },
    }
    found = derived.derive(parts)
    ratios = found["ratios"]["distill ViT-B/16 batch 64"]
    assert ratios["x naive"] == 6.4 and ratios["x honest"] == 1.25 and "x naive TF32" not in ratios
    assert ratios["loader wait"] == pytest.approx(0.2)
    assert ratios["cached + shortcuts / live"] == pytest.approx(0.8)
    assert found["stages"]["distill"] == {"arm": "sdfast compiled", "seconds": 500.0, "x paper": 18802 / 500}
    whole = {"sdfast": arm(2200, ours=True), derived.WHOLE_ARM: arm(2000)}
    points = parts["steps"]["points"]
    more = {**points, f"distill ViT-B/16 batch 64{derived.WHOLE}": {"stage": "distill", "arms": whole}}
    assert derived.derive({"steps": {"points": more}})["ratios"]["distill ViT-B/16 batch 64"]["x honest"] == 1.1
    verdicts = {row["name"]: row["verdict"] for row in found["targets"]}
    assert verdicts["times the honest baseline"] == {"floor": "met", "target": "missed"}
    assert verdicts["further pre-training, img/s"] == {"floor": "not measured", "target": "not measured"}
    assert verdicts["loss, points lost"]["floor"] == "missed"
    table = render.markdown({"quick": False, "parts": parts, "derived": found, "seconds": {"steps": 3.0}})
    assert "takes 8 min 20 s at this rate (sdfast compiled): 38 times" in table
    assert "| distill ViT-B/16 batch 64 | naive TF32 | out of memory |" in table
    assert "| sdfast, **slower than a baseline** |" in table and "sdfast compiled, **slower" not in table


def losses_row() -> dict[str, Any]:
    return {name: {"ms": 1.0} for name in ("eager", "compile", "triton")}


def test_time_is_covered_once() -> None:
    assert kernels.covered([(5, 7), (0, 2), (1, 3), (1, 2)]) == 5
    names = {
        "void cutlass_sm90_gemm_bf16": "product",
        "pytorch_flash::flash_fwd_kernel": "attention",
        "multi_tensor_apply_kernel<FusedAdam>": "optimizer",
        "triton_poi_fused_gelu_0": "elementwise",
        "_mae_distill_kernel": "loss",
        "Memcpy DtoD": "copy",
    }
    assert {name: kernels.kind_of(name) for name in names} == names
    event = SimpleNamespace(name="Optimizer.step#AdamW.step", device_type=torch.autograd.DeviceType.CUDA)
    assert kernels.spent([event], "cuda") == []
