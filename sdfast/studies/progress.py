"""What a person sees while a study runs: one line for each stage that is done, or a bar on a terminal."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from sdfast.log import console, log
from sdfast.studies.plan import Node

say = log.getChild("study")


class Progress:
    """Counts the stages of a study."""

    def __init__(self, total: int, bar: bool) -> None:
        """total: stages to train. bar: show one, on a terminal."""
        self.total, self.done, self.began = total, 0, time.monotonic()
        self._bar: Any = None
        if bar and console().is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (TextColumn("[bold]stages"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = RichProgress(*columns, console=console())
            self._task = self._bar.add_task("stages", total=total)
            self._bar.start()

    def finished(self, node: Node) -> None:
        """Say that a stage was trained, or was not."""
        self.done += 1
        arms = list(dict.fromkeys(node.wanted_by))
        what = arms[0] if len(arms) == 1 else f"{arms[0]} and {len(arms) - 1} more"
        name = f"{node.task.stage} ({what}{f', seed {node.task.seed}' if node.task.stage == 'finetune' else ''})"
        if node.failure is not None:
            say.error("%d/%d  %s failed: %s", self.done, self.total, name, node.failure)
        elif node.result is not None:
            score = node.result.metrics.get(node.result.paper_metric or "accuracy")
            ended = f", {100 * score:.1f} %" if score is not None else ""
            say.info("%d/%d  %s: %.0f s%s%s", self.done, self.total, name, node.result.seconds, ended, self._left())
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)

    def _left(self) -> str:
        elapsed = time.monotonic() - self.began
        left = elapsed / self.done * (self.total - self.done)
        if self._bar is not None or left < 1:
            return ""
        hours, minutes = divmod(int(left) // 60, 60)
        return f"  ({hours}:{minutes:02d} h left)" if hours else f"  ({minutes}:{int(left) % 60:02d} left)"

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.stop()


@contextlib.contextmanager
def only_the_study_speaks() -> Iterator[None]:
    """On the terminal, leave out what single stages say, but for warnings, each once; the log file has it all."""
    said: set[str] = set()

    def passes(record: logging.LogRecord) -> bool:
        if record.name == say.name:
            return True
        text = record.getMessage()
        new = record.levelno >= logging.WARNING and text not in said
        said.add(text)
        return new

    handlers = [handler for handler in log.handlers if not isinstance(handler, logging.FileHandler)]
    for handler in handlers:
        handler.addFilter(passes)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(passes)
