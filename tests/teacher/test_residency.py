"""A streamed bank gives what a resident one gives, checks what it reads, and is chosen when memory is short."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bank_samples import COUNT, make_recipe
from test_live_and_bank import train

from sdfast.data.parallel import seconds_waited
from sdfast.engine.teacher_bank import bank_targets
from sdfast.errors import UserError
from sdfast.modalities.images.teacher import ImageRecipe
from sdfast.teacher.bank import Bank
from sdfast.teacher.build import prepare_bank
from sdfast.teacher.fetch import FetchedBank
from sdfast.teacher.residency import choose_residency, free_memory, place_bank
from sdfast.teacher.targets import ResidentBank, Teacher

CPU = torch.device("cpu")
PLACES = ("device", "host", "stream")


def placed(bank: Bank, recipe: ImageRecipe, place: str) -> Any:
    """A bank at its place; host memory too, which nobody would choose beside a CPU."""
    if place == "host":
        return place_bank(bank, recipe.bank_rows(bank), "host", CPU)
    return bank_targets(bank, recipe, place)  # type: ignore[arg-type]


@pytest.mark.parametrize(("tokens", "dtype"), [("cls", "float32"), ("all", "int8"), ("patch", "bfloat16")])
def test_all_places_train_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: str, dtype: str) -> None:
    monkeypatch.setattr("test_live_and_bank.STEPS", 20)
    monkeypatch.setattr("sdfast.store.rows._BLOCK_BYTES", 700)
    recipe = make_recipe(tokens=tokens, dtype=dtype)
    bank = prepare_bank(tmp_path / "teacher", recipe)
    for accumulate in (1, 3):
        results = []
        for place in PLACES:
            teacher = placed(bank, recipe, place)
            assert isinstance(teacher, ResidentBank if place == "device" else FetchedBank)
            results.append(train(recipe, teacher, torch.float32, 16, 0, tmp_path, accumulate))
        for losses, weights in results[1:]:
            assert losses == results[0][0]
            assert all(torch.equal(value, weights[name]) for name, value in results[0][1].items())


def matched(teacher: Teacher, rows: list[int]) -> torch.Tensor:
    targets = teacher.targets(torch.empty(0), torch.tensor(rows), 0)
    assert targets.teacher is not None
    return targets.teacher if targets.rows is None else targets.teacher[targets.rows]


@pytest.mark.parametrize("place", PLACES[1:])
def test_rows_that_were_not_announced_are_read_all_the_same(tmp_path: Path, place: str) -> None:
    recipe = make_recipe()
    bank = prepare_bank(tmp_path / "teacher", recipe)
    teacher, whole = placed(bank, recipe, place), bank.load()[0]
    teacher.announce(torch.tensor([5, 3]), 0)
    for rows in ([3], [5, 3], [3, 5], [9, 9, 140], list(range(COUNT)), [17], [140, 9], [5]):
        assert torch.equal(matched(teacher, rows), whole[rows])


@pytest.mark.parametrize("place", PLACES[1:])
def test_a_step_is_fetched_while_the_one_before_is_used(tmp_path: Path, place: str) -> None:
    """What is announced is fetched without being asked for, and does not disturb what is in use."""
    recipe = make_recipe()
    bank = prepare_bank(tmp_path / "teacher", recipe)
    teacher, whole = placed(bank, recipe, place), bank.load()[0]
    batches = list(torch.randperm(COUNT, generator=torch.Generator().manual_seed(0)).split(16))
    fetched: list[int] = []
    fill = teacher.source.fill
    teacher.source.fill = lambda wanted, *more: (fetched.extend(wanted[more[0]].tolist()), fill(wanted, *more))
    for rows, following in zip(batches, batches[1:] + batches[:1], strict=True):
        teacher.announce(rows, 0)
        used = teacher.targets(torch.empty(0), rows, 0).teacher
        teacher.announce(following, 0)
        teacher.targets(torch.empty(0), following, 0)
        assert torch.equal(used, whole[rows])
    assert sorted(fetched) == sorted([*range(COUNT), *batches[0].tolist()])  # nothing twice but the first


def test_waiting_for_rows_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe()
    teacher = bank_targets(prepare_bank(tmp_path / "teacher", recipe), recipe, "stream")
    now, waits = [0.0], threading.Event()

    def clock() -> float:
        waits.set()
        return now[0]

    def fill(*arguments: object) -> None:
        assert waits.wait(60)  # the rows come when they are waited for, however slow this machine is
        now[0] = 2.0

    monkeypatch.setattr("sdfast.data.parallel.time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr("sdfast.teacher.fetch.DiskSource.fill", fill)
    before = seconds_waited()
    teacher.announce(torch.tensor([5, 3]), 0)
    assert seconds_waited() == before
    teacher.targets(torch.empty(0), torch.tensor([5, 3]), 0)
    assert seconds_waited() - before == pytest.approx(2.0)


def test_damage_is_found_when_it_is_read(tmp_path: Path) -> None:
    recipe = make_recipe()
    bank = prepare_bank(tmp_path / "teacher", recipe)
    teacher = bank_targets(bank, recipe, "stream")
    with open(tmp_path / "teacher" / "features-00000.bin", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    teacher.targets(torch.empty(0), torch.tensor([0, 1]), 0)
    with pytest.raises(UserError, match="damaged: block 2 of"):
        teacher.targets(torch.empty(0), torch.tensor([COUNT - 1]), 0)
    with open(tmp_path / "teacher" / "features-00000.bin", "r+b") as file:
        file.truncate(10)
    with pytest.raises(UserError, match="damaged: a data file ended early"):
        teacher.targets(torch.empty(0), torch.tensor([2, 1]), 0)


def test_damage_in_what_was_announced_and_never_used_stops_nothing(tmp_path: Path) -> None:
    recipe = make_recipe()
    bank = prepare_bank(tmp_path / "teacher", recipe)
    teacher = bank_targets(bank, recipe, "stream")
    with open(tmp_path / "teacher" / "features-00000.bin", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    for rows in ([COUNT - 1], [0, 1], [2, 3], [4]):
        teacher.announce(torch.tensor(rows), 0)
    assert torch.equal(matched(teacher, [4]), torch.from_numpy(bank.shard(0)[4:5].copy()).view(torch.float32))


def test_the_choice_follows_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 << 20 < free_memory(CPU) < 1 << 50
    free = {"cpu": 1000, "cuda": 100}
    monkeypatch.setattr("sdfast.teacher.residency.free_memory", lambda device: free[device.type])
    assert [choose_residency("auto", size, CPU) for size in (500, 501)] == ["device", "stream"]
    gpu = torch.device("cuda")
    assert [choose_residency("auto", size, gpu) for size in (50, 51, 500, 501)] == ["device", "host", "host", "stream"]
    assert [choose_residency(wanted, 10**9, gpu) for wanted in ("device", "host", "stream")] == [
        "device",
        "host",
        "stream",
    ]
    assert [choose_residency(wanted, 10**9, CPU) for wanted in ("device", "host", "stream")] == [
        "device",
        "device",
        "stream",
    ]
