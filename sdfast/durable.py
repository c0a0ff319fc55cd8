"""Durable before visible: write beside, fsync, rename, fsync the directory; the old goes when the new is safe.

Every model, checkpoint, result and manifest goes through here (growing logs do not). A reader sees a file or directory
whole or not at all, also after a SIGKILL or a power cut.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdfast.errors import RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_STAGING = ".staging-"
_OLD = ".old-"


def fsync_path(path: Path) -> None:
    """Flush one file or directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explain_os_error(path: Path) -> Iterator[None]:
    """Turn a full disk or a read-only directory into one sentence that names the path.

    Raises:
        RunError: in place of the OSError.
    """
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full; free some space and run the same command again",
            errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
            errno.EROFS: "the file system is read-only; choose another --out",
            errno.EACCES: "permission is denied; choose another --out or change its permissions",
            errno.EPERM: "permission is denied; choose another --out or change its permissions",
        }
        if error.errno not in reasons:
            raise
        raise RunError(f"cannot write {path}: {reasons[error.errno]}.") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file durably: readers see the old content or the new one, never a part."""
    path = Path(path)
    with explain_os_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f"{_STAGING}{path.name}")
        with open(staging, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
        fsync_path(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, durably."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n").encode())


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, readable by whom the umask lets read (the library's own leaves it to its owner).

    Raises:
        RunError: the disk is full or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with explain_os_error(path):
        path.touch()
        mode = path.stat().st_mode
        try:
            save_file(dict(tensors), path, metadata=metadata)
        except SafetensorError as error:  # an OSError whose number is in its text alone
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error
        path.chmod(mode)


@contextlib.contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory beside `target`; on success it becomes `target`, whole and on the disk.

    A previous `target` is moved aside only when the new one is durable, and deleted last (`recover_directory` puts it
    back when the process died between the two renames). On an exception the staging directory is removed.
    """
    target = Path(target)
    with explain_os_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        recover_directory(target)
        staging = target.with_name(f"{_STAGING}{target.name}")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
            for root, _, names in os.walk(staging):
                for name in names:
                    fsync_path(Path(root) / name)
                fsync_path(Path(root))
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        old = target.with_name(f"{_OLD}{target.name}")
        if target.exists():
            os.rename(target, old)
        os.rename(staging, target)
        fsync_path(target.parent)
        shutil.rmtree(old, ignore_errors=True)


def recover_directory(target: Path) -> None:
    """Undo a replacement of `target` that was cut between its two renames; sweep what it left behind."""
    target = Path(target)
    old = target.with_name(f"{_OLD}{target.name}")
    if not old.exists():
        return
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(old, target)
        fsync_path(target.parent)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    ).hexdigest()


def sha256_array(array: NDArray[Any]) -> str:
    """Hexadecimal SHA-256 of an array's bytes, in C order."""
    import numpy as np

    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def read_json(path: Path) -> Any | None:
    """The JSON value in `path`, or None when the file is absent or not whole JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
