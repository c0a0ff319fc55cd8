"""The lines of a text file, plain or gzipped, each with its number; how its letters are written.

An encoding is what a byte order mark says, or what a person says; where UTF-8 does not fit, one that does is suggested.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from sdfast.errors import UserError, said
from sdfast.regular import open_regular

LONGEST_LINE = 64 << 20  # bytes
_UNPACKED = 256 << 20  # characters that any gzipped file may hold
_BLANK_LINES = 1 << 20  # that any file may hold; a longer one may hold nine for each that is not blank
_RATIO = 250  # so many times its size a larger one may hold; text has 3 to 50
UTF8 = "utf-8"
SAMPLE = 1 << 16  # bytes at a file's beginning that are looked at

_MARKS = (  # the longer ones first: that of UTF-32 begins as that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_RUN = re.compile(rb"[\x80-\xff]+")
_HALF = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")  # of a surrogate pair, by itself
_SHOWN = 20  # letters of context in a sentence


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
    with readable(path), open_regular(path) as plain, gzip.open(plain) if packed else plain as file:
        limit = max(_UNPACKED, _RATIO * os.fstat(plain.fileno()).st_size) if packed else None
        yield from _bounded(path, _decoded_lines(path, cast(BinaryIO, file), what, encoding), limit)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """What goes wrong while a file is read becomes a `UserError` that names it."""
    try:
        yield
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
            hint, start = "", line[error.start if error.start >= SAMPLE else 0 :][:SAMPLE]
            if encoding == UTF8:  # what fits better, from the line and what follows it
                hint = f" {suggestion(start + file.read(SAMPLE), start)}"
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


def _bounded(path: Path, lines: Iterator[tuple[int, str]], limit: int | None = None) -> Iterator[tuple[int, str]]:
    """Lines of at most so many characters in all, where there is a limit, and few of them blank."""
    size = blank = 0
    for number, line in lines:
        size += len(line)
        if limit is not None and size > limit:
            raise UserError(
                f"{path} unpacks to more than {limit:,} characters, which is too much for a text of its size; unpack "
                "it and look."
            )
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


def _share(letters: str) -> Callable[[str], bool]:
    """Whether most letters beyond ASCII are such."""
    pattern = re.compile(letters)

    def mostly(text: str) -> bool:
        beyond = [letter for letter in text if letter > "\x7f"]
        return 2 * len(pattern.findall(text)) > len(beyond)

    return mostly


_CANDIDATES: tuple[tuple[str, Callable[[str], bool]], ...] = (  # for files whose letters beyond ASCII come in runs
    ("cp932", lambda text: re.search("[\u3041-\u30fe]", text) is not None),  # Japanese has kana
    ("euc_jp", lambda text: re.search("[\u3041-\u30fe]", text) is not None),
    ("cp949", _share("[\uac00-\ud7a3]")),
    ("gb18030", _share("[\u4e00-\u9fff\u3000-\u303f\uff00-\uff60]")),
    ("big5", _share("[\u4e00-\u9fff\u3000-\u303f\uff00-\uff60]")),
    ("cp1251", _share("[\u0410-\u044f\u0401\u0451]")),
    ("cp1253", _share("[\u0386-\u03ce]")),
)


def marked_encoding(start: bytes) -> str | None:
    """The encoding that a byte order mark at the beginning of a file says, or None without one."""
    return next((name for mark, name in _MARKS if start.startswith(mark)), None)


def wide_encoding(start: bytes) -> str | None:
    """UTF-16 of one byte order where every other byte of a sample is nearly always zero, as it is for Latin letters."""
    pairs = len(start) // 2
    even, odd = start[0 : 2 * pairs : 2].count(0), start[1 : 2 * pairs : 2].count(0)
    if pairs < 4 or max(even, odd) < 0.4 * pairs or min(even, odd) > 0.05 * pairs:
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def fitting_encoding(sample: bytes) -> str:
    """The encoding in which bytes that are not UTF-8 are most likely text. It is a guess, for a person to check."""
    if wide := wide_encoding(sample):
        return wide
    runs = _RUN.findall(sample)
    if len(b"".join(runs)) >= 2 * len(runs):  # of Latin letters more are alone, for all the words like Größe
        for name, fits in _CANDIDATES:
            if (text := decoded(sample, name)) is not None and fits(text):
                return name
    return "cp1252" if decoded(sample, "cp1252") is not None else "latin-1"


def decoded(content: bytes, encoding: str) -> str | None:
    """Bytes as text, or None where they are not of that encoding; of a last letter that was cut, nothing."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(content)
    except UnicodeDecodeError:
        return None


def remedy(content: bytes | NDArray[np.uint8]) -> str:
    """The same for the content of a document, and a blank; "" where it is UTF-8, or UTF-8 but for half of a surrogate
    pair, which no encoding explains."""
    content = bytes(content)
    try:
        content.decode(UTF8)
    except UnicodeDecodeError as error:
        if _HALF.match(content, error.start):
            return ""
        end = content.find(b"\n", error.start)
        line = content[content.rfind(b"\n", 0, error.start) + 1 : None if end < 0 else end]
        return f"{suggestion(content[:SAMPLE] + line[:SAMPLE], line[:SAMPLE])} "
    return ""


def suggestion(sample: bytes, line: bytes) -> str:
    """A sentence: which encoding fits a sample, and how a line of it that is not UTF-8 reads in that encoding."""
    encoding = fitting_encoding(sample)
    text = decoded(line, encoding) or ""
    first = next((at for at, letter in enumerate(text) if letter > "\x7f"), 0)
    shown = " ".join(text[max(first - _SHOWN, 0) : first + _SHOWN].split())
    advice = f"if that is right, set data.encoding={encoding}, else the one it was saved in"
    return f"In {encoding} it reads {shown!r}; {advice}."
