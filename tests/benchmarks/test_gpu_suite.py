"""The GPU suite without a GPU: both calls run tiny, their rows say everything, and the summary is made out of them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpu_parts import arms, collect, contact, evidence, kernels, library, plan, render, rows, zero
from gpu_parts.context import Context
from step_setup import Point

from sdfast.log import log

ROOT = Path(__file__).parents[2]


def suite(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_suite.py"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folders of both calls."""
    pytest.importorskip("transformers")
    return {number: tmp_path_factory.mktemp(f"call{number}") for number in plan.WORK}


@pytest.mark.parametrize("number", plan.WORK)
def test_quick_call_on_the_cpu(number: int, calls: dict[int, Path]) -> None:
    out = calls[number]
    done = suite("--call", str(number), "--quick", "--device", "cpu", "--out", str(out))
    assert done.returncode == 0, done.stderr
    found = rows.read(out / rows.NAME)
    told = [row["task"] for row in found if "task" in row]
    assert told == [str(task) for task in plan.call(number, quick=True)]
    assert not [row for row in found if "error" in row]
    assert found[0]["call"] == number and found[1]["part"] == "environment"
    assert found[1]["versions"]["torch"] == torch.__version__.partition("+")[0]
    for row in found:
        if row["part"] == "compile" and "absent" not in row:
            assert row["first_step_s"] > 0 and row["cache"] == {}
        if row["part"] == "steps" and "absent" not in row:
            assert row["ms"] > 0 and row["flops"] > 0 and row["host_ms"] > 0 and row["seconds"] > 0
            assert {"graphed", "compiled", "graph_breaks", "recompiles", "attention", "host_waits"} <= row.keys()
    check_parts(number, json.loads((out / "suite.json").read_text("utf-8"))["parts"])

    table = (out / "suite.md").read_text("utf-8")
    assert table.startswith("# no GPU (cpu)") and "quick run" in table
    (out / "suite.json").unlink()  # the table needs the rows alone
    assert suite("--render", str(out)).stdout == table
    again = suite("--call", str(number), "--quick", "--device", "cpu", "--out", str(out))
    assert again.returncode == 2 and again.stderr.count("\n") == 1 and "earlier run" in again.stderr


def check_parts(number: int, parts: dict[str, Any]) -> None:
    assert list(parts) == [part for part in collect.GATHERED if part in {task.part for task in plan.call(number)}]
    arms_of = {name: list(point["arms"]) for name, point in parts["steps"]["points"].items()}
    distill = parts["steps"]["points"]["distill tiny batch 4"]["arms"]
    assert len(distill["sdfast"]["runs_ms"]) == len(distill["honest compiled"]["runs_ms"]) == 2
    assert parts["ceilings"]["rows"]["copy"]["bytes_per_s"] > 0
    if number == 1:
        assert all(row["steps"] == contact.STEPS for row in parts["contact"]["rows"].values())
        assert len(parts["contact"]["rows"]) == 6
        assert parts["tests"]["skipped"] > 0 and parts["tests"]["reasons"]
        assert "product" in parts["profile"]["rows"]["sdfast"]["kinds_us"]
        assert sum("ms" in row for row in parts["attention"]["rows"].values()) == 8
    else:
        assert {"naive", "sdfast, no shortcuts", "honest compiled whole"} <= set(arms_of["distill tiny batch 4"])
        assert "finetune tiny batch 4" in arms_of
        assert parts["trajectories"]["rows"]["apart"]["met"]
        assert [row["texts"] for row in parts["text"]["rows"].values()] == [4, 4, 4]
        assert all(row.get("met", True) for row in parts["agreement"]["rows"].values())
        check_zero(parts["zero"])


def check_zero(part: dict[str, Any]) -> None:
    """Every way was measured, and all computed the same."""
    if importlib.util.find_spec("deepspeed") is None:
        assert part["absent"] == "deepspeed is not installed"
        return
    ways = list(part["rows"].values())
    assert [row["way"] for row in ways] == list(zero.ALONE)
    assert all(row["ms"] > 0 and row["img/s"] > 0 for row in ways)
    assert [row["loss"] for row in ways] == pytest.approx([ways[0]["loss"]] * len(ways), rel=1e-4)


def test_zero_on_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower process's times, the memory of the one that needs most; a way that did not end says why."""

    def launched(task: Any, world: int, folder: Path, seconds: float) -> Any:
        assert world == 2 and task.point.batch == 8 and folder.is_dir() and seconds > 100
        ranks = [{"seconds": [0.1, 0.2, each], "peak_bytes": 10 * each, "loss": 1.5} for each in (0.3, 0.4)]
        return [[{"ZeRO 0": {**rank, "precision": "fp32"}} for rank in ranks]], "stopped after 120 s"

    monkeypatch.setattr(zero, "launched", launched)
    found = zero.on_all(Context("cpu", True, seconds=120, folder=tmp_path), 2)
    assert found["ZeRO 0"] | {"ms": 200.0, "img/s": 40.0, "peak_bytes": 4.0, "loss": 1.5} == found["ZeRO 0"]
    assert found["ZeRO 0"]["sample_ms"] == [100.0, 200.0, 400.0]
    assert found["ZeRO 3, offload=cpu"] == {"error": "not reached: stopped after 120 s"}


