"""strace: record the system calls of a command, and end or fail it at one of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OPENING = ("open", "openat")
MAKING = ("mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat")
REMOVING = ("unlink", "unlinkat", "rmdir")
WRITING = ("write", "pwrite64", "writev", "ftruncate", "truncate", "fallocate", "copy_file_range", "sendfile")
KEEPING = ("fsync", "fdatasync", "fchmod", "chmod", "flock", "close")
READING = ("read", "pread64", "mmap", "newfstatat", "stat", "lstat", "statx", "fstat", "getdents64")
FAILING = (*OPENING, *MAKING, *REMOVING, *WRITING, *KEEPING, *READING)
_CHANGING = {*MAKING, *REMOVING, *WRITING}
_LINE = re.compile(r"^(\d+)\s+(\w+)\((.*)$")


@dataclass(frozen=True)
class Call:
    """The n-th call of its name in its thread.

    Attributes:
        name: of the system call.
        number: n, from 1 on.
        path: of the run's file that it is about.
        changes: whether the disk is another one after it.
    """

    name: str
    number: int
    path: str
    changes: bool


def killing(call: Call) -> list[str]:
    """Options of strace that kill a command at a call, before it is done."""
    return ["-e", f"inject={call.name}:signal=SIGKILL:when={call.number}"]


def failing(call: Call, error: str) -> list[str]:
    """Options of strace that let a call fail."""
    return ["-e", f"inject={call.name}:error={error}:when={call.number}"]


def always_failing(names: Sequence[str], path: Path, error: str) -> list[str]:
    """Options of strace that let all such calls on a file fail."""
    return ["-P", str(path), "-e", f"inject={','.join(names)}:error={error}"]


def why_not() -> str | None:
    """None where strace can be used, else the reason."""
    if shutil.which("strace") is None:
        return "strace is not installed (on Debian and Ubuntu: apt install strace)"
    tried = subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"strace does not work here: {tried.stderr.strip().splitlines()[-1]}"


def attach(pid: int, trace: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
    """strace on a stopped process; it is there when this returns."""
    names = ",".join(f"?{name}" for name in FAILING)
    command = ["strace", "-f", "-y", "-s", "0", "-o", str(trace), "-e", f"trace={names}", *options, "-p", str(pid)]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert tracer.stderr is not None
    said = tracer.stderr.readline()
    if b"attached" not in said:
        tracer.kill()
        raise RuntimeError(f"strace does not attach: {said.decode(errors='replace').strip()}")
    return tracer


def recorded(trace: str, folder: Path) -> list[Call]:
    """The calls of a trace that are about files below a command's working directory, in their order."""
    counts: Counter[tuple[str, str]] = Counter()
    found = []
    for line in trace.splitlines():
        if (match := _LINE.match(line)) is None or match[2] not in FAILING:
            continue
        counts[match[1], match[2]] += 1
        if (path := _about(match[3], folder)) is not None:
            changes = match[2] in _CHANGING or (match[2] in OPENING and "O_CREAT" in match[3])
            found.append(Call(match[2], counts[match[1], match[2]], path, changes))
    return found


def attacked(trace: str, folder: Path) -> str | None:
    """The file that an injected fault was about; None where it hit nothing below the folder, or nothing at all."""
    for line in trace.splitlines():
        if "(INJECTED" in line and (match := _LINE.match(line)) is not None:
            return _about(match[3], folder)
    return None


def _about(arguments: str, folder: Path) -> str | None:
    """The first file below the folder that a call names, from there on."""
    named = [one or other for one, other in re.findall(r"<([^<>]*)>|\"((?:[^\"\\]|\\.)*)\"", arguments) if one or other]
    if "AT_FDCWD" in arguments:
        named = [name for name in named if name != str(folder)]
        named = [name if name.startswith("/") else f"{folder}/{name}" for name in named]
    elif len(named) > 1 and named[0].startswith("/") and not named[1].startswith("/"):
        named = [f"{named[0]}/{named[1]}"]  # relative to a folder that is open
    else:
        named = [name if name.startswith("/") else f"{folder}/{name}" for name in named]
    inside = [name.removeprefix(f"{folder}/") for name in named if name.startswith(f"{folder}/")]
    return inside[0] if inside else None
