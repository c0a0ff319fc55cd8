"""A loop that does not go on ends its process; one that does is left alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
from launching import child_environment

PROGRAM = """
import time
from sdfast.engine.stopping import Watchdog
from sdfast.ranks import Ranks
with Watchdog(Ranks(0, {world}, lambda value: [value] * {world}), 2.0, "distill") as watchdog:
    for _ in range(6):
        time.sleep(0.5)
        {sign}
    time.sleep({hang})
print("done")
"""


@pytest.mark.parametrize(("world", "sign", "hang"), [(2, "watchdog.alive()", 0), (1, "pass", 0)])
def test_left_alone(world: int, sign: str, hang: float) -> None:
    done = run(PROGRAM.format(world=world, sign=sign, hang=hang))
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_hang_ends_the_process_with_one_sentence() -> None:
    done = run(PROGRAM.format(world=2, sign="watchdog.alive()", hang=60))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("sdfast: distill did not go on for 2 s (engine.timeout_seconds)")
    assert len(done.stderr.splitlines()) == 1


def test_a_pause_takes_as_long_as_it_takes_and_ends() -> None:
    pause = "    with watchdog.paused():\n        time.sleep(4)\n    {then}\nprint"
    paused = PROGRAM.format(world=2, sign="watchdog.alive()", hang=0).replace("print", pause)
    done = run(paused.replace("{then}", "pass"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert run(paused.replace("{then}", "time.sleep(60)")).returncode == 1


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=50)
