"""The lines of a text file, plain or gzipped, each with its number; how its letters are written.

An encoding is what a byte order mark says, or what a person says; where UTF-8 does not fit, one that does is suggested,
or taken where it is cp1252 and somebody can be told.
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
from typing import BinaryIO, TextIO, cast

import numpy as np
from numpy.typing import NDArray

from sdfast.errors import UserError, said
from sdfast.regular import open_regular

LONGEST_LINE = 64 << 20  # bytes
_UNPACKED = 256 << 20  # characters that any gzipped file may hold
_BLANK_LINES = 1 << 20  # that any file may hold; a longer one may hold nine for each that is not blank
_RATIO = 250  # so many times its size a larger one may hold; text has 3 to 50
UTF8 = "utf-8"
_LATIN = "cp1252"  # as programs for Windows write Latin letters
SAMPLE = 1 << 16  # bytes at a file's beginning that are looked at

_MARKS = (  # the longer ones first: that of UTF-32 begins as that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_RUN = re.compile(rb"[\x80-\xff]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")  # no text of Latin letters
_IN_WORD = re.compile(rb"(?<=[A-Za-z])[\x80-\xff]{1,3}(?![\x80-\xff])|(?<![\x80-\xff])[\x80-\xff]{1,3}(?=[A-Za-z])")
_EAST_ASIAN = "[\u3041-\u30fe\u4e00-\u9fff\uac00-\ud7a3]"
_BY_LETTER = re.compile(f"(?<=[A-Za-z]){_EAST_ASIAN}|{_EAST_ASIAN}(?=[A-Za-z])")
_TWO_BYTES = ("cp932", "big5", "cp949", "gb18030")
_HALF = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")  # of a surrogate pair, by itself
_SHOWN = 20  # letters of context in a sentence


def read_lines(
    path: Path, what: str = "text", encoding: str = UTF8, say: Callable[[str], object] | None = None
) -> Iterator[tuple[int, str]]:
    r"""Yield (number from 1, line with its end). Lines end at "\n" alone, whatever else Unicode calls a line.

    Where a file has no "\n" they end at "\r", as old spreadsheets write it. One line is in memory at a time.

    Args:
        path: gzipped when it ends in .gz.
        what: the file ought to be, for the sentence.
        encoding: of a file that does not begin with a byte order mark.
        say: is told, in a sentence without a full stop, that a file is read as cp1252: where it was to be UTF-8, all
            lines are ASCII up to one that is not UTF-8, and that one and what follows it look like Latin letters.
            Where not given, such a line is an error as others are.

    Raises:
        UserError: no regular file, a line that is not of the encoding (its number and the encoding that fits are
            named) or longer than 64 MiB, UTF-8 in a file that is read as cp1252, hardly anything but blank lines, or
            damaged compression, or such as is no text's.
    """
    packed = path.name.lower().endswith(".gz")
    with readable(path), open_regular(path) as plain, gzip.open(plain) if packed else plain as file:
        limit = max(_UNPACKED, _RATIO * os.fstat(plain.fileno()).st_size) if packed else None
        lines, encoding = _decoder(path, cast(BinaryIO, file), what, encoding)
        marked = lines is file and file.tell() > 0
        yield from _numbered(path, lines, encoding, what, limit, None if marked else say)


def suffix_of(path: Path) -> str:
    """The suffix of a file, before .gz, in small letters and without the dot."""
    return path.name.lower().removesuffix(".gz").rpartition(".")[2]


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """What goes wrong while a file is read becomes a `UserError` that names it."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file: {error}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {said(error)}.") from error


def _decoder(path: Path, file: BinaryIO, what: str, encoding: str) -> tuple[BinaryIO | TextIO, str]:
    r"""What to read lines from, and their encoding.

    It is the file itself where "\n" is one byte of it. Where it has to be decoded first, or its lines end at "\r", it
    is a text whose lines all end at "\n".
    """
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
            return file, UTF8 if marked else encoding
    encoding = UTF8 if marked == "utf-8-sig" else encoding
    return io.TextIOWrapper(file, encoding, newline=None), encoding


