"""A few attacks of `make stress`, and that they notice a fault."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from stress import calls

REASON = calls.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
TESTS = Path(__file__).resolve().parent


def sample(*fault: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stress.sample", *fault]
    return subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, timeout=300)


def counts(said: str) -> dict[tuple[str, str], list[int]]:
    rows = [line.strip("| ").split(" | ") for line in said.splitlines() if line.startswith("| ")][2:]
    return {(row[0], row[1]): [int(cell.replace(",", "")) for cell in row[-4:]] for row in rows if len(row) == 6}


def test_killed_failing_and_damaged() -> None:
    done = sample()
    assert done.returncode == 0, done.stdout + done.stderr
    found = counts(done.stdout)
    tried, same, refused, faults = map(sum, zip(*found.values(), strict=True))
    assert faults == 0 and tried == same + refused
    assert found["kills", "train"][:2] == [8, 8]
    assert found["failed calls", "train"][0] >= 6  # one may hit nothing of the run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "seen"),
    [("trusting", "run/pretrain/model/model.safetensors (other)"), ("repeating", "run/pretrain/metrics.jsonl (other)")],
)
def test_the_attacks_notice(fault: str, seen: str) -> None:
    """A damaged model that is taken for whole, and records that a resumed stage does not drop."""
    done = sample(fault)
    assert done.returncode == 1, done.stdout + done.stderr
    assert seen in done.stdout
