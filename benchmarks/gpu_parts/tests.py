"""The tests marked `gpu`, many at a time; each one's result is a row as soon as it has ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_parts.context import Context

ROOT = Path(__file__).parents[2]
WORKERS = 12
EACH = 25  # seconds of a test


def files_of(context: Context) -> list[Path]:
    """Those that have such tests; quick, the smallest alone."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    files = [path for path in files if "gpu_suite" not in path.name]
    return sorted(files, key=lambda path: path.stat().st_size)[:1] if context.quick else files


def run(context: Context) -> Iterator[dict[str, Any]]:
    """A row from here says how pytest ended; those of the tests are written by its plugin, `pytest_rows`."""
    files = files_of(context)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "-p",
        "gpu_parts.pytest_rows",
    ]
    command += ["--continue-on-collection-errors", f"--timeout={EACH}"]
    command += [] if context.quick else ["-n", str(WORKERS)]
    keep = {"path": str(context.rows), "began": context.began}
    path = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "GPU_SUITE_ROWS": json.dumps(keep), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    log = context.folder / "pytest"
    with log.open("wb") as said:
        # In this process's group: with it, it is stopped.
        done = subprocess.run(
            [*command, *map(str, files)], cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
    row: dict[str, Any] = {"item": "pytest", "files": len(files), "exit_code": done.returncode}
    row["pytest_s"] = time.monotonic() - started
    if done.returncode not in (0, 1):  # 1: tests failed, which their own rows say
        said_last = log.read_text("utf-8", errors="replace")[-8000:]
        row |= {"error": f"pytest ended with exit code {done.returncode}", "traceback": said_last}
    yield row
