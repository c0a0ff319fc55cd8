"""Open regular files alone: a pipe, a socket or a device that bears a file's name may block, or never end."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sdfast.portable import NEVER_WAIT

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# What the system says of the file: it is absent, may not be read, is none, or is too large. Other errors may pass.
_OF_THE_FILE = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM),
        *(errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.EFBIG, errno.EILSEQ, None),
    }
)


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Give an error of the system that has no file's name, as that of a read, this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:  # others, as of gzip, would lose their text
            error.filename = str(path)
        raise


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading its bytes; links are followed. Never waits for a writer.

    Raises:
        OSError: it is not there, may not be read, or is something else: a directory, pipe, socket or device. So is a
            name that no file can have. `strerror` is fit for a sentence, as "a named pipe, not a regular file".
    """
    try:
        _check(os.stat(path).st_mode, path)  # before it is opened, which alone may move a tape or drain a pipe
        descriptor = os.open(path, os.O_RDONLY | NEVER_WAIT)
    except ValueError as error:  # a NUL in the name, or half of a surrogate pair
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from error
    try:
        _check(os.fstat(descriptor).st_mode, path)  # what was opened may be another file than the one looked at
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | Path, limit: int) -> bytes:
    """The bytes of a regular file, as many as it says to have (so of the kernel's files in /proc, which say 0, none).

    Args:
        path: links are followed.
        limit: most bytes that it may have; a larger one is not read.

    Raises:
        OSError: see `open_regular`; or it cannot be read or is larger (`errno` EFBIG). `filename` is the path.
    """
    with naming(path), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"{size:,} bytes are more than the {limit:,} that are read", str(path))
        return file.read(size)


def of_the_file(error: OSError) -> bool:
    """Whether an error will be the same the next time: not one of a disk, a network or a memory that fails just now."""
    return error.errno in _OF_THE_FILE


def refuse(error: OSError) -> None:
    """Raise what `os.walk` could not do: what cannot be listed is no empty folder."""
    raise error


def is_there(path: str | Path) -> bool:
    """Whether something has this name, be it a link to nothing.

    Raises:
        OSError: that cannot be told, as of a disk that fails: `os.path.lexists` then says no.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a name that no file can have
        return False
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return False
        raise
    return True


def _check(mode: int, path: str | Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        what = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"{what}, not a regular file", str(path))
