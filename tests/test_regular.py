"""Only regular files are opened, and no more of them is read than is allowed."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from sdfast.regular import is_there, open_regular, read_regular


def test_a_file_and_a_link_to_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    assert read_regular(tmp_path / "a", 3) == read_regular(str(tmp_path / "b"), 3) == b"abc"
    with open_regular(tmp_path / "b") as file:
        assert file.read(2) == b"ab"
    with pytest.raises(OSError, match="3 bytes are more than the 2 that are read") as caught:
        read_regular(tmp_path / "b", 2)
    assert caught.value.errno == errno.EFBIG


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "a named pipe, not a regular file"),
        (make_socket, "a socket, not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "a device, not a regular file"),
        (lambda path: path.symlink_to(path.name), os.strerror(errno.ELOOP)),
        (os.mkdir, os.strerror(errno.EISDIR)),
        (lambda path: None, os.strerror(errno.ENOENT)),
    ],
    ids=["pipe", "socket", "device", "loop", "directory", "absent"],
)
def test_what_is_none(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "x"
    make(path)  # type: ignore[operator]
    for read in (open_regular, lambda path: read_regular(path, 10)):
        with pytest.raises(OSError) as caught:
            read(path)
        assert caught.value.strerror == message and caught.value.filename == str(path)


def test_what_fails_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel says of a read names no file; of this one no byte can be read, though it is said to have some."""
    path = tmp_path / "x"
    path.symlink_to("/proc/self/mem")
    real = os.fstat
    monkeypatch.setattr(
        os, "fstat", lambda descriptor: os.stat_result((*real(descriptor)[:6], 7, *real(descriptor)[7:]))
    )
    with pytest.raises(OSError, match="Input/output error") as caught:
        read_regular(path, 10)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "x" * 5000])
def test_names_that_no_file_has(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError) as caught:
        open_regular(tmp_path / name)
    assert caught.value.strerror in ("no file can have this name", os.strerror(errno.ENAMETOOLONG))


def test_the_kernels_files_are_empty() -> None:
    assert read_regular("/proc/self/status", 10) == read_regular("/proc/self/mem", 10) == b""


@pytest.mark.parametrize(("code", "there"), [(errno.ENOENT, False), (errno.ENAMETOOLONG, False), (errno.EIO, None)])
def test_what_cannot_be_looked_at_is_not_absent(code: int, there: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def lstat(path: object) -> None:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(os, "lstat", lstat)
    if there is None:
        with pytest.raises(OSError, match=os.strerror(code)):
            is_there("x")
    else:
        assert is_there("x") is there