def test_without_deepspeed_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (row,) = zero.run(Context("cpu", True))
    assert row == {"absent": "deepspeed is not installed"}
    parts = collect.collected([{"part": "zero", **row}])
    assert render.zero(parts["zero"]) == "## ZeRO\n\nSkipped: deepspeed is not installed."
    assert collect.found_wrong(parts) == []


def test_without_a_gpu_one_sentence(tmp_path: Path) -> None:
    done = suite("--call", "1", "--only", "environment", "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1 and "no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()
    nothing = suite("--render", str(tmp_path))
    assert nothing.returncode == 2 and nothing.stderr.count("\n") == 1 and "no rows" in nothing.stderr


# --- the plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "work", "command"), [(1, 225, 300), (2, 390, 430)])
def test_the_shares_of_a_call_fit(number: int, work: float, command: float) -> None:
    tasks = plan.call(number)
    assert plan.START + sum(task.share for task in tasks) <= work == plan.WORK[number]
    assert plan.DEADLINES[number] <= command - 20  # packages are installed before it, and the table is made after it
    assert all(task.share <= task.most <= plan.DEADLINES[number] / 3 for task in tasks)


def test_the_most_valuable_number_comes_first() -> None:
    for number in plan.WORK:
        names = [str(task) for task in plan.call(number)]
        assert names[0] == "environment"
        steps = [name for name in names if name.startswith("steps")]
        head = [f"steps distill ViT-B/16 64 {arm} {run}" for run in (1, 2) for arm in ("sdfast", "honest compiled")]
        assert steps[:4] == head


def test_tasks_are_chosen() -> None:
    assert {task.part for task in plan.chosen(1, False, ["attention"])} == {"environment", "attention"}
    assert {task.part for task in plan.chosen(None, True, ["losses", "tests"])} == {"environment", "losses", "tests"}
    assert all(task.what["model"] == "tiny" for task in plan.call(2, quick=True) if task.part == "steps")
    assert all((ROOT / "benchmarks" / "gpu_parts" / f"{part}.py").exists() for part in plan.PARTS)
    assert set(plan.PARTS) == set(collect.GATHERED)
    steps = [task for number in plan.WORK for task in plan.call(number) if task.part == "steps"]
    points = [Point(task.what["stage"], "tiny", 4) for task in steps]
    assert all(
        arms.describe(task.what["arm"], point, Path()).flops > 0 for task, point in zip(steps, points, strict=True)
    )


# --- what a step turned out to be -----------------------------------------------------------------------------------


def test_what_is_said_in_an_exception_comes_with_its_traceback() -> None:
    with evidence.listening() as heard:
        log.info("attention: %s for %d tokens", "varlen", 50)
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        except RuntimeError:
            log.warning("the step is not captured")
    log.info("nobody hears this")
    assert heard.attention == ["varlen for 50 tokens"] and len(heard.said) == 2
    assert "test_what_is_said_in" in heard.said[1] and "stream is capturing" in heard.said[1]


def test_a_built_arm_says_if_it_is_captured_and_compiled(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    point = Point("pretrain", "tiny", 4, images=8)
    built = arms.build("sdfast not compiled", point, tmp_path)
    built.step()
    assert built.facts() == {"graphed": None, "compiled_modules": 0}
    assert arms.why_absent("sdfast, varlen", point) is not None
    assert arms.why_absent("sdfast, sdpa", point) is None


def test_first_contact_wants_finite_losses() -> None:
    parts = iter([1.0, 2.0, float("nan")] + [1.0] * contact.STEPS)
    trainer: Any = SimpleNamespace(step=lambda: {"loss": torch.tensor(next(parts))})
    with pytest.raises(RuntimeError, match="not finite"):
        contact.losses(trainer, "cpu")


def test_a_library_that_does_not_build_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*words: Any, timeout: float, **more: Any) -> None:
        assert more["env"]["CMAKE_CUDA_ARCHITECTURES"] == "90"
        raise subprocess.TimeoutExpired("setup.py", timeout, b"[1/40] nvcc mae_distill.cu")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(subprocess, "run", slow)
    assert library.build(50) == {"error": "not built within 50 s", "traceback": "[1/40] nvcc mae_distill.cu"}


def test_attempts_record_what_went_wrong() -> None:
    context = Context("cpu", False, seconds=100.0)

    def exhausted() -> None:
        raise torch.OutOfMemoryError("many words")

    assert context.attempt(exhausted)["error"] == "out of memory"
    assert "many words" in context.attempt(exhausted)["traceback"]
    assert context.attempt(lambda: 1 // 0)["error"].startswith("ZeroDivisionError")
    assert "not reached" in context.attempt(lambda: 1, needs=1000)["error"]
    assert context.attempt(lambda: 1) == 1


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
