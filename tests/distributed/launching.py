"""The commands and the environment of several processes on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def torchrun(world: int, *arguments: str | Path) -> list[str]:
    """The command of a launch on this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] + [
        str(argument) for argument in arguments
    ]


def child_environment(**more: str) -> dict[str, str]:
    """That of the processes: one thread each, the tests' helpers on their path."""
    path = os.pathsep.join(map(str, (HERE, HERE.parent, ROOT)))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", **more}
