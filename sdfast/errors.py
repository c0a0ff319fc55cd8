"""The two errors a person may see: one sentence that names the thing and the fix, never a traceback."""

from __future__ import annotations

_LONGEST = 80  # characters of a value in a sentence


class SdfastError(Exception):
    """Base of the errors that the command line prints as one sentence.

    Attributes:
        everywhere: whether all processes of a job raise it, and the first one's word is enough.
    """

    exit_code = 1
    everywhere = False


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


def said(error: OSError) -> str:
    """What the system says is wrong, for the middle of a sentence."""
    return (error.strerror or str(error)).lower()


def shortened(value: object) -> str:
    """A value as a sentence shows it, whatever its length."""
    if isinstance(value, int) and value.bit_length() > 4 * _LONGEST:
        return f"a number of {value.bit_length()} bits"
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
