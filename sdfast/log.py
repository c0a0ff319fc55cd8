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

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("sdfast")  # without a handler, Python prints its warnings to stderr

_SECONDS_BETWEEN_LINES = 5.0


@functools.cache
def _console(stream: TextIO | None) -> Console:
    from rich.console import Console

    return Console(file=stream or io.StringIO())


def console() -> Console:
    """The one console on stderr that messages and progress bars share, so that neither tears the other."""
    return _console(sys.stderr)


def attach_file(path: Path) -> logging.Handler:
    """Also write the messages, with their time, to `path`; remove the returned handler to stop."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    return handler


def progress_lines(what: str, many: str = "images") -> Callable[[int, int], None]:
    """Says every few seconds how far a long reading is."""
    said = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= _SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            log.info("%s: %d of %d %s", what, done, total, many)

    return report
