"""A process that survives another says why it ends, however soon its launcher ends it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from launching import child_environment, torchrun

PROGRAM = """
import os
import signal
import time
import torch
from sdfast.errors import RunError
from sdfast.launch import join

ranks = join(torch.device("cpu"))
ranks.exchange(None)
if ranks.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    ranks.exchange(None)
except RunError as error:
    time.sleep({seconds})  # torchrun looks every 0.1 s
    print(error, flush=True)
"""


def ended(folder: Path, seconds: float) -> tuple[str, float]:
    """What is said after so many seconds of winding up, and how many they were."""
    program = folder / "program.py"
    program.write_text(PROGRAM.format(seconds=seconds))
    begins = time.monotonic()
    done = subprocess.run(torchrun(2, program), env=child_environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode != 0
    return done.stdout, time.monotonic() - begins


def test_there_is_time_for_the_sentence(tmp_path: Path) -> None:
    said, _ = ended(tmp_path, 2.0)
    assert said.startswith("another process of this job died")


@pytest.mark.slow
def test_the_time_has_an_end(tmp_path: Path) -> None:
    said, seconds = ended(tmp_path, 60.0)
    assert said == "" and seconds < 40
