"""The report that is written while a run goes: `report.html` shows how far it is to whoever has it open."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from sdfast import __version__
from sdfast.durable import read_json, write_json
from sdfast.engine.followers import Follower
from sdfast.occupant import is_replaced
from sdfast.report.records import SESSIONS, Live
from sdfast.report.run import attempted, write_report
from sdfast.rundir import REPORT, REPORT_FOLDER

_SECONDS = 10.0  # between two pages, at least
_SHARE = 0.02  # of the time that may go into them
_SESSIONS = 50  # commands that are remembered
_PACKAGES = ("torch", "transformers", "timm", "deepspeed", "xformers", "triton", "numpy")


def wanted(asked: bool) -> bool:
    """Whether reports are made: `engine.report`, and SDFAST_REPORT=0 for none at all."""
    return asked and os.environ.get("SDFAST_REPORT", "1") != "0"


class LiveReport(Follower):
    """Writes the report anew as a stage begins and ends, and every ten seconds or more between."""

    def __init__(self, out: Path, device: str, processes: int) -> None:
        """Set up.

        Args:
            out: the run directory.
            device: on which it runs, such as `cpu` or the name of a GPU.
            processes: that work on it.
        """
        self.out, self.device, self.processes = out, device, processes
        self.live = Live()
        self.told = self.trained = self.failed = False
        self._due = 0.0

    def begin(self, stage: str, directory: Path, steps: int, start: int) -> None:
        """A page that says so, and the command among those that worked on the run."""
        self._tell_once()
        folder = Path(os.path.relpath(directory, self.out)).as_posix()
        self.live = Live(folder, stage, start, steps)
        self._write()

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """A page, where the last one is old enough."""
        self.live = replace(self.live, step=step)
        if time.monotonic() >= self._due:
            self._write()

    def end(self) -> None:
        """A page; the stage is evaluated and written after this."""
        self._write()

    def made(self) -> None:
        """A stage has its result: a page with it."""
        self._tell_once()  # not all of them are trained in steps
        self.live = Live()
        self._write()

    def finish(self) -> None:
        """The last page, which does not reload itself."""
        if self.trained or not (self.out / REPORT).exists():
            self.trained = False
            write_report(self.out, quiet=self.failed)

    def _write(self) -> None:
        """A page, unless one could not be written in this session: that is said once."""
        if self.failed:
            return
        began = time.monotonic()
        self.failed = write_report(self.out, self.live) is None
        ended = time.monotonic()
        self._due = ended + max(_SECONDS, (ended - began) / _SHARE)

    def _tell_once(self) -> None:
        self.trained = True
        if not self.told:
            self.told = True
            attempted(self._tell, self.out / REPORT_FOLDER / SESSIONS)

    def _tell(self) -> Path:
        path = self.out / REPORT_FOLDER / SESSIONS
        before = None if is_replaced(self.out) else read_json(path)
        sessions = before if isinstance(before, list) else []
        write_json(path, [*sessions[-_SESSIONS + 1 :], session(self.device, self.processes)])
        return path


def session(device: str, processes: int) -> dict[str, Any]:
    """What works on a run from now on: command, machine and versions."""
    import torch

    memory = _gpu_memory(device)
    return {
        "at": time.time(),
        "command": command(sys.argv),
        "device": device,
        "processor": _processor(),
        **({"memory": memory} if memory else {}),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": {
            "sdfast": __version__,
            "python": platform.python_version(),
            **{name: version for name in _PACKAGES if (version := _version(name)) is not None},
        },
    }


def command(arguments: list[str]) -> str:
    """The command line as a person would type it; of another program than `sdfast` its name alone."""
    program = Path(arguments[0]) if arguments and arguments[0] else Path("python")
    ours = program.name in ("sdfast", "sdfast.exe") or program.parts[-2:] == ("sdfast", "__main__.py")
    if ours:
        return shlex.join(["sdfast", *arguments[1:]])
    return f"from Python ({program.name})"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            named = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        named = ""
    return f"{named or platform.processor() or platform.machine()}, {os.cpu_count()} threads"


def _gpu_memory(device: str) -> str | None:
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return None
    return f"{torch.cuda.get_device_properties(0).total_memory / 1e9:.0f} GB"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
