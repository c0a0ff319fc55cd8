"""TensorBoard events beside metrics.jsonl, which holds the same numbers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdfast.durable import reason
from sdfast.errors import UserError
from sdfast.log import log


class Events:
    """The events of one stage. Where the disk refuses them the run goes on without, and says so once."""

    def __init__(self, directory: Path, start: int) -> None:
        """Begin at a step; events after it are hidden.

        Raises:
            UserError: the package is not installed.
        """
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise UserError(
                "engine.tensorboard=true needs the package tensorboard: pip install tensorboard."
            ) from error
        self.directory = directory
        self.writer: Any = None
        self._hook, threading.excepthook = threading.excepthook, self._unless_of_the_writer
        with self._unless_refused():
            self.writer = SummaryWriter(str(directory), purge_step=start)

    def record(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """The values of a step."""
        with self._unless_refused():
            for name, value in values.items() if self.writer is not None else ():
                self.writer.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        """Write what is still to be written."""
        with self._unless_refused():
            if self.writer is not None:
                self.writer.close()
        threading.excepthook = self._hook

    @contextlib.contextmanager
    def _unless_refused(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.writer = None
            log.warning("cannot write %s, and the run goes on without it: %s", self.directory, reason(error))

    def _unless_of_the_writer(self, failed: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread raises what it also hands over at the next record, where it becomes a sentence."""
        if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard.")):
            self._hook(failed)
