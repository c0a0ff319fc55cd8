"""Several processes build one bank: the bits of one process, also after any of them was killed."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank_samples import contents, make_images, make_recipe

from sdfast.errors import Interrupted, RunError, SdfastError, UserError
from sdfast.modalities.images.teacher import ImageRecipe
from sdfast.ranks import Ranks
from sdfast.teacher.build import prepare_bank

ROWS = 700
BATCHES = 11
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["sdfast.teacher.build", "bank_samples"])


def the_recipe() -> ImageRecipe:
    return make_recipe(images=make_images(ROWS), tokens="all", dtype="int8")


def build(directory: str, rank: int, world: int, die_after: int | None, notes: Any) -> None:
    """One process of a build under torch.distributed; it tells how many batches it computed, and how it ended."""
    torch.set_num_threads(1)
    meeting = f"file://{directory}-meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    computed = 0

    class Counted(ImageRecipe):
        def features(self, *arguments: Any) -> Any:
            nonlocal computed
            if computed == die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            computed += 1
            return super().features(*arguments)

    try:
        prepare_bank(Path(directory), Counted(**vars(the_recipe())), commit_seconds=0.0)
        notes.put((rank, computed, ""))
    except RunError as error:
        notes.put((rank, computed, str(error)))


def build_together(directory: Path, world: int, dies: int | None = None, after: int = 2) -> dict[int, tuple[int, str]]:
    """What each process that was not killed computed, and how it ended."""
    notes = processes.SimpleQueue()
    Path(f"{directory}-meeting").unlink(missing_ok=True)
    started = []
    for rank in range(world):
        arguments = (str(directory), rank, world, after if rank == dies else None, notes)
        started.append(processes.Process(target=build, args=arguments))
        started[-1].start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [-9 if rank == dies else 0 for rank in range(world)]
    Path(f"{directory}-meeting").unlink(missing_ok=True)
    ends = [notes.get() for _ in range(world - (dies is not None))]
    return {rank: (computed, said) for rank, computed, said in ends}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("whole") / "teacher"
    prepare_bank(directory, the_recipe())
    return contents(directory)


@pytest.mark.parametrize("world", [2, 3])
def test_together_they_build_what_one_builds(tmp_path: Path, world: int, whole: dict[str, bytes]) -> None:
    ends = build_together(tmp_path / "teacher", world)
    assert contents(tmp_path / "teacher") == whole
    assert sum(computed for computed, _ in ends.values()) == BATCHES
    assert all(computed >= BATCHES // world and not said for computed, said in ends.values())
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


@pytest.mark.parametrize(("world", "dies", "next_world"), [(2, 1, 3), (3, 0, 2), (3, 2, 1)])
def test_one_is_killed_and_another_number_goes_on(
    tmp_path: Path, world: int, dies: int, next_world: int, whole: dict[str, bytes]
) -> None:
    ends = build_together(tmp_path / "teacher", world, dies)
    assert not (tmp_path / "teacher").exists()
    assert all("what is done is saved, and the same command continues" in said for _, said in ends.values())
    kept = sum(computed for computed, _ in ends.values()) + 1  # its last batch may be lost
    ends = build_together(tmp_path / "teacher", next_world)
    assert sum(computed for computed, _ in ends.values()) <= BATCHES - kept
    assert contents(tmp_path / "teacher") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def in_threads(world: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """What `work` gave or raised in each of several threads that stand for processes."""
    barrier, given, ends = threading.Barrier(world, timeout=30), [None] * world, [None] * world

    def run(rank: int) -> None:
        def exchange(value: Any) -> list[Any]:
            given[rank] = value
            barrier.wait()
            values = list(given)
            barrier.wait()
            return values

        try:
            ends[rank] = work(Ranks(rank, world, exchange))
        except Exception as error:
            ends[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def test_what_is_wrong_in_one_stops_all_in_the_same_words(tmp_path: Path) -> None:
    damaged = the_recipe()
    damaged.images[650, 0, 0, 0] ^= 1  # in the last one's share
    ends = in_threads(3, lambda ranks: prepare_bank(tmp_path / "teacher", damaged, ranks=ranks))
    assert {type(end) for end in ends} == {UserError} and len({str(end) for end in ends}) == 1
    assert "row 650 of the pack differs" in str(ends[0]) and not (tmp_path / "teacher").exists()

    def stop(done: int, total: int) -> None:
        raise Interrupted("stopped.", 15)

    def stopped(ranks: Ranks) -> Any:
        return prepare_bank(tmp_path / "teacher", the_recipe(), progress=stop if ranks.rank == 1 else None, ranks=ranks)

    ends = in_threads(2, stopped)
    assert [(type(end), end.exit_code) for end in ends] == [(Interrupted, 143)] * 2

    def fail(done: int, total: int) -> None:
        raise KeyError("oh")

    def failed(ranks: Ranks) -> Any:
        return prepare_bank(
            tmp_path / "teacher", the_recipe(), True, progress=fail if ranks.rank else None, ranks=ranks
        )

    ends = in_threads(2, failed)
    assert type(ends[1]) is KeyError and str(ends[0]) == "process 1 of this job failed: 'oh'."


def test_one_of_another_recipe_or_file_system_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(ranks: Ranks) -> Any:
        recipe = the_recipe() if ranks.rank == 0 else make_recipe(images=make_images(ROWS), tokens="all")
        return prepare_bank(tmp_path / "teacher", recipe, ranks=ranks)

    for end in in_threads(2, work):
        assert isinstance(end, RunError) and "process 1 does not find" in str(end)

    def elsewhere(ranks: Ranks) -> Any:
        return prepare_bank(tmp_path / ("teacher" if ranks.rank == 0 else "other"), the_recipe(), ranks=ranks)

    for end in in_threads(2, elsewhere):
        assert isinstance(end, SdfastError) and "one file system" in str(end)


def test_shares_are_disjoint_and_whole() -> None:
    for count in (0, 1, 2, 7, 100):
        for world in (1, 2, 3, 8):
            shares = [Ranks(rank, world).share(list(range(count))) for rank in range(world)]
            assert list(itertools.chain(*shares)) == list(range(count))
            assert np.ptp([len(share) for share in shares]) <= 1
