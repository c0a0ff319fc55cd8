"""What writes files that are no good: long ones, special ones, any bytes."""

from __future__ import annotations

import io
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

Write = Callable[[Path], None]
Inputs = dict[str, tuple[str, Write]]  # by name: what --data is, and what writes it
MB = 1 << 20


def bytes_of(name: str, data: bytes | Callable[[], bytes]) -> Write:
    """One file of these bytes."""

    def write(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data())

    return write


def repeated(name: str, block: bytes, count: int, head: bytes = b"", tail: bytes = b"") -> Write:
    """A file that is long, and is not held in the memory of the process that forks."""

    def write(folder: Path) -> None:
        with open(folder / name, "wb") as file:
            file.write(head)
            for _ in range(count):
                file.write(block)
            file.write(tail)

    return write


def special_file(name: str, target: str) -> Write:
    """A FIFO, a socket, or a link."""

    def write(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if target == "a FIFO":
            os.mkfifo(path)
        elif target == "a socket":
            here = os.getcwd()
            os.chdir(path.parent)  # an address of a socket is short
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path.name)
            os.chdir(here)
        elif target == "a folder":
            path.mkdir()
        else:
            path.symlink_to(target)

    return write


SPECIAL = (
    "a FIFO",
    "a socket",
    "a folder",
    "/dev/zero",
    "/dev/urandom",
    "/dev/stdin",
    "/proc/kmsg",
    "nowhere",
    "x",
    ".",
)


def zip_file() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", bytes(50 * MB))
    return made.getvalue()
