"""The lines of a text file, plain or gzipped, each with its number."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from sdfast.data.encoding import SAMPLE, UTF8, marked_encoding, suggestion, wide_encoding
from sdfast.errors import UserError, said
from sdfast.regular import open_regular

LONGEST_LINE = 64 << 20  # bytes
_UNPACKED = 256 << 20  # characters that any gzipped file may hold
_BLANK_LINES = 1 << 20  # that any file may hold; a longer one may hold nine for each that is not blank
_RATIO = 250  # so many times its size a larger one may hold; text has 3 to 50


def read_lines(path: Path, what: str = "text", encoding: str = UTF8) -> Iterator[tuple[int, str]]:
    r"""Yield (number from 1, line with its end). Lines end at "\n" alone, whatever else Unicode calls a line.

    Where a file has no "\n" they end at "\r", as old spreadsheets write it. One line is in memory at a time.

    Args:
        path: gzipped when it ends in .gz.
        what: the file ought to be, for the sentence.
        encoding: of a file that does not begin with a byte order mark.

    Raises:
        UserError: no regular file, a line that is not of the encoding (its number and the encoding that fits are
            named) or longer than 64 MiB, hardly anything but blank lines, or damaged compression, or such as is no
            text's.
    """
    packed = path.name.lower().endswith(".gz")
    try:
        with open_regular(path) as plain:
            if packed:
                with gzip.open(plain) as file:
                    lines = _decoded_lines(path, cast(BinaryIO, file), what, encoding)
                    limit = max(_UNPACKED, _RATIO * os.fstat(plain.fileno()).st_size)
                    yield from _few_blank(path, _bounded(path, lines, limit))
            else:
                yield from _few_blank(path, _decoded_lines(path, plain, what, encoding))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file: {error}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {said(error)}.") from error


def _decoded_lines(path: Path, file: BinaryIO, what: str, encoding: str) -> Iterator[tuple[int, str]]:
    start = file.read(SAMPLE)
    if start is None:  # of the kernel's files, some are regular by name and wait for what is not there yet
        raise UserError(f"{path} is no file that holds text: there is nothing to read in it now.")
    marked = marked_encoding(start)
    if marked is None and encoding == UTF8 and (wide := wide_encoding(start)) is not None:
        raise UserError(f"{path} is not a UTF-8 {what}: it looks like {wide}; set data.encoding={wide}.")
    encoding = marked or encoding
    file.seek(0)
    if "\n".encode(encoding) == b"\n" or encoding == "utf-8-sig":
        lone_returns = b"\n" not in start and _lone_returns(file)
        file.seek(len("\ufeff".encode()) if marked else 0)
        if not lone_returns:
            yield from _byte_lines(path, file, what, "utf-8" if marked else encoding)
            return
    yield from _text_lines(path, file, what, "utf-8" if marked == "utf-8-sig" else encoding)


def _byte_lines(path: Path, file: BinaryIO, what: str, encoding: str) -> Iterator[tuple[int, str]]:
    r"""The lines of a file whose encoding has "\n" as one byte."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        _check_length(path, number, len(line))
        try:
            yield number, line.decode(encoding)
        except UnicodeDecodeError as error:
            hint = _hint(file, line[error.start if error.start >= SAMPLE else 0 :], encoding)
            raise UserError(
                f"{path} line {number} is not a {_called(encoding)} {what}: {error.reason}.{hint}"
            ) from error


def _text_lines(path: Path, file: BinaryIO, what: str, encoding: str) -> Iterator[tuple[int, str]]:
    r"""The lines of a file that has to be decoded first, or whose lines end at "\r"; the end is always "\n"."""
    number = 0
    try:
        with io.TextIOWrapper(file, encoding, newline=None) as text:
            while line := text.readline(LONGEST_LINE + 1):
                number += 1
                _check_length(path, number, len(line))
                yield number, line
    except UnicodeError as error:  # UTF-16 has one of its own where a mark is missing
        reason = getattr(error, "reason", str(error))
        raise UserError(f"{path} is not a {_called(encoding)} {what} after line {number}: {reason}.") from error


def _lone_returns(file: BinaryIO) -> bool:
    r"""Whether a file has "\r" and no "\n"."""
    file.seek(0)
    found = False
    while block := file.read(1 << 20):
        if b"\n" in block:
            return False
        found = found or b"\r" in block
    return found


def _check_length(path: Path, number: int, length: int) -> None:
    if length > LONGEST_LINE:
        raise UserError(
            f"{path} line {number} is longer than {LONGEST_LINE:,} bytes, which is no line of a text file; cut it, or "
            "pass each document as a file of its own."
        )


def _bounded(path: Path, lines: Iterator[tuple[int, str]], limit: int) -> Iterator[tuple[int, str]]:
    size = 0
    for number, line in lines:
        size += len(line)
        if size > limit:
            raise UserError(
                f"{path} unpacks to more than {limit:,} characters, which is too much for a text of its size; unpack "
                "it and look."
            )
        yield number, line


def _few_blank(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    blank = 0
    for number, line in lines:
        if line.isspace():
            blank += 1
            if blank > max(_BLANK_LINES, 0.9 * number):
                raise UserError(
                    f"{path} holds hardly anything but blank lines ({blank:,} of its first {number:,}); remove them, "
                    "or look at what wrote it."
                )
        yield number, line


def _called(encoding: str) -> str:
    return encoding.upper() if encoding.startswith("utf") else encoding


def _hint(file: BinaryIO, line: bytes, encoding: str) -> str:
    """What fits better, from the line and what follows it."""
    sample = line[:SAMPLE] + file.read(SAMPLE)
    return f" {suggestion(sample, line[:SAMPLE])}" if encoding == UTF8 else ""
