"""The GPU suite's rows: what is on the disk when a part, or the suite, does not end well, and the summary of it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from gpu_parts import collect, derived, publish, render, rows, runner
from gpu_parts.context import AGAIN, Context
from gpu_parts.plan import Task

ROOT = Path(__file__).parents[2]
Rows = Iterator[dict[str, Any]]


def suite_of(path: Path, seconds: float = 30.0) -> runner.Suite:
    began = time.monotonic()
    processes = multiprocessing.get_context("fork")
    return runner.Suite("cpu", False, path / rows.NAME, began, began + seconds, processes)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Context], Rows]], str]:
    """Makes a function a part of the suite."""

    def make(run: Callable[[Context], Rows]) -> str:
        module = ModuleType(f"gpu_parts.{run.__name__}")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return run.__name__

    return make


def works(context: Context) -> Rows:
    yield {"device": context.device, "value": float("nan")}


def raises(context: Context) -> Rows:
    yield {"item": "first"}

    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)
        raise ValueError("the second is missing " + "x" * 500)

    deep(30)


def crashes(context: Context) -> Rows:
    yield {"item": "first"}
    os._exit(3)


def dies(context: Context) -> Rows:
    yield {"item": "first"}
    print("a last word", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(context: Context) -> Rows:
    yield {"item": "first"}

    def waits_for_ever() -> None:
        time.sleep(60)

    waits_for_ever()


def run_one(run: Callable[[Context], Rows], part: Any, path: Path, limit: float = 20.0) -> list[dict[str, Any]]:
    """The rows of a part, without what the suite says itself."""
    task = Task(part(run), 1.0, {"arm": "one"}, limit)
    runner.run(suite_of(path), [task])
    found = rows.read(path / rows.NAME)
    assert all(row["arm"] == "one" and row["at"] >= 0 for row in found if row["part"] != "suite")
    assert found[-1]["task"] == f"{run.__name__} one"
    return [row for row in found if row["part"] != "suite"]


def test_a_part_that_works(part: Any, tmp_path: Path) -> None:
    (row,) = run_one(works, part, tmp_path)
    assert row["device"] == "cpu" and row["value"] is None and row["seconds"] >= 0


def test_a_part_that_raises_keeps_its_whole_traceback(part: Any, tmp_path: Path) -> None:
    first, second = run_one(raises, part, tmp_path)
    assert first["item"] == "first"
    assert second["error"].startswith("ValueError: the second is missing")
    assert "x" * 500 in second["traceback"] and "deep(depth - 1)" in second["traceback"]
    assert second["traceback"].startswith("Traceback")


@pytest.mark.parametrize(
    ("run", "error", "said"), [(crashes, "with exit code 3", ""), (dies, "by SIGSEGV", "a last word")]
)
def test_a_process_that_ends(run: Any, error: str, said: str, part: Any, tmp_path: Path) -> None:
    first, second = run_one(run, part, tmp_path)
    assert first["item"] == "first"
    assert second["error"] == f"its process ended {error}" and said in second["traceback"]


def test_a_part_that_hangs_is_stopped_and_says_where(part: Any, tmp_path: Path) -> None:
    started = time.monotonic()
    first, second = run_one(hangs, part, tmp_path, limit=4.0)
    assert time.monotonic() - started < 20
    assert first["item"] == "first"
    assert second["error"] == "stopped after 4 s" and "in waits_for_ever" in second["traceback"]


def again(context: Context) -> Rows:
    for item in ("a", "b", "c"):
        if item not in context.done:
            yield {"item": item, "process": os.getpid()}
            if item == "b":
                raise SystemExit(AGAIN)


def test_after_a_poisoned_process_the_rest_has_a_new_one(part: Any, tmp_path: Path) -> None:
    found = run_one(again, part, tmp_path)
    assert [row["item"] for row in found] == ["a", "b", "c"]
    first, second, third = (row["process"] for row in found)
    assert first == second != third


def beside(context: Context) -> Rows:
    begun = time.monotonic()
    time.sleep(0.5)
    yield {"begun": begun, "ended": time.monotonic()}


def test_tasks_of_a_group_run_at_the_same_time(part: Any, tmp_path: Path) -> None:
    tasks = [Task(part(beside), 1.0, {"arm": name}, 20.0, "together") for name in ("a", "b")]
    calls: list[int] = []
    runner.run(suite_of(tmp_path), [*tasks, Task("beside", 1.0, {"arm": "c"}, 20.0)], lambda: calls.append(1))
    a, b, c = (row for row in rows.read(tmp_path / rows.NAME) if "begun" in row)
    assert max(a["begun"], b["begun"]) < min(a["ended"], b["ended"]) <= max(a["ended"], b["ended"]) < c["begun"]
    assert len(calls) == 2


def test_what_the_time_does_not_reach_is_recorded(part: Any, tmp_path: Path) -> None:
    runner.run(suite_of(tmp_path, seconds=1.0), [Task(part(works), 1.0, {"arm": "one"})])
    (row,) = rows.read(tmp_path / rows.NAME)
    assert row["arm"] == "one" and row["error"].startswith("not reached")


def test_a_suite_that_is_killed_keeps_its_rows(part: Any, tmp_path: Path) -> None:
    """SIGKILL in the middle of a part: the rows before it are there, its process ends too, and a table is made."""
    named = {"stage": "distill", "model": "ViT-B/16", "batch": 64, "arm": "sdfast", "run": 1}
    figures = {"ms": 25.0, "flops": 1e11, "ours": True, "precision": "bf16", "host_ms": 1.0, "compiled": True}

    def steps(context: Context) -> Rows:
        yield {**figures, "img/s": 2560.0, "first_step_s": 20.0, "child": os.getpid()}
        time.sleep(60)

    suite = suite_of(tmp_path, seconds=100.0)
    tasks = [Task(part(steps), 1.0, named, 90.0)]
    process = multiprocessing.get_context("fork").Process(target=runner.run, args=(suite, tasks))
    process.start()
    while not (found := rows.read(suite.rows)):
        assert process.is_alive()
        time.sleep(0.05)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    with suite.rows.open("ab") as file:
        file.write(b'{"part": "steps", "ms": 2')  # what a process that is killed while it writes leaves
    assert rows.read(suite.rows) == found and found[0]["ms"] == 25.0
    deadline = time.monotonic() + 10
    while Path(f"/proc/{found[0]['child']}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{found[0]['child']}").exists()
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_suite.py"), "--render", str(tmp_path)]
    table = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "| distill ViT-B/16 batch 64 | sdfast | bf16 | 2560 | 25 |" in table
    assert "| distillation, img/s | 2560 | 2440 | met | 3050 | missed |" in table


def test_a_row_follows_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    rows.append(path, {"a": 1})
    path.write_bytes(path.read_bytes() + b'{"b": ')
    rows.append(path, {"c": [float("inf"), 2.5]})
    rows.append(path, {"d": Path("x")})
    assert rows.read(path) == [{"a": 1}, {"c": [None, 2.5]}, {"d": "x"}]
    assert rows.read(tmp_path / "nothing") == []


def test_results_of_tests_are_rows_as_they_come(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'x' * 300\n"
        "def test_left_out(): pytest.skip('no card')\n"
        "def test_last():\n"
        "    import os; os._exit(1)\n"
    )
    (tmp_path / "test_broken.py").write_text("import nothing_of_this_name\n")
    keep = json.dumps({"path": str(tmp_path / "rows"), "began": time.monotonic()})
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks"), "GPU_SUITE_ROWS": keep}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu_parts.pytest_rows", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", "--rootdir", str(tmp_path), str(tmp_path)]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    found = rows.read(tmp_path / "rows")
    parts = collect.collected(found)["tests"]
    assert (parts["passed"], parts["failed"], parts["skipped"]) == (1, 2, 1)
    assert parts["reasons"] == ["Skipped: no card"]
    assert sorted(name.rpartition("/")[2] for name in parts["failures"]) == ["test_broken.py", "test_it.py::test_bad"]
    (bad,) = (row for row in found if row["test"].endswith("test_bad"))
    assert "x" * 300 in bad["traceback"] and "assert 1 == 2" in bad["traceback"]


# --- the summary ----------------------------------------------------------------------------------------------------


def step(arm: str, rate: float, run: int = 1, stage: str = "distill", **more: Any) -> dict[str, Any]:
    row = {"part": "steps", "stage": stage, "model": "ViT-B/16", "batch": 64, "arm": arm, "run": run, "at": 1.0}
    row |= {"ms": 64e3 / rate, "img/s": rate, "flops": 1.5e11, "precision": "bf16", "ours": arm.startswith("sdfast")}
    return row | {"host_waits": 0, "host_ms": 1.0, "first_step_s": 1.0, "compiled": True, "graphed": True, **more}


def measured() -> list[dict[str, Any]]:
    card = {"name": "NVIDIA H100 80GB HBM3", "driver": "580", "cuda": "13.0", "cudnn": 9, "memory_GB": 85.0}
    losses = {"eager": {"ms": 2.0}, "compile": {"ms": 1.5}, "triton": {"ms": 1.0}}
    loss = {"part": "losses", "auto": "triton", "backends": losses, "lost": False, "bytes_per_s": 2.4e12}
    return [
        {"part": "suite", "call": 2, "quick": False, "processes": "fork", "seconds": 10.0, "at": 10.0},
        {"part": "environment", "device": "cuda", "commit": "abc", "versions": {"torch": "2.11.0"}, "at": 10.0},
        {"part": "environment", "card": {**card, "multiprocessors": 132}, "at": 10.0},
        {"part": "ceilings", "item": "bf16", "flop_per_s": 8e14},
        {"part": "ceilings", "item": "copy", "bytes_per_s": 3e12},
        step("sdfast", 2400, wait_share=0.001),
        step("honest compiled", 2000),
        step("sdfast", 2600, run=2, traceback="File /home/someone/x.py"),
        step("honest compiled", 1900, run=2),
        step("naive", 480, precision="fp32"),
        step("sdfast live teacher", 1600),
        {**step("sdfast, no shortcuts", 1), "error": "out of memory", "ms": None},
        {"part": "profile", "arm": "sdfast", "error": "RuntimeError: in /opt/torch/lib/x.so", "traceback": "long"},
        {**loss, "item": "batch256-ViT-B-tokens-bfloat16"},
    ]


def test_derived_figures_and_their_table() -> None:
    found = [row for row in measured() if row.get("ms", 1) is not None]
    suite = collect.suite([*found, {**step("sdfast, no shortcuts", 1), "error": "out of memory"}])
    arm = suite["parts"]["steps"]["points"]["distill ViT-B/16 batch 64"]["arms"]["sdfast"]
    assert arm["ms"] == pytest.approx((64e3 / 2400 + 64e3 / 2600) / 2) and len(arm["runs_ms"]) == 2
    ratios = suite["derived"]["ratios"]["distill ViT-B/16 batch 64"]
    assert ratios["x honest"] == pytest.approx(arm["img/s"] / 1948.7, rel=1e-3)
    assert ratios["x naive"] == pytest.approx(arm["img/s"] / 480)
    verdicts = {row["name"]: row["verdict"] for row in suite["derived"]["aims"]}
    assert verdicts["distillation, img/s"] == ["met", "missed"]
    assert verdicts["times the honest baseline, compiled"] == ["met", "missed"]
    assert verdicts["times the eager float32 original"] == ["met", "met"]
    assert verdicts["host waits a step"] == ["met", "met"]
    assert verdicts["the paper's distillation, s"] == ["met", "missed"]
    assert verdicts["loss, share of the copy bandwidth"] == ["met", "met"]
    assert verdicts["further pre-training, img/s"] == ["not measured", "not measured"]
    table = render.markdown(suite)
    assert "stage (20,000 steps of 64) takes 8 min 33 s at this rate (sdfast): 37 times" in table
    assert "| batch256-ViT-B-tokens-bfloat16 | 2.0000 | 1.5000 | 1.0000 | 80% |" in table
    assert "| distill ViT-B/16 batch 64 | honest compiled | bf16 |" in table


def test_aims_at_their_edges() -> None:
    assert derived.aim("rate", 2440, 2440, 3050)["verdict"] == ["met", "missed"]
    assert derived.aim("rate", 2439.9, 2440, 3050)["verdict"] == ["missed", "missed"]
    assert derived.aim("waits", 0.2, 0, 0, less=True)["verdict"] == ["missed", "missed"]


def test_a_slower_arm_is_marked() -> None:
    table = render.markdown(collect.suite([step("sdfast", 1000), step("honest compiled", 1100)]))
    assert "| sdfast, **slower than a baseline** |" in table


def test_what_is_wrong() -> None:
    found = [
        {"part": "contact", "stage": "distill", "error": "RuntimeError: waited"},
        {"part": "tests", "test": "a::b", "outcome": "failed"},
        {"part": "tests", "error": "stopped after 50 s"},
        {"part": "agreement", "item": "bank host", "check": "banks", "apart": 1.0, "met": False},
        {"part": "agreement", "error": "not reached: the suite's time was spent"},
        {**step("sdfast", 1000), "error": "the loss is not finite: nan"},
        {**step("naive", 1000), "error": "out of memory"},
        {"part": "library", "item": "carried", "why_not": "missing"},
        {"part": "library", "item": "built here", "why_not": None},
        {"part": "attention", "item": "50 varlen", "head_width": 64, "error": "RuntimeError: no"},
    ]
    wrong = collect.found_wrong(collect.collected(found))
    assert sorted(wrong) == sorted(
        [
            "contact, distill: RuntimeError: waited",
            "test a::b",
            "tests: stopped after 50 s",
            "missed: agreement, bank host",
            "steps, distill ViT-B/16 batch 64, sdfast: the loss is not finite: nan",
            "attention, 50 varlen 64: RuntimeError: no",
        ]
    )


def test_rows_of_a_later_call_replace_earlier_ones(tmp_path: Path) -> None:
    for name, rate in (("first", 1000.0), ("second", 1500.0)):
        (tmp_path / name).mkdir()
        rows.append(tmp_path / name / rows.NAME, step("sdfast", rate))
    suite = collect.suite(rows.read_all([tmp_path / "first", tmp_path / "second"]))
    arm = suite["parts"]["steps"]["points"]["distill ViT-B/16 batch 64"]["arms"]["sdfast"]
    assert arm["img/s"] == 1500 and len(arm["runs_ms"]) == 1


def test_a_result_is_published_without_paths(tmp_path: Path) -> None:
    found = [row for row in measured() if row.get("ms", 1) is not None]
    paths = publish.publish(found, tmp_path)
    assert [path.name for path in paths] == ["gpu_h100_80gb_hbm3.json", "gpu_h100_80gb_hbm3.md"]
    text = paths[0].read_text("utf-8")
    assert "/home" not in text and "/opt" not in text and "traceback" not in text
    assert "RuntimeError: in x.so" in text and "GB/s" not in json.loads(text)["parts"]
    assert paths[1].read_text("utf-8").startswith("# NVIDIA H100 80GB HBM3")
    assert "distill ViT-B/16 batch 64" in text  # a name with a slash is no path
    with pytest.raises(rows.UsageError):
        publish.publish([{**found[0], "quick": True}, *found[1:]], tmp_path)
    with pytest.raises(rows.UsageError):
        publish.publish(found[3:], tmp_path)
