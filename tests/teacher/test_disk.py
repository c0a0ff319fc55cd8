"""A full disk or a read-only directory: one sentence, no bank, and the build goes on when there is space again."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from bank_samples import contents, make_recipe

from sdfast.errors import RunError
from sdfast.teacher.bank import open_bank
from sdfast.teacher.build import prepare_bank


def failing(function: Any, number: int, after: int) -> Any:
    calls = 0

    def call(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(number, os.strerror(number))
        return function(*arguments, **more)

    return call


@pytest.mark.parametrize("after", [0, 3, 5])
@pytest.mark.parametrize("call", ["pwrite", "write"])
def test_the_disk_gets_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: int) -> None:
    directory = tmp_path / "teacher"
    prepare_bank(tmp_path / "whole", make_recipe())
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(getattr(os, call), errno.ENOSPC, after if call == "pwrite" else after // 3))
        with pytest.raises(RunError, match=r"^cannot write .*teacher: the disk is full; free some space"):
            prepare_bank(directory, make_recipe(), commit_seconds=0)
    assert not directory.exists()
    prepare_bank(directory, make_recipe())
    assert contents(directory) == contents(tmp_path / "whole")


def test_too_little_space_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(RunError, match=r"needs 0\.00 GB .* 0\.00 GB are free"):
        prepare_bank(tmp_path / "teacher", make_recipe())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "mkdir", failing(os.mkdir, number, 0))
    with pytest.raises(RunError, match=r"^cannot write .*choose another --out"):
        prepare_bank(tmp_path / "run" / "teacher", make_recipe())
    assert list(tmp_path.iterdir()) == []


def test_an_old_bank_survives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "teacher"
    prepare_bank(directory, make_recipe())
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing(os.pwrite, errno.ENOSPC, 2))
        with pytest.raises(RunError, match="the disk is full"):
            prepare_bank(directory, make_recipe(tokens="all"), rebuild=True)
    open_bank(directory, make_recipe().identity).check()


def test_a_read_that_fails_names_the_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "teacher"
    prepare_bank(directory, make_recipe())
    bank = open_bank(directory)
    monkeypatch.setattr(os, "preadv", failing(os.preadv, errno.EIO, 0))
    with pytest.raises(OSError, match="Input/output error") as caught:
        bank.load()
    assert caught.value.filename == str(directory)


def test_a_file_whose_closing_fails_is_closed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a quota on a network's disk. Linux closes it all the same, and its number may be another file's by then."""
    directory, closed = tmp_path / "teacher", list[int]()
    close = os.close

    def refuse_the_first(descriptor: int) -> None:
        close(descriptor)
        path = names.get(descriptor, "")
        if path:
            closed.append(descriptor)
            if len(closed) == 1:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    names = dict[int, str]()
    opened = os.open

    def noted(path: Any, flags: int, *more: Any, **others: Any) -> int:
        descriptor = opened(path, flags, *more, **others)
        names[descriptor] = str(path) if flags & os.O_RDWR and ".partial-" in str(path) else ""
        return descriptor

    monkeypatch.setattr(os, "open", noted)
    monkeypatch.setattr(os, "close", refuse_the_first)
    with pytest.raises(RunError, match=r"^cannot write .*teacher: the disk quota is used up"):
        prepare_bank(directory, make_recipe())
    assert len(closed) == len(set(closed)) > 2
    prepare_bank(directory, make_recipe())
    open_bank(directory).check()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOMEM])
def test_a_finished_part_that_cannot_be_opened_just_now_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    directory, part = tmp_path / "teacher", tmp_path / ".partial-teacher"
    prepare_bank(directory, make_recipe())
    whole = contents(directory)
    directory.rename(part)  # as a kill leaves it before the last rename
    opened = os.open

    def failing_to_open(path: Any, *arguments: Any, **more: Any) -> int:
        if str(path).endswith("features-00000.bin"):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing_to_open)
        with pytest.raises(RunError, match=os.strerror(number).lower()):
            prepare_bank(directory, make_recipe())
    assert contents(part) == whole
    prepare_bank(directory, make_recipe())
    assert contents(directory) == whole
