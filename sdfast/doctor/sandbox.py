"""What may crash or hang is tried in a process of its own, which answers line by line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# with the paths of this process, and not with the folder in which it runs
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sdfast.doctor import probes; "
    "probes.main(*sys.argv[2:])"
)
_LOOK_SECONDS = 0.05
_OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")


@dataclass(frozen=True)
class Outcome:
    """What a process answered.

    Attributes:
        answers: its lines.
        ended: how it went wrong, for a sentence whose subject it is; None where it ended well.
    """

    answers: list[dict[str, Any]]
    ended: str | None = None

    @property
    def last(self) -> dict[str, Any]:
        """Its last line; nothing where it gave none."""
        return self.answers[-1] if self.answers else {}


class Sandbox:
    """A process that runs a probe (see `sdfast.doctor.probes`)."""

    def __init__(self, probe: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Start it, with more in its environment; it takes itself for no process of several."""
        self._folder = tempfile.TemporaryDirectory(prefix="sdfast-doctor-", ignore_cleanup_errors=True)
        self._answers, self._errors = (Path(self._folder.name, name) for name in ("answers", "errors"))
        self._answers.touch()
        inherited = {name: value for name, value in os.environ.items() if name not in _OF_LAUNCHERS}
        more = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **(environment or {})}
        with open(self._errors, "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), str(self._answers), probe, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env={**inherited, **more},
                start_new_session=True,  # what it starts ends with it
            )

    def outcome(self, seconds: float) -> Outcome:
        """Wait for it to end; one that has no word for so long is ended."""
        try:
            said, since = 0, time.monotonic()
            while self._process.poll() is None and time.monotonic() - since < seconds:
                time.sleep(_LOOK_SECONDS)
                if (now := self._answers.stat().st_size) != said:
                    said, since = now, time.monotonic()
            code = self._process.poll()
            lines = self._answers.read_text("utf-8").splitlines()
            answers = []
            for line in lines:
                with contextlib.suppress(ValueError):  # cut as the process ended
                    answers.append(json.loads(line))
            return Outcome(answers, self._reason(code, seconds))
        finally:
            self._end()

    def _reason(self, code: int | None, seconds: float) -> str | None:
        if code == 0:
            return None
        if code is None:
            return f"hangs: there was no word of it for {seconds:g} s"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"crashes: signal {signal.Signals(-code).name} ended the process"
        lines = [line.strip() for line in self._errors.read_text("utf-8", "replace").splitlines() if line.strip()]
        return f"fails: {lines[-1] if lines else f'exit code {code}'}"

    def _end(self) -> None:
        with contextlib.suppress(OSError):  # nothing is left of it
            if sys.platform == "win32":
                self._process.kill()
            else:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()


def in_turn(probes: Sequence[str], seconds: float) -> dict[str, Outcome]:
    """Outcomes of several probes without arguments, in one process; behind one that goes wrong another goes on."""
    found: dict[str, Outcome] = {}
    left = list(probes)
    while left:
        outcome = tried("in_turn", *left, seconds=seconds)
        for answer in outcome.answers:
            if "begin" in answer:
                found[answer["begin"]] = Outcome([])
            else:
                found[list(found)[-1]].answers.append(answer)
        if outcome.ended is not None:
            begun = [name for name in left if name in found] or left[:1]
            found[begun[-1]] = Outcome(found.get(begun[-1], Outcome([])).answers, outcome.ended)
        left = [name for name in left if name not in found]
    return found


def tried(probe: str, *arguments: str, seconds: float, environment: Mapping[str, str] | None = None) -> Outcome:
    """What a probe answers in a process of its own."""
    return Sandbox(probe, *arguments, environment=environment).outcome(seconds)
