"""A process that trains the stages it is told to, one at a time: tasks as JSON lines in, answers as JSON lines out."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

_SET_PARENT_DEATH_SIGNAL = 1


def main(threads: int | None, parent: int) -> int:
    """Work until there is nothing more to read.

    Args:
        threads: of a CPU, where the configuration does not say.
        parent: the process that asks; this one stops as at a signal when that is gone.
    """
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:
        return 1
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    import logging

    import torch

    from sdfast.config import Config
    from sdfast.errors import Interrupted
    from sdfast.log import log
    from sdfast.studies.perform import attempt
    from sdfast.studies.plan import Task
    from sdfast.studies.store import Shared

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    if threads is not None:
        torch.set_num_threads(threads)
    shared = Shared()
    for line in sys.stdin:
        given: dict[str, Any] = json.loads(line)
        config, out = Config.model_validate(given.pop("config")), Path(given.pop("out"))
        try:
            result, failure = attempt(Task(config, out, **given), shared)
        except Interrupted as stopped:
            answers.write(json.dumps({"interrupted": str(stopped)}) + "\n")
            return stopped.exit_code
        found = None if result is None else {**asdict(result), "model": str(result.model)}
        answers.write(json.dumps({"result": found, "failure": failure}) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(int(sys.argv[1]) or None, int(sys.argv[2])))
    except KeyboardInterrupt:
        sys.exit(130)
