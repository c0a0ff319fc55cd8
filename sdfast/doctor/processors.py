"""Threads: as many as there are processors, and how they wait for each other."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path

from sdfast.doctor.finding import Finding, broken, ok
from sdfast.doctor.sandbox import Outcome
from sdfast.portable import processors

CHECK = "threads"
_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def judged_threads(outcome: Outcome) -> Finding:
    """Judge the probe `threads`: how many torch starts, and how they wait."""
    if outcome.ended is not None:
        return broken(CHECK, f"the process that asks torch {outcome.ended}", "install torch again.")
    return judged(outcome.last["threads"], processors(), cpu_limit(), os.environ, outcome.last["why_not"])


def judged(threads: int, cpus: int, limit: float | None, environment: Mapping[str, str], waits: str | None) -> Finding:
    """Threads against processors.

    Args:
        threads: that torch starts.
        cpus: on which this process may run.
        limit: processors' worth of time that its control group is given; None for all.
        environment: in which OMP_NUM_THREADS may be.
        waits: why threads do not take note of other work; None where they do.
    """
    most = cpus if limit is None else min(cpus, max(1, math.ceil(limit)))
    asked = environment.get("OMP_NUM_THREADS")
    said = f" (OMP_NUM_THREADS={asked})" if asked else ""
    allowed = f"{cpus} processors" if limit is None or limit >= cpus else f"{limit:g} of {cpus} processors' time"
    if threads > most:
        return broken(
            CHECK,
            f"{threads} threads{said} share {allowed}, and wait for each other",
            f"set OMP_NUM_THREADS={most}, or engine.threads={most}.",
        )
    how = f"wait {waits}" if waits else "spin while processors are free, sleep beside other work"
    return ok(CHECK, f"{threads}{said} for {allowed}; they {how}")


def cpu_limit(groups: Path = _GROUPS, own: Path = _OWN) -> float | None:
    """How many processors' worth of time the control groups of this process give it; None where they do not limit it.

    Args:
        groups: where the system shows them.
        own: file with the names of those of this process.
    """
    paths = {"": "/", "cpu": "/"}
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text("utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            paths.update({kind: path for kind in kinds.split(",") if kind in paths})
    found = []
    for folder in _upwards(groups, paths[""]):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text("utf-8").split()
            found += [] if quota == "max" else [int(quota) / int(period)]
    for root in (groups / "cpu", groups / "cpu,cpuacct"):
        for folder in _upwards(root, paths["cpu"]):
            with contextlib.suppress(OSError, ValueError):
                quota, period = ((folder / f"cpu.cfs_{each}_us").read_text("utf-8") for each in ("quota", "period"))
                found += [int(quota) / int(period)] if int(quota) > 0 else []
    return min(found, default=None)


def _upwards(root: Path, inside: str) -> list[Path]:
    """A group's folder and those above it: each may limit it."""
    folder = root / inside.strip("/")
    return [folder, *(each for each in folder.parents if each.is_relative_to(root))]
