"""The memory of this process: its largest resident size since a moment, where the system tells."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from sdfast.portable import c_library

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakGrowth:
    """How far the process has grown, at most, since this was made: bytes of resident memory."""

    def __init__(self) -> None:
        library = c_library()
        if library is not None and hasattr(library, "malloc_trim"):  # pages of freed memory would hide growth
            library.malloc_trim(0)
        self._start: int | None = None
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")  # proc(5): sets the largest size back to the present one
            self._start = _size("VmHWM")

    def bytes(self) -> int | None:
        """The growth so far; None where the system does not tell."""
        now = _size("VmHWM")
        return None if self._start is None or now is None else max(now - self._start, 0)


def _size(name: str) -> int | None:
    with contextlib.suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    return None