def _numbered(
    path: Path,
    file: BinaryIO | TextIO,
    encoding: str,
    what: str,
    limit: int | None,
    say: Callable[[str], object] | None,
) -> Iterator[tuple[int, str]]:
    """The lines, of at most so many characters in all, where there is a limit, and few of them blank."""
    number = size = blank = latin_from = 0
    ascii_so_far = True
    try:
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise UserError(
                    f"{path} line {number} is longer than {LONGEST_LINE:,} bytes, which is no line of a text file; cut "
                    "it, or pass each document as a file of its own."
                )
            if isinstance(line, str):
                text = line
            elif latin_from and not line.isascii() and decoded(line, UTF8) is not None:
                raise UserError(
                    f"{path} line {number} is UTF-8 and line {latin_from} is not, but reads in {_LATIN}: save the file "
                    f"in one encoding, or set data.encoding={_LATIN} to read all of it so."
                )
            else:
                try:
                    text = line.decode(encoding)
                except UnicodeDecodeError as error:
                    sample = _sample(line, error.start) + _ahead(cast(BinaryIO, file))
                    if say is None or encoding != UTF8 or not ascii_so_far or not _is_latin(sample):
                        raise
                    text, encoding, latin_from = line.decode(_LATIN), _LATIN, number
                    say(_told_latin(path, number, text))
                ascii_so_far = ascii_so_far and text.isascii()
            size += len(text)
            if limit is not None and size > limit:
                raise UserError(
                    f"{path} unpacks to more than {limit:,} characters, which is too much for a text of its size; "
                    "unpack it and look."
                )
            blank += text.isspace()
            if text.isspace() and blank > max(_BLANK_LINES, 0.9 * number):
                raise UserError(
                    f"{path} holds hardly anything but blank lines ({blank:,} of its first {number:,}); remove them, "
                    "or look at what wrote it."
                )
            yield number, text
    except UnicodeError as error:  # UTF-16 has one of its own where a mark is missing
        kind = f"a {encoding.upper() if encoding.startswith('utf') else encoding} {what}"
        reason = getattr(error, "reason", str(error))
        if not isinstance(error, UnicodeDecodeError) or isinstance(file, io.TextIOBase):
            raise UserError(f"{path} is not {kind} after line {number}: {reason}.") from error
        hint, start = "", _sample(cast(bytes, line), error.start)
        if encoding == UTF8:  # what fits better, from the line and what follows it
            hint = f" {suggestion(start + _ahead(cast(BinaryIO, file)), start)}"
            if not ascii_so_far:
                hint += " But lines before it are UTF-8 beyond ASCII: of two encodings in one file, save it in one."
        elif latin_from:
            hint = f" Line {latin_from} is not UTF-8; set data.encoding to the one that the file was saved in."
        raise UserError(f"{path} line {number} is not {kind}: {reason}.{hint}") from error


def _sample(line: bytes, at: int) -> bytes:
    """The beginning of a line, or what follows an index that is further behind."""
    return line[at if at >= SAMPLE else 0 :][:SAMPLE]


def _ahead(file: BinaryIO) -> bytes:
    """A sample of what comes next, which is read again then."""
    at = file.tell()
    sample = file.read(SAMPLE)
    file.seek(at)
    return sample


def _is_latin(sample: bytes) -> bool:
    """Whether bytes that are not UTF-8 are surely enough text in cp1252.

    Most letters beyond ASCII stand alone, or next to a letter of ASCII as in "Größe" and "ação"; and it is not as well
    text in an encoding of two bytes a letter, of which the second may be as in ASCII.
    """
    runs = _RUN.findall(sample)
    alone = len(b"".join(runs)) < 2 * len(runs) or _is_within_words(sample)
    text = _CONTROL.search(sample) is None and decoded(sample, _LATIN) is not None
    return alone and text and not any(_is_east_asian(sample, name) for name in _TWO_BYTES)


