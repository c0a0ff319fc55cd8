"""The two errors a person may see: one sentence that names the thing and the fix, never a traceback."""

from __future__ import annotations


class SdfastError(Exception):
    """Base of the errors that the command line prints as one sentence."""

    exit_code = 1


class UserError(SdfastError):
    """Bad usage or bad input (a path, a key, a file): exit code 2."""

    exit_code = 2


class RunError(SdfastError):
    """A run that started well and could not finish (non-finite loss, disk full): exit code 1."""


class Interrupted(SdfastError):
    """A signal asked the run to stop and its state was saved: exit code 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
