"""Which files are tar shards: those of a pattern, those of a folder; and the split that a shard's name says."""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from sdfast.data.modality import IMAGES, Modality
from sdfast.data.records import split_name, split_of_file
from sdfast.errors import UserError
from sdfast.regular import refuse

SUFFIX = ".tar"
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
_MOST_SHARDS = 1_000_000  # of a pattern
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?")
_WORD = re.compile(r"[a-zA-Z]+")


def is_pattern(spec: str) -> bool:
    """Whether it may be several shards: `photos-{000..012}.tar`, `{train,val}-{0..3}.tar` or `photos-*.tar`."""
    return spec.lower().endswith(SUFFIX) and any(mark in spec for mark in "{*?[")


def expanded(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for, in its order: `{a,b}` and `{08..12}`, as a shell has them.

    Raises:
        UserError: more than a million.
    """
    parts = _BRACES.split(pattern)
    choices = [[part] if at % 2 == 0 else _choices(part) for at, part in enumerate(parts)]
    if math.prod(map(len, choices)) > _MOST_SHARDS:
        raise UserError(f"{pattern} stands for more than {_MOST_SHARDS:,} shards; write fewer.")
    return ["".join(each) for each in itertools.product(*choices)]


def _choices(inside: str) -> Sequence[str]:
    """What a pair of braces stands for; itself where it is neither a list nor a range."""
    if match := _RANGE.fullmatch(inside):
        first, last, step = int(match[1]), int(match[2]), int(match[3] or 1) or 1
        if abs(last - first) // step >= _MOST_SHARDS:
            raise UserError(f"{{{inside}}} stands for more than {_MOST_SHARDS:,} shards; write fewer.")
        width = max(len(match[1]), len(match[2])) if "0" in (match[1][:1], match[2][:1]) else 0
        numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
        return [str(number).zfill(width) for number in numbers]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]


def is_there(spec: str) -> bool:
    """Whether a path exists, or of a pattern of shards one that it stands for."""
    path = os.path.expanduser(spec)
    if os.path.exists(path) or not is_pattern(spec):
        return os.path.exists(path)
    return any(glob.glob(name, recursive=True) or os.path.exists(name) for name in expanded(path))


def files_of_pattern(pattern: str, modality: Modality) -> list[Path]:
    """The shards that a pattern stands for, in its order, each once.

    Raises:
        UserError: one of them does not exist, or none fits a pattern with * or ?.
    """
    files: list[Path] = []
    missing: list[str] = []
    for name in expanded(os.path.expanduser(pattern)):
        wild = any(mark in name for mark in "*?[") and not os.path.exists(name)
        found = sorted(glob.glob(name, recursive=True)) if wild else [name] if os.path.exists(name) else []
        files += (Path(each).absolute() for each in found)
        missing += [] if found else [name]
    if missing and files:
        raise UserError(
            f"{pattern}: {len(missing):,} of its {len(files) + len(missing):,} shards do not exist (the first: "
            f"{missing[0]})."
        )
    if missing:
        raise UserError(f"{pattern}: no such shard exists (the first: {missing[0]}); --data takes {modality.accepted}.")
    return list(dict.fromkeys(files))


def shard_files(folder: Path, modality: Modality) -> list[Path]:
    """The shards at any depth of a folder, by name; none where it holds files of the modality themselves.

    Archives beside pictures, or beside folders of them, are what the pictures came in.

    Raises:
        UserError: it has no shards, nor files of the modality, but compressed archives.
        OSError: a folder cannot be listed.
    """
    found: list[Path] = []
    packed: list[Path] = []
    seen: set[str] = set()
    for where, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(where)) in seen:  # a link back, or a second one
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = sorted(name for name in files if not name.startswith("."))
        here = [Path(where, name) for name in visible if name.lower().endswith(SUFFIX)]
        contents = any(os.path.splitext(name)[1].lower() in modality.suffixes for name in visible)
        if contents and (modality is IMAGES or not here):
            return []
        found += here
        packed += [Path(where, name) for name in visible if name.lower().endswith(PACKED)]
    if packed and not found:
        raise UserError(refusal(packed[0]))
    return found


def refusal(path: Path) -> str:
    """A sentence about a compressed archive."""
    return (
        f"{path} is an archive: unpack it and pass the folder, or, of webdataset shards, the .tar files without "
        "compression (pictures are compressed already), as gunzip makes them."
    )


def split_of_shard(name: str) -> str | None:
    """The split of a shard: as of other files, or else the only one that a word of its name says (`birds-train-00`)."""
    words = {split_name(word) for word in _WORD.findall(name.rpartition("/")[2])} - {None}
    return split_of_file(name) or (words.pop() if len(words) == 1 else None)
