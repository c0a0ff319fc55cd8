"""The package's logger: messages for a person go through it, to the terminal and to the run's log.txt."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger("sdfast")
log.addHandler(logging.NullHandler())


def attach_file(path: Path) -> logging.Handler:
    """Also write the messages, with their time, to `path`; remove the returned handler to stop."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    return handler
