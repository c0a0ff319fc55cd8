"""Keep freed memory while a CPU stage trains: fresh pages cost more than a memory-bound operation that fills them."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_NEVER, _DEFAULT = 2**31 - 1, 128 * 1024


@contextlib.contextmanager
def freed_pages_kept() -> Iterator[bool]:
    """Inside the block, glibc neither maps large blocks one by one nor gives freed memory back to the system.

    Yields:
        whether the C library took the settings; elsewhere than on glibc nothing is changed.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield False
        return
    taken = [library.mallopt(name, _NEVER) == 1 for name in (_TRIM_THRESHOLD, _MMAP_THRESHOLD)]
    try:
        yield all(taken)
    finally:
        for name in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            library.mallopt(name, _DEFAULT)
        library.malloc_trim(0)
