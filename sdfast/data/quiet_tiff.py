"""libtiff without its own lines on stderr: for each damaged file it would print several, which Python cannot catch."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_SETTERS = ("TIFFSetErrorHandler", "TIFFSetWarningHandler")


@contextlib.contextmanager
def quiet_libtiff() -> Iterator[None]:
    """Take libtiff's message handlers away for a while; what went wrong PIL still raises.

    Where libtiff is no shared library of the process, nothing is done.
    """
    with contextlib.ExitStack() as stack:
        for library in _loaded():
            for name in _SETTERS:
                setter = getattr(library, name)
                setter.restype, setter.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
                stack.callback(setter, setter(None))
        yield


def _loaded() -> list[ctypes.CDLL]:
    """The libtiffs in the process (a package may bring its own)."""
    try:
        lines = _MAPS.read_text().splitlines()
        paths = {line.split(maxsplit=5)[-1] for line in lines if "/libtiff" in line}
        libraries = [ctypes.CDLL(path) for path in sorted(paths)]
    except OSError:  # another system, or a file that has been replaced since
        return []
    return [library for library in libraries if all(hasattr(library, name) for name in _SETTERS)]
