"""A build that dies at any moment leaves the old bank or none, and a part from which the same bits come out."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from bank_samples import contents, make_images, make_module, make_recipe

from sdfast.errors import UserError
from sdfast.teacher.bank import open_bank
from sdfast.teacher.build import prepare_bank

ROWS = 700
CALLS = ("pwrite", "write", "fsync", "fdatasync", "rename", "replace", "unlink")
# Children start from a server that has imported torch and computed nothing.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["sdfast.teacher.build", "bank_samples"])


def the_recipe(seed: int = 3) -> Any:
    return make_recipe(encoder=make_module(seed).encoder, images=make_images(ROWS), tokens="all")


def build(directory: str, die_at: int | None, half: bool, seed: int) -> int:
    """Build and die at a system call, after half of its bytes where it writes; or give the number of calls."""
    import torch

    torch.set_num_threads(1)
    calls = itertools.count(1)  # from several threads

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            if next(calls) == die_at:
                if half and function in (writes["pwrite"], writes["write"]):
                    descriptor, data, *rest = arguments
                    function(descriptor, data[: len(data) // 2], *rest)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **more)

        return call

    writes = {name: getattr(os, name) for name in CALLS}
    if die_at is not None:
        for name, function in writes.items():
            setattr(os, name, counted(function))
    try:
        prepare_bank(Path(directory), the_recipe(seed), commit_seconds=0.0, new_teacher=True)
    finally:
        for name, function in writes.items():
            setattr(os, name, function)
    return next(calls) - 1


def build_and_die(directory: Path, die_at: int, half: bool, seed: int = 3) -> bool:
    """Whether it died (it had not yet finished by then)."""
    process = processes.Process(target=build, args=(str(directory), die_at, half, seed))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("whole") / "teacher"
    build(str(directory), None, False, 3)
    return contents(directory)


def check_left_and_finish(directory: Path, whole: dict[str, bytes]) -> None:
    if directory.exists():
        open_bank(directory, the_recipe().identity).check()
    else:
        with pytest.raises(UserError, match="holds no teacher bank"):
            open_bank(directory)
    build(str(directory), None, False, 3)
    assert contents(directory) == whole
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


MOMENTS = (1, 4, 6, 9, 12, 13, 44, 63, 112, -15, -14, -11, -10, -7, -6, -4, -3, -2, -1, 0)  # 0: the last call


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, int]:
    """Of a build from nothing, and of one that then replaces it."""
    directory = str(tmp_path_factory.mktemp("counted") / "teacher")
    return build(directory, 0, False, 3), build(directory, 0, False, 4)


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_system_call(tmp_path: Path, moment: int, whole: dict[str, bytes], calls: tuple[int, int]) -> None:
    moment += calls[0] if moment < 1 else 0
    assert build_and_die(tmp_path / "teacher", moment, half=moment % 2 == 0)
    check_left_and_finish(tmp_path / "teacher", whole)


def test_killed_again_and_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Every attempt gets a little further, so that the work ends."""
    for _ in range(30):
        if not build_and_die(tmp_path / "teacher", 40, half=True):
            break
    else:
        pytest.fail("no progress between kills")
    assert contents(tmp_path / "teacher") == whole


def test_killed_while_it_replaces_another_teachers_bank(
    tmp_path: Path, whole: dict[str, bytes], calls: tuple[int, int]
) -> None:
    original = tmp_path / "original"
    build(str(original), None, False, 4)
    old, states = contents(original), []
    for moment in (60, *range(calls[1] - 12, calls[1] + 1, 2)):
        directory = tmp_path / str(moment) / "teacher"
        shutil.copytree(original, directory)
        assert build_and_die(directory, moment, half=False)
        open_bank(directory).check()
        states.append("old" if contents(directory) == old else "new")
        build(str(directory), None, False, 3)
        assert contents(directory) == whole
        assert [path.name for path in directory.parent.iterdir()] == ["teacher"]
    assert states[0] == "old" and states[-1] == "new"


@pytest.mark.slow
def test_killed_at_two_hundred_random_moments(tmp_path: Path, whole: dict[str, bytes]) -> None:
    chance = random.Random(0)
    killed = 0
    began = time.monotonic()
    process = processes.Process(target=build, args=(str(tmp_path / "timed" / "teacher"), None, False, 3))
    process.start()
    process.join()
    span = time.monotonic() - began  # of a whole build, on this machine
    for attempt in range(1000):
        directory = tmp_path / str(attempt) / "teacher"
        process = processes.Process(target=build, args=(str(directory), None, False, 3))
        process.start()
        time.sleep(chance.uniform(0.0, span))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            span *= 0.97  # it was measured on a busier machine
        directory.parent.mkdir(exist_ok=True)
        check_left_and_finish(directory, whole)
        shutil.rmtree(directory.parent)
        if killed == 200:
            return
    pytest.fail(f"only {killed} of 1000 builds were killed before their end")
