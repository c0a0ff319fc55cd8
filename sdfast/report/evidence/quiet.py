"""Looking at models without leaving a trace: no gradient, and random states as they were."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def untouched(device: torch.device) -> Iterator[None]:
    """Inside, nothing needs a gradient; after it every global generator has the state that it had before.

    Args:
        device: which is computed on; its generator too.
    """
    mine, theirs = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.inference_mode():
            yield
    finally:
        random.setstate(mine)
        np.random.set_state(theirs)
