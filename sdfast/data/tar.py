"""What a tar shard holds, found without reading its contents: where each member of each sample is."""

from __future__ import annotations

import errno
import os
import re
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from sdfast.errors import UserError
from sdfast.portable import read_at
from sdfast.regular import naming, open_regular

_BLOCK = 1 << 20  # bytes read at a time
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"(\xb5/\xfd")  # what gzip, bzip2, xz and zstd begin with


@dataclass(frozen=True)
class Member:
    """Where the bytes of a member are: so many from there on."""

    offset: int
    size: int


@dataclass
class Index:
    """What a shard holds.

    Attributes:
        samples: by key, in the order of their first members: the members by what follows the first dot.
        keyless: names of members without such a dot.
        odd: names of links, sparse files and devices.
    """

    samples: dict[str, dict[str, Member]] = field(default_factory=dict)
    keyless: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)


def index_of(path: Path, file: BinaryIO) -> Index:
    """Where the samples of a shard are; the contents are passed over.

    Raises:
        UserError: it is compressed, no tar archive, damaged, cut, or goes on behind its end; or a sample has two
            members of one kind.
    """
    found = Index()
    size = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else one of each is kept
                if info.isdir():
                    continue
                if not info.isreg() or info.sparse is not None:
                    found.odd.append(info.name)
                    continue
                name = info.name.removeprefix("./")
                match = _KEY.fullmatch(name)
                if match is None:
                    if not name.rpartition("/")[2].startswith("._"):  # what a Mac puts beside each file
                        found.keyless.append(info.name)
                    continue
                key, kind = match[1], match[2].lower()
                sample = found.samples.setdefault(key, {})
                if kind in sample:
                    raise UserError(
                        f"{path} holds {name} twice, and a sample has one of each kind: write the shard again, with a "
                        "name for each sample."
                    )
                sample[sys.intern(kind)] = Member(info.offset_data, info.size)
            end = archive.offset
    except (tarfile.TarError, ValueError, EOFError, MemoryError) as error:
        if read_at(file.fileno(), 6, 0).startswith(_COMPRESSED):
            raise UserError(f"{path} is compressed, and shards are read in place: unpack it (gunzip).") from error
        raise UserError(
            f"{path} is not a whole tar shard ({error}; it has {size:,} bytes): copy or write it again."
        ) from error
    _check_end(path, file, end, size)
    return found


def _check_end(path: Path, file: BinaryIO, end: int, size: int) -> None:
    """Refuse a shard that has no end, a damaged one whose members end early, and what was put behind an end."""
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise UserError(
            f"{path} is not a whole tar shard: it stops after {size:,} bytes without the mark of an end, as a copy "
            "that was interrupted or a writer that was not closed leaves it; copy or write it again."
        )
    if block.strip(b"\0"):
        raise UserError(f"{path} is damaged: byte {end:,} begins no member of a tar archive; copy or write it again.")
    at = end
    while block:
        if block.strip(b"\0"):
            raise UserError(
                f"{path} goes on behind its end, at byte {at:,} of {size:,}, as archives that were joined by cat do; "
                "pass them as shards of their own, or join them by tar --concatenate."
            )
        at += len(block)
        block = file.read(_BLOCK)


def read_member(path: Path, member: Member, where: str, most: int) -> bytes:
    """The bytes of a member, at most so many.

    Raises:
        OSError: it is too large, or cannot be read.
        UserError: the shard is not what it was when it was opened.
    """
    if member.size > most:
        raise OSError(errno.EFBIG, f"{member.size:,} bytes are more than the {most:,} that are read", where)
    with naming(path), open_regular(path) as file:
        file.seek(member.offset)
        content = file.read(member.size)
    if len(content) != member.size:
        raise UserError(f"{path} became shorter while it was read; run again when it is whole.")
    return content
