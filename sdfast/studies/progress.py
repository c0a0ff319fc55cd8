"""What a person sees while a study runs: one line for each stage that is done, or a bar on a terminal."""

from __future__ import annotations

import contextlib
import logging
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from sdfast.log import clock_time, console, log
from sdfast.studies.plan import Node

say = log.getChild("study")


class Progress:
    """Counts the stages of a study, several at a time on a bar where there is a terminal."""

    def __init__(self, todo: Sequence[Node], jobs: int, tell: Callable[[int, int], object] = lambda *_: None) -> None:
        """Begin.

        Args:
            todo: what is to be trained.
            jobs: how many at a time.
            tell: after each stage, how many are done of how many.
        """
        self._tell = tell
        self.done, self.total, self.jobs = 0, len(todo), jobs
        self._left = Counter(node.task.stage for node in todo)
        self._took: dict[str, list[float]] = {}
        columns = (TextColumn("[bold]stages"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn())
        hidden = jobs == 1 or not console().is_terminal
        self._bar = Bar(*columns, console=console(), disable=hidden)
        self._stages = self._bar.add_task("stages", total=self.total)

    def shown(self) -> contextlib.AbstractContextManager[object]:
        """Show the bar inside; one that is hidden is left alone, as an older rich ends it with a blank line."""
        return contextlib.nullcontext() if self._bar.disable else self._bar

    def finished(self, node: Node) -> None:
        """Say that a stage was trained, or was not."""
        self.done += 1
        self._left[node.task.stage] -= 1
        name = node.named(node.shared_by)
        if node.failure is not None:
            say.error("%d/%d  %s failed: %s", self.done, self.total, name, node.failure)
        elif (run := node.result) is not None:
            self._took.setdefault(run.stage, []).append(run.seconds)
            score = run.metrics.get(run.paper_metric or "accuracy", run.metrics.get("mean_average_precision"))
            ended = f", {100 * score:.1f} %" if score is not None else ""
            if "r2" in run.metrics:
                ended = f", R2 {run.metrics['r2']:.3f}"
            say.info("%d/%d  %s: %.0f s%s%s", self.done, self.total, name, run.seconds, ended, self._time_left())
        self._bar.update(self._stages, completed=self.done)
        self._tell(self.done, self.total)

    def _time_left(self) -> str:
        """What is left of each kind of stage takes what those that are done took; unknown while none is."""
        left = {stage: count for stage, count in self._left.items() if count}
        if left.keys() - self._took.keys():
            return ""
        seconds = sum(count * statistics.fmean(self._took[stage]) for stage, count in left.items())
        return f"  {clock_time(seconds / self.jobs)} left" if seconds >= 1 else ""


@contextlib.contextmanager
def only_the_study_speaks() -> Iterator[None]:
    """On the terminal, leave out what single stages say, but for warnings, each once; the log files have it all."""
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
