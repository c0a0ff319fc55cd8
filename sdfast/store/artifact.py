"""An artefact: a directory of files known by content, and a manifest of their digests that is written last.

Packs, banks, checkpoints and the results of stages are artefacts. Each is built beside its place and put there whole
(`sdfast.durable`), and is read in the same order: what its manifest says has the right kinds and the manifest's own
digest, it is of what is asked for, no file is cut, and every file has the bytes that were written.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from sdfast.durable import check_seal, sha256_file
from sdfast.errors import shortened
from sdfast.regular import refuse


class Stored(BaseModel):
    """A JSON object whose values have the kinds that are named; it may have further ones."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


Each = Callable[..., Iterable[Any]]  # `map`, or what does the same in threads
Kind = TypeVar("Kind", bound=Stored)
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]  # SHA-256, hexadecimal
Count = Annotated[int, Field(ge=0, lt=2**63)]


class StoredFile(Stored):
    """One file beside a manifest."""

    bytes: Annotated[int, Field(gt=0, lt=2**63)]
    sha256: Digest


def fitted(kind: type[Kind], value: Any) -> Kind:
    """A JSON value as what it should be.

    Raises:
        ValueError: it differs from its own digest, where it has one, or is of another shape; the message says what.
    """
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    check_seal(value)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place, what = shortened(".".join(map(str, first["loc"]))), first["msg"].lower().removeprefix("value error, ")
        raise ValueError(f"its {place} does not fit: {what}") from None


def described(path: Path) -> dict[str, Any]:
    """What a manifest says of a file (see `StoredFile`)."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def first_cut(files: Iterable[tuple[Path, int]]) -> Path | None:
    """The first of some files that is absent, no regular file or of another size (in bytes) than it should have."""
    return next((path for path, size in files if _size(path) != size), None)


def first_changed(files: Iterable[tuple[Path, str]], each: Each = map) -> Path | None:
    """The first of some files that is not there, or whose SHA-256 is another than it should be.

    Args:
        files: with their digests.
        each: `map`, or one that uses threads.

    Raises:
        OSError: one cannot be read.
    """
    expected = list(files)
    digests = each(_digest_if_there, [path for path, _ in expected])
    return next((path for (path, digest), found in zip(expected, digests, strict=True) if found != digest), None)


def _digest_if_there(path: Path) -> str | None:
    return None if _size(path) is None else sha256_file(path)


def _size(path: Path) -> int | None:
    """Bytes of a regular file, by a link too; None where there is none."""
    try:
        status = path.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise  # a file that cannot be looked at just now is not gone
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def first_changed_key(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first name under which two identities have other values; None when they are equal."""
    return next((name for name in {**new, **old} if new.get(name) != old.get(name)), None)


def first_foreign(directory: Path, is_ours: Callable[[str], bool]) -> str | None:
    """The first name in a folder that is no part of the artefact, which would be lost as it is replaced."""
    names = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    return next((name for name in names if not is_ours(name)), None)


def files_in(folder: Path) -> dict[str, Path]:
    """All files in a folder and those below it, by their names in it; links to folders too. None without the folder.

    Raises:
        OSError: a folder cannot be listed (`Path.rglob` would pass over it).
    """
    paths = []
    for root, folders, names in os.walk(folder, onerror=refuse) if folder.is_dir() else ():
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        paths += [Path(root, name) for name in (*names, *links)]
    return {path.relative_to(folder).as_posix(): path for path in sorted(paths)}
