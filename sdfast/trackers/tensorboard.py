"""TensorBoard: event files in `tensorboard/` of each stage's directory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from sdfast.trackers.tracker import Tracked, Tracker


class TensorBoard(Tracker):
    """Events of each stage; those after the step that a run resumes from are hidden."""

    name = "tensorboard"

    def __init__(self, tracked: Tracked) -> None:
        super().__init__(replace(tracked, out=None))
        self._folder = Path()
        self._writer: Any = None
        self._hook: Any = None

    @property
    def place(self) -> str:
        """The folder of the events."""
        return str(self._folder)

    def enter(self, root: Path, start: int) -> None:
        """Begin at a step of a stage; later events of before are hidden."""
        self._folder, self._root = root / "tensorboard", root
        self._write(purge_step=start + 1 if start else 0)  # it hides that step too
        if start == 0:
            text = yaml.safe_dump(dict(self.tracked.config), sort_keys=False)
            self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def sum_up(self, values: Mapping[str, float]) -> None:
        """Scalars too, of step 0."""
        with self._more():
            self.log(0, values)

    def show(self, step: int, files: Mapping[str, Path]) -> None:
        """Images."""
        import numpy as np
        from PIL import Image

        with self._more():
            for name, path in files.items():
                with Image.open(path) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                self._writer.add_image(name, pixels, step, dataformats="HWC")

    def end(self) -> None:
        """Write what is still to be written."""
        self._unless_lost(self.close)
        self._unhook()

    def close(self) -> None:
        """Write what is still to be written."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        self._unhook()

    @contextlib.contextmanager
    def _more(self) -> Iterator[None]:
        """Add to what has ended."""
        self._write()
        try:
            yield
            self.close()
        finally:
            self._unhook()

    def _write(self, **options: Any) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._hook, threading.excepthook = threading.excepthook, self._unless_of_the_writer
        self._writer = SummaryWriter(str(self._folder), **options)

    def _unhook(self) -> None:
        if self._hook is not None:
            threading.excepthook, self._hook = self._hook, None

    def _unless_of_the_writer(self, failed: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread raises what it also hands over at the next record, where it becomes a sentence."""
        if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard.")):
            (self._hook or threading.__excepthook__)(failed)
