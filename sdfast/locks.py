"""Directories that this process works in: held against others, and watched, as they may be taken away meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sdfast.errors import RunError, UserError, said
from sdfast.portable import NEVER_WAIT, NOT_INHERITED, held_by_another, hold
from sdfast.regular import open_regular

_FILE = ".lock"
_LOOK_SECONDS = 0.05
_NOT_OURS_TO_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS)


class NotWritable(UserError):
    """A directory in which nothing may be written."""


# By absolute path: what the lock file and the directory are, whatever they are called by now.
_held: dict[Path, dict[Path, tuple[int, int]]] = {}


@contextlib.contextmanager
def locked(directory: Path, wait: bool = False) -> Iterator[None]:
    """Hold a directory, so that two processes never write the same one.

    Args:
        directory: a run's, or a stage's of a study.
        wait: until whoever holds it is done.

    Raises:
        RunError: it lies in one that this process holds, and that was taken away.
        UserError: another process holds it, or it cannot be used (`NotWritable` where that is for want of permission).
    """
    check_held(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | NEVER_WAIT | NOT_INHERITED  # never waits, whatever bears the name
        file = os.fdopen(os.open(directory / _FILE, flags, 0o666), "rb")
    except OSError as error:
        kind = NotWritable if error.errno in _NOT_OURS_TO_WRITE else UserError
        raise kind(f"--out {directory} cannot be used: {said(error)}; choose another --out.") from error
    try:
        _take(file, wait)
    except BlockingIOError:
        file.close()
        raise UserError(
            f"another sdfast process is working in {directory}; wait for it or choose another --out."
        ) from None
    except OSError as error:  # as of a network's disk that knows no locks
        file.close()
        raise UserError(f"--out {directory} cannot be locked: {said(error)}; choose another --out.") from error
    path = Path(os.path.abspath(directory))
    try:
        with file:
            _held[path] = {path / _FILE: _identity(os.fstat(file.fileno())), path: _identity(os.stat(path))}
            yield
    finally:
        _held.pop(path, None)


def _take(file: BinaryIO, wait: bool) -> None:
    try:
        hold(file, wait)
    except BlockingIOError:  # perhaps by one that only looks, see `in_use`
        time.sleep(_LOOK_SECONDS)
        hold(file, wait)


def in_use(directory: Path) -> bool:
    """Whether a process works in a directory; nothing is made there, and one that begins just now is not refused.

    Raises:
        OSError: its lock may not be read, or is none.
    """
    try:
        with open_regular(directory / _FILE) as file:
            return held_by_another(file)
    except (FileNotFoundError, NotADirectoryError):
        return False


def check_held(path: Path) -> None:
    """Whether the directories that this process holds, and in which a path lies, are still those that it took.

    Raises:
        RunError: one was removed, renamed or replaced, so that nothing more may be written there.
    """
    path = Path(os.path.abspath(path))
    for directory, held in list(_held.items()):
        if path.is_relative_to(directory) and not _still_there(held):
            raise RunError(
                f"{directory} was removed, renamed or replaced while this run was working in it, so nothing more is"
                " written there; if it was moved, give its new place as --out to go on from what was saved."
            )


def _still_there(held: dict[Path, tuple[int, int]]) -> bool:
    """Whether a held directory is the same: told by its lock file, or by itself where a person removed that file."""
    for path, identity in held.items():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return _identity(os.stat(path)) == identity
    return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