def _is_within_words(sample: bytes) -> bool:
    """Whether most runs of bytes beyond ASCII are short and touch a letter of ASCII."""
    return 2 * len(_IN_WORD.findall(sample)) > len(_RUN.findall(sample))


def _is_east_asian(sample: bytes, encoding: str) -> bool:
    """Whether bytes are text of that encoding in which most letters of East Asia do not touch a letter of ASCII."""
    text = decoded(sample, encoding) or ""
    return 2 * len(_BY_LETTER.findall(text)) < len(re.findall(_EAST_ASIAN, text))


def _told_latin(path: Path, number: int, text: str) -> str:
    return (
        f"line {number} of {path.name} is not UTF-8, so the file is read as {_LATIN}, in which it says "
        f"{_shown(text)!r}; if that is wrong, name the right one by data.encoding"
    )


def _lone_returns(file: BinaryIO) -> bool:
    r"""Whether a file has "\r" and no "\n"."""
    file.seek(0)
    found = False
    while block := file.read(1 << 20):
        if b"\n" in block:
            return False
        found = found or b"\r" in block
    return found


_KANA, _HAN = "[\u3041-\u30fe]", "[\u4e00-\u9fff\u3000-\u303f\uff00-\uff60]"
_CANDIDATES = (  # for files whose letters beyond ASCII come in runs; more than this share of those are such letters
    ("cp932", _KANA, 0.0),  # Japanese has kana
    ("euc_jp", _KANA, 0.0),
    ("cp949", "[\uac00-\ud7a3]", 0.5),
    ("gb18030", _HAN, 0.5),
    ("big5", _HAN, 0.5),
    ("cp1251", "[\u0410-\u044f\u0401\u0451]", 0.5),
    ("cp1253", "[\u0386-\u03ce]", 0.5),
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
    if len(b"".join(runs)) >= 2 * len(runs) and not _is_within_words(sample):  # more Latin letters are alone
        for name, letters, share in _CANDIDATES:
            text = decoded(sample, name) or ""
            if len(re.findall(letters, text)) > share * sum(letter > "\x7f" for letter in text):
                return name
    return "cp1252" if decoded(sample, "cp1252") is not None else "latin-1"


def decoded(content: bytes, encoding: str) -> str | None:
    """Bytes as text, or None where they are not of that encoding; of a last letter that was cut, nothing."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(content)
    except UnicodeDecodeError:
        return None


def latin_text(content: bytes) -> str | None:
    """A document that is not UTF-8 in cp1252, by the rule of `read_lines`; None where it surely enough is none.

    No line of it is UTF-8 beyond ASCII, and the first that is not, with what follows, looks like Latin letters.
    """
    try:
        content.decode(UTF8)
    except UnicodeDecodeError as error:
        begin = content.rfind(b"\n", 0, error.start) + 1
        if (
            _HALF.match(content, error.start)
            or marked_encoding(content)
            or not _is_latin(_sample(content[begin : begin + SAMPLE + error.start], error.start - begin))
        ):
            return None
        if any(not line.isascii() and decoded(line, UTF8) is not None for line in content.split(b"\n")):
            return None
        return decoded(content, _LATIN)
    return None


def remedy(content: bytes | NDArray[np.uint8]) -> str:
    """What `suggestion` says of a document that is not UTF-8, and a blank.

    It is "" where the document is UTF-8, or is but for half of a surrogate pair, which no encoding explains.
    """
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
    shown = _shown(decoded(line, encoding) or "")
    advice = f"if that is right, set data.encoding={encoding}, else the one it was saved in"
    return f"In {encoding} it reads {shown!r}; {advice}."


def _shown(text: str) -> str:
    """A line around its first letter beyond ASCII."""
    first = next((at for at, letter in enumerate(text) if letter > "\x7f"), 0)
    return " ".join(text[max(first - _SHOWN, 0) : first + _SHOWN].split())
