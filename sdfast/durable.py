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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdfast.errors import RunError, UserError, said
from sdfast.locks import check_held
from sdfast.portable import flush_path
from sdfast.regular import is_there, naming, open_regular, read_regular, refuse

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_STAGING = ".staging-"
_OLD = ".old-"
_SEAL = "sha256"
_JSON_BYTES = 256 << 20  # of one file; the largest are lists of classes
_JSON_LEVELS = 64
_REASONS = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "a file may not grow so large here; raise the limit (ulimit -f) and run the same command again",
    errno.EROFS: "the file system is read-only; choose another --out",
    errno.EACCES: "permission is denied; choose another --out or change its permissions",
    errno.EPERM: "permission is denied; choose another --out or change its permissions",
}


def fsync_path(path: Path) -> None:
    """Flush one file or directory entry to the disk."""
    flush_path(path)


@contextlib.contextmanager
def explain_os_error(path: Path) -> Iterator[None]:
    """Turn what the system says about writing, such as of a full disk, into one sentence that names the path.

    Raises:
        RunError: in place of the OSError. One that names a file elsewhere stays: it was read, or is another's.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, (str, bytes)) and not _belongs(error.filename, path):
            raise
        raise RunError(f"cannot write {path}: {reason(error)}.") from error


def reason(error: OSError) -> str:
    """The end of a sentence: what the system says, and what helps where that is known."""
    return _REASONS.get(error.errno or 0) or said(error)


def _belongs(name: Any, path: Path) -> bool:
    """Whether a name is of a path, of what lies in it or is staged beside it, or of a folder on the way to it."""
    parent, named = os.path.abspath(Path(path).parent), os.path.abspath(os.fsdecode(name))
    if os.path.commonpath((parent, named)) != parent:
        return parent.startswith(named.rstrip(os.sep) + os.sep)
    first, name = Path(named).relative_to(parent).parts[:1], Path(path).name
    return not first or first[0] == name or (first[0].startswith(".") and first[0].endswith(f"-{name}"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file durably: readers see the old content or the new one, never a part."""
    path = Path(path)
    check_held(path)
    with explain_os_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f"{_STAGING}{path.name}")
        staging.unlink(missing_ok=True)  # of a writer that was killed, or a link or pipe of another's
        with open(staging, "xb") as file:
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
            with numbered_errors(path):
                save_file(dict(tensors), path, metadata=metadata)
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(path)) from error
        path.chmod(mode)


@contextlib.contextmanager
def numbered_errors(path: Path) -> Iterator[None]:
    """Turn errors of safetensors and torch that have the system's number in their text alone into an OSError."""
    from safetensors import SafetensorError

    try:
        with naming(path):
            yield
    except (SafetensorError, RuntimeError, MemoryError, OSError) as error:
        found = re.search(r"\((?:os error )?(\d+)\)\W*$", str(error))
        if getattr(error, "errno", None) is not None or found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


@contextlib.contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory beside `target`; on success it becomes `target`, whole and on the disk.

    A previous `target` is moved aside only when the new one is durable, and deleted last (`recover_directory` puts it
    back when the process died between the two renames). On an exception the staging directory is removed.
    """
    target = Path(target)
    check_held(target)
    with explain_os_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        recover_directory(target)
        staging = target.with_name(f"{_STAGING}{target.name}")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
            for root, _, names in os.walk(staging, onerror=refuse):
                for name in names:
                    fsync_path(Path(root) / name)
                fsync_path(Path(root))
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        put_in_place(staging, target)


def copy_folder(source: Path, folder: Path, to: Path) -> None:
    """Copy what is in a folder into another (`shutil.copytree` ends in a list of all that failed).

    Args:
        source: links in it are followed.
        folder: is there; of a model that is staged, that.
        to: what a person knows it by.

    Raises:
        RunError: a file cannot be read, is none, or cannot be written.
    """
    path = source

    def remember_and_refuse(error: OSError) -> None:
        nonlocal path
        path = Path(error.filename)
        raise error

    try:
        for root, _, names in os.walk(source, onerror=remember_and_refuse, followlinks=True):
            path = Path(root)
            place = folder / path.relative_to(source)
            place.mkdir(exist_ok=True)
            for name in names:
                path = Path(root, name)
                open_regular(path).close()  # a device behind a link would be copied for ever
                shutil.copy2(path, place / name)
    except OSError as error:
        raise RunError(f"cannot copy {path} to {to}: {reason(error)}.") from error


def put_in_place(new: Path, target: Path) -> None:
    """Let a directory that is on the disk take the name of another beside it, which goes last."""
    old = target.with_name(f"{_OLD}{target.name}")
    if target.exists():
        os.rename(target, old)
    os.rename(new, target)
    fsync_path(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Remove a directory under another name: what a kill or the disk leaves of it is then known to be swept.

    One that the system does not let go of stays, whole; links and files are left alone.
    """
    if path.is_dir() and not path.is_symlink():
        aside = path.with_name(f"{_OLD}{path.name}")
        with contextlib.suppress(OSError):
            path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)


