"""How the letters of a text file are written: byte order marks, and what to suggest where UTF-8 does not fit."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

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
    """A sentence: which encoding fits, and how the letters in question read in it.

    Args:
        sample: some of the file, the line among it.
        line: bytes that are not UTF-8.
    """
    encoding = fitting_encoding(sample)
    text = decoded(line, encoding) or ""
    first = next((at for at, letter in enumerate(text) if letter > "\x7f"), 0)
    shown = " ".join(text[max(first - _SHOWN, 0) : first + _SHOWN].split())
    advice = f"if that is right, set data.encoding={encoding}, else the one it was saved in"
    return f"In {encoding} it reads {shown!r}; {advice}."
