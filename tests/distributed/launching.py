"""The commands and the environment of several processes on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ENDS_WITHIN = 60.0  # seconds after a process dies
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


def command(world: int, out: Path, arguments: list[str], zero: int = 2) -> list[str]:
    """`sdfast train` in so many processes."""
    words = ["-m", "sdfast", "train", "--zero", str(zero), "--out", str(out), *arguments]
    return torchrun(world, *words) if world > 1 else [sys.executable, *words]


def finished(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """What a command ended with."""
    return subprocess.run(words, env=child_environment(**environment), capture_output=True, text=True, timeout=200)


def killed_in_distill(words: list[str], out: Path, rank: int, step: int) -> str:
    """Start two processes, SIGKILL one when distill has recorded so many steps; what they say until all have ended."""
    records = out / "distill" / "metrics.jsonl"
    process = subprocess.Popen(words, env=child_environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while not (records.exists() and len(records.read_text().splitlines()) >= step):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    victims = [pid for pid in _children_of(process.pid) if _rank_of(pid) == rank]
    assert len(victims) == 1
    os.kill(victims[0], signal.SIGKILL)
    died = time.monotonic()
    said = process.stderr.read()
    assert process.wait(timeout=ENDS_WITHIN) != 0 and time.monotonic() - died < ENDS_WITHIN
    assert not (out / "distill" / "result.json").exists()
    return said


def _children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _rank_of(pid: int) -> int | None:
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    found = [word for word in words if word.startswith(b"RANK=")]
    return int(found[0].removeprefix(b"RANK=")) if found else None