def sweep(directory: Path, names: str) -> None:
    """Remove what a process that was killed left half written or half removed of the directories of such names.

    Args:
        directory: in which they lie.
        names: a pattern, as `step-*`.
    """
    for beginning in (_STAGING, _OLD):
        for path in directory.glob(f"{beginning}{names}"):
            shutil.rmtree(path, ignore_errors=True)


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
    """Hexadecimal SHA-256 of a regular file's bytes.

    Raises:
        OSError: it cannot be read, or is something else; with its name.
    """
    with naming(path), open_regular(path) as file:
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


def load_array(path: Path, mmap_mode: Literal["r"] | None = None) -> NDArray[Any]:
    """The array of a .npy file, read or mapped.

    Raises:
        OSError: it cannot be read; with its name.
        ValueError: it is no such file, or is cut.
    """
    import numpy as np

    with naming(path):
        array: NDArray[Any] = np.load(path, mmap_mode=mmap_mode)
    return array


def check_appendable(path: Path) -> None:
    """Before a file is opened to be added to: a pipe may block, a device takes what it is given.

    Raises:
        UserError: something else than a file bears the name; links to files are followed.
    """
    if is_there(path) and not path.is_file():
        raise UserError(f"{path} is no file that could be added to; move it away or choose another --out.")


def check_room(directory: Path, needed: int, what: str, otherwise: str) -> None:
    """Before so many bytes are written there.

    Raises:
        RunError: the disk has fewer left; the sentence begins with what needs them and ends with what else helps.
    """
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise RunError(
            f"{what} needs {needed / 1e9:.2f} GB in {directory}, where {free / 1e9:.2f} GB are free; free some space, "
            f"choose another --out, or {otherwise}."
        )


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a digest of itself, `sha256`, as its last entry."""
    return {**value, _SEAL: sha256_json(value)}


def check_seal(value: Mapping[str, Any]) -> None:
    """Compare an object with its digest; one that an earlier version wrote has none.

    Raises:
        ValueError: it is another's.
    """
    if _SEAL in value and sha256_json({name: part for name, part in value.items() if name != _SEAL}) != value[_SEAL]:
        raise ValueError("it differs from its own digest")


def load_json(path: Path) -> Any:
    """The JSON value in a regular file.

    Raises:
        OSError: the file cannot be read, is none, or is too large.
        ValueError: it is not JSON, or lists and objects stand in each other more than 64 deep.
    """
    try:
        value = json.loads(read_regular(path, _JSON_BYTES).decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError("it is not whole JSON") from error
    level = [value]
    for _ in range(_JSON_LEVELS):
        level = [part for each in level if isinstance(each, (dict, list)) for part in _parts(each)]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _parts(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def read_json(path: Path) -> Any | None:
    """The JSON value in `path`, or None when the file is absent or not whole JSON.

    Raises:
        UserError: it is there and cannot be read, or is no regular file.
    """
    try:
        return load_json(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> UserError:
    """The sentence about a file of a run that is there and cannot be read."""
    return UserError(f"{path} cannot be read: {said(error)}; move it away or make it readable.")
