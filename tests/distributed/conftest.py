"""Starts several processes on this machine, as a launcher does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def torchrun(world: int, *arguments: str | Path, **environment: str) -> list[str]:
    """The command of a launch on this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] + [
        str(argument) for argument in arguments
    ]


def child_environment(**more: str) -> dict[str, str]:
    """That of the processes: one thread each, the tests' helpers on their path."""
    path = os.pathsep.join(map(str, (HERE, HERE.parent, ROOT)))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", **more}


@pytest.fixture(scope="module")
def run_cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs cases of `zero_worker` in so many processes; the folder with what each ended with."""

    def run(world: int, cases: Sequence[dict[str, Any]], folder: Path | None = None) -> Path:
        folder = folder or tmp_path_factory.mktemp("cases")
        (folder / "cases.json").write_text(json.dumps(cases))
        command = torchrun(world, HERE / "zero_worker.py", folder)
        done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[:6000] + done.stderr[-2000:]
        return folder

    return run
