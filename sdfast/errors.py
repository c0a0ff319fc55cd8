"""The two errors a person may see: one sentence that names the thing and the fix, never a traceback."""

from __future__ import annotations

import difflib
import re

_LONGEST = 80  # characters of a value in a sentence
_LONGEST_WORD = 400


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


def of_the_system(error: Exception) -> bool:
    """Whether an error says what the system said of a file, not what is wrong with what was asked for."""
    return isinstance(error.__cause__, OSError)


def brief(sentence: str) -> str:
    """A sentence without the middle of names that nobody reads to their end, as a path or label of a megabyte."""
    return re.sub(r"\S+", lambda word: _ends(word[0]), sentence)


def _ends(word: str) -> str:
    return word if len(word) <= _LONGEST_WORD else f"{word[: 3 * _LONGEST_WORD // 4]}...{word[-_LONGEST_WORD // 4 :]}"


def shortened(value: object) -> str:
    """A value as a sentence shows it, whatever its length."""
    if isinstance(value, int) and value.bit_length() > 4 * _LONGEST:
        return f"a number of {value.bit_length()} bits"
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def nearest(word: str, choices: list[str], otherwise: str | None = None) -> str:
    """The end of an error about a word that is none of the choices; `otherwise` is what it says when none is near."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"{otherwise or 'choose one of ' + ', '.join(choices)}."
