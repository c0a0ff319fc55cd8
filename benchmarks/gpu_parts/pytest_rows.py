"""A plugin of pytest that writes each test's result into the suite's rows as soon as it is there (`-p`)."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from gpu_parts.rows import append


class Rows:
    """Where they go."""

    def __init__(self, path: str, began: float) -> None:
        self.path, self.began = Path(path), began

    def keep(self, test: str, outcome: str, seconds: float, said: str) -> None:
        row: dict[str, Any] = {"part": "tests", "at": time.monotonic() - self.began, "test": test}
        row |= {"outcome": outcome, "seconds": seconds}
        if said:
            row["traceback" if outcome == "failed" else "reason"] = said
        append(self.path, row)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The test itself; what comes before and after it only where it failed or was skipped."""
        if report.when != "call" and report.outcome == "passed":
            return
        said = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else report.longreprtext
        test = report.nodeid if report.when != "teardown" else f"{report.nodeid} (afterwards)"
        self.keep(test, report.outcome, report.duration, said)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that does not import."""
        if report.failed:
            self.keep(report.nodeid, "failed", 0.0, report.longreprtext)


def pytest_configure(config: pytest.Config) -> None:
    """In the process that hears of all tests; the others tell it."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Rows(**json.loads(os.environ["GPU_SUITE_ROWS"])), "gpu-suite-rows")
