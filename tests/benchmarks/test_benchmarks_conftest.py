"""The benchmarks say what they take, and a failing one does not flood the terminal."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FAILING = """
import logging

def test_point():
    trace = logging.getLogger("torch.__trace")
    trace.setLevel(logging.DEBUG)
    trace.debug("a %s", "graph")
    logging.getLogger("other").warning("worth a look")
    assert 1 == 2
"""


def test_a_failing_benchmark_shows_warnings_and_no_trace_and_its_time(tmp_path: Path) -> None:
    shutil.copy(BENCHMARKS / "conftest.py", tmp_path)
    (tmp_path / "bench_flood.py").write_text(FAILING)
    command = [sys.executable, "-m", "pytest", "bench_flood.py", "-n0", "--rootdir", str(tmp_path)]

    def output(*more: str) -> str:
        return subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True, timeout=120).stdout

    quiet = output()
    assert "assert 1 == 2" in quiet and "worth a look" in quiet and "a graph" not in quiet
    assert "about 60 minutes" in quiet and "one of them: pytest benchmarks/bench_" in quiet
    assert "minutes: flood 0.0" in quiet
    assert "a graph" in output("--log-level=DEBUG")


def test_every_suite_has_its_time() -> None:
    minutes = runpy.run_path(str(BENCHMARKS / "conftest.py"))["MINUTES"]
    assert set(minutes) == {path.stem.removeprefix("bench_") for path in BENCHMARKS.glob("bench_*.py")}
    table = (BENCHMARKS / "README.md").read_text()
    assert all(f"bench_{name}.py" in table for name in minutes)
