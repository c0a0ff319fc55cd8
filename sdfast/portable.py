"""What systems do differently: how files are opened, read in their midst, flushed and held, and what a machine has.

sdfast is made for Linux. On macOS and Windows each of these has a way of its own, so that the package imports and
trains there without the compiled core.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import threading
from typing import BinaryIO

# Flags of `os.open` that a system may lack; none is needed for what is then read or written to be right.
BINARY: int = getattr(os, "O_BINARY", 0)  # Windows would else translate the ends of lines
NEVER_WAIT: int = getattr(os, "O_NONBLOCK", 0) | BINARY
NO_LINKS: int = getattr(os, "O_NOFOLLOW", 0) | BINARY
NOT_INHERITED: int = getattr(os, "O_CLOEXEC", 0)  # Python sees to that by itself

_seeking = threading.Lock()


def hold(file: BinaryIO, wait: bool = False) -> None:
    """Lock a file against other processes, until it is closed.

    Args:
        file: open; on Windows its first byte is locked, which need not exist.
        wait: until whoever holds it is done.

    Raises:
        BlockingIOError: another process holds it.
        OSError: files cannot be locked there.
    """
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
                return
            except PermissionError as error:  # of LK_NBLCK: it is held
                raise BlockingIOError(*error.args) from error
            except OSError as error:  # of LK_LOCK, which tries for ten seconds
                if not wait or error.errno != errno.EDEADLK:
                    raise
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def held_by_another(file: BinaryIO) -> bool:
    """Whether a process holds an open file (see `hold`); nothing is written, and it is let go at once.

    Raises:
        OSError: files cannot be locked there.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)
    except (BlockingIOError, PermissionError):
        return True
    return False


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """At most so many bytes of a file from a place on; where it stands may change, and any thread may call it."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)


def read_into_at(descriptor: int, view: memoryview, offset: int) -> int:
    """Fill the beginning of a view from a place in a file on; returns how many bytes, 0 at its end."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [view], offset)
    data = read_at(descriptor, len(view), offset)
    view[: len(data)] = data
    return len(data)


def write_at(descriptor: int, view: memoryview, offset: int) -> int:
    """Write the beginning of a view at a place in a file; returns how many bytes."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, view, offset)
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, view)


def flush_data(descriptor: int) -> None:
    """Bring what was written to a file to the disk; of its attributes what is needed to read it."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def flush_path(path: str | os.PathLike[str]) -> None:
    """Flush one file or directory entry to the disk; Windows flushes no directories."""
    if sys.platform == "win32":
        if os.path.isdir(path):
            return
        flags = os.O_RDWR | BINARY
    else:
        flags = os.O_RDONLY
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def expect(descriptor: int, offset: int, size: int) -> None:
    """Let the system begin to read a part of a file, where it takes such a hint."""
    if sys.platform == "linux":
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)


def processors() -> int:
    """CPUs that this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def c_library() -> ctypes.CDLL | None:
    """The C library of the process; None on Windows, where there is no such one."""
    return None if sys.platform == "win32" else ctypes.CDLL(None)


def memory_bytes() -> int:
    """Memory of the machine."""
    if sys.platform == "win32":
        return _windows_memory().total
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_memory_bytes() -> int:
    """Memory that can be had now; on macOS, which does not tell, a quarter of all."""
    if sys.platform == "win32":
        return _windows_memory().free
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "darwin":
        return memory_bytes() // 4
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class _MemoryStatus(ctypes.Structure):
    """`MEMORYSTATUSEX` of Windows."""

    total: int
    free: int
    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("free", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 5),
    )


if sys.platform == "win32":

    def _windows_memory() -> _MemoryStatus:
        status = _MemoryStatus()
        status.length = ctypes.sizeof(status)
        if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            raise ctypes.WinError()
        return status
