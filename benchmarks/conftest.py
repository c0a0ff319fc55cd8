"""The benchmarks import each other by name, say how long they take, and fail without torch's trace of its compiler."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

MINUTES: dict[str, float | None] = {  # on two quiet cores; None: not timed apart
    "attention": 0.5,
    "gelu": None,
    "kinds": 9,
    "linear": 0.5,
    "linear_losses": None,
    "losses": None,
    "methods": 2,
    "neighbours": 9,
    "scaling": 1,
    "step": 20,
    "teacher": None,
    "text": None,
    "zero": 4,
}
ALL_MINUTES = 60  # as a whole
_took: dict[str, float] = defaultdict(float)  # seconds, by suite


def pytest_configure(config: pytest.Config) -> None:
    """Below a failure stands what was logged as a warning: torch.__trace alone writes thousands of lines at DEBUG."""
    if getattr(config.option, "log_level", None) is None:
        config.option.log_level = "WARNING"


def pytest_report_header() -> list[str]:
    known = ", ".join(f"{name} {minutes:g}" for name, minutes in MINUTES.items() if minutes is not None)
    others = ", ".join(name for name, minutes in MINUTES.items() if minutes is None)
    return [
        f"benchmarks: all take about {ALL_MINUTES} minutes on two quiet cores ({known}; the rest {others})",
        'one of them: pytest benchmarks/bench_methods.py --benchmark-only; some points: -k "distill and ViT-S"',
    ]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _took[Path(report.fspath).stem.removeprefix("bench_")] += report.duration


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the suites took, for `MINUTES` and benchmarks/README.md."""
    if _took:
        minutes = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in _took.items())
        terminalreporter.write_line(f"minutes: {minutes}")
