"""A stage that is stopped and goes on ends as one that was not, to the last bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sdfast.engine.loop import Trainer
from sdfast.errors import Interrupted


def check_resumes(make: Callable[[Path], Trainer], folder: Path) -> Trainer:
    """Compare a stage of 12 steps with the same that is interrupted in its seventh; the one that went on."""
    whole, cut = make(folder / "whole"), make(folder / "cut")
    whole.run()
    read = cut.read

    def interrupting(rows: Any) -> Any:
        if cut.steps_done == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return read(rows)

    cut.read = interrupting
    with pytest.raises(Interrupted):
        cut.run()
    torch.manual_seed(999)  # the state must come from the checkpoint
    resumed = make(folder / "cut")
    assert resumed.steps_done == 7
    resumed.run()
    state = resumed.objective.module.state_dict()
    for name, value in whole.objective.module.state_dict().items():
        assert torch.equal(value, state[name]), name
    return resumed
