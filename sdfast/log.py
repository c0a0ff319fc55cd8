"""The package's logger: messages for a person go through it, to the terminal and to the run's log.txt."""

from __future__ import annotations

import functools
import io
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from sdfast.durable import check_appendable, explain_os_error, reason
from sdfast.errors import brief

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("sdfast")  # without a handler, Python prints its warnings to stderr

_SECONDS_BETWEEN_LINES = 5.0


def _brief(record: logging.LogRecord) -> bool:
    record.msg, record.args = brief(record.getMessage()), ()
    return True


log.addFilter(_brief)


@functools.cache
def _console(stream: TextIO | None) -> Console:
    from rich.console import Console

    return Console(file=stream or io.StringIO())


_progress = True


def show_progress(wanted: bool) -> None:
    """Whether bars, and lines that come and go, are shown."""
    global _progress
    _progress = wanted


def console() -> Console:
    """The one console on stderr that messages and progress bars share, so that neither tears the other."""
    return _console(sys.stderr if _progress else None)


class _LogFile(logging.FileHandler):
    """A log that the disk may refuse: the run goes on without it and says so once; what counts lies elsewhere."""

    lost = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.lost:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._give_up(error)
        else:
            super().handleError(record)

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # what was still to be written
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if not self.lost:
            self.lost = True
            log.warning("cannot write %s, and the run goes on without it: %s", self.baseFilename, reason(error))


def attach_file(path: Path) -> logging.Handler:
    """Also write the messages, with their time, to `path`; remove the returned handler to stop.

    Raises:
        UserError: something else than a file bears the name.
        RunError: it cannot be opened.
    """
    with explain_os_error(path):
        check_appendable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.setLevel(logging.INFO)
    log.addHandler(handler)
    log.setLevel(min(log.level or logging.INFO, logging.INFO))
    return handler


def clock_time(seconds: float) -> str:
    """A time as a person reads it on a clock: 2:05, or 1:02:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def progress_lines(what: str, plural: str = "images") -> Callable[[int, int], None]:
    """Says every few seconds how far a long reading is."""
    said = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= _SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            log.info("%s: %d of %d %s", what, done, total, plural)

    return report
