"""The lines of a UTF-8 file, plain or gzipped, each with its number."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from sdfast.errors import UserError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(path: Path, what: str = "text") -> Iterator[tuple[int, str]]:
    r"""Yield (number from 1, line with its end). Lines end at "\n" alone, whatever else Unicode calls a line.

    Args:
        path: gzipped when it ends in .gz.
        what: the file ought to be, for the sentence.

    Raises:
        UserError: a line that is not UTF-8 (its number is named), or damaged compression.
    """
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as file:
        number = 0
        try:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} line {number} is not a UTF-8 {what}: {error.reason}.") from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path} is not a whole gzip file: {error}.") from error
