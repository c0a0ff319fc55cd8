"""A streamed bank gives what a resident one gives, checks what it reads, and is chosen when memory is short."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from bank_samples import COUNT, make_recipe
from test_live_and_bank import train

from sdfast.data.waiting import seconds_waited
from sdfast.engine.teacher_bank import bank_targets
from sdfast.errors import UserError
from sdfast.teacher.build import prepare_bank
from sdfast.teacher.residency import StreamedBank, choose_residency, free_memory
from sdfast.teacher.targets import ResidentBank

CPU = torch.device("cpu")


@pytest.mark.parametrize(("tokens", "dtype"), [("cls", "float32"), ("all", "int8"), ("patch", "bfloat16")])
def test_streamed_and_resident_train_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: str, dtype: str
) -> None:
    monkeypatch.setattr("test_live_and_bank.STEPS", 20)
    monkeypatch.setattr("sdfast.teacher.format._BLOCK_BYTES", 700)
    recipe = make_recipe(tokens=tokens, dtype=dtype)
    bank = prepare_bank(tmp_path / "teacher", recipe)
    for accumulate in (1, 3):
        results = []
        for residency in ("device", "stream"):
            teacher = bank_targets(bank, recipe, residency)  # type: ignore[arg-type]
            assert isinstance(teacher, ResidentBank if residency == "device" else StreamedBank)
            results.append(train(recipe, teacher, torch.float32, 16, 0, tmp_path, accumulate))
        assert results[0][0] == results[1][0]
        assert all(torch.equal(value, results[1][1][name]) for name, value in results[0][1].items())


def test_rows_that_were_not_announced_are_read_all_the_same(tmp_path: Path) -> None:
    recipe = make_recipe()
    bank = prepare_bank(tmp_path / "teacher", recipe)
    teacher, whole = bank_targets(bank, recipe, "stream"), bank.load()[0]
    pixels = torch.empty(0)
    teacher.announce(torch.tensor([5, 3]))
    for rows in ([3], [5, 3], [9, 9, 140], list(range(COUNT))):
        assert torch.equal(teacher.targets(pixels, torch.tensor(rows)).teacher, whole[rows])


def test_waiting_for_rows_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe()
    teacher = bank_targets(prepare_bank(tmp_path / "teacher", recipe), recipe, "stream")
    monkeypatch.setattr("sdfast.teacher.residency._read", lambda *arguments: time.sleep(0.02))
    before = seconds_waited()
    teacher.announce(torch.tensor([5, 3]))
    assert seconds_waited() == before
    teacher.targets(torch.empty(0), torch.tensor([5, 3]))
    assert seconds_waited() - before >= 0.01


def test_damage_is_found_when_it_is_read(tmp_path: Path) -> None:
    recipe = make_recipe()
    bank = prepare_bank(tmp_path / "teacher", recipe)
    teacher = bank_targets(bank, recipe, "stream")
    with open(tmp_path / "teacher" / "features-00000.bin", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    teacher.targets(torch.empty(0), torch.tensor([0, 1]))
    with pytest.raises(UserError, match="damaged: block 2 of"):
        teacher.targets(torch.empty(0), torch.tensor([COUNT - 1]))
    with open(tmp_path / "teacher" / "features-00000.bin", "r+b") as file:
        file.truncate(10)
    with pytest.raises(UserError, match="damaged: a data file ended early"):
        teacher.targets(torch.empty(0), torch.tensor([1, 0]))


def test_the_choice_follows_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 << 20 < free_memory(CPU) < 1 << 50
    monkeypatch.setattr("sdfast.teacher.residency.free_memory", lambda device: 1000)
    assert [choose_residency("auto", size, CPU) for size in (500, 501)] == ["device", "stream"]
    assert [choose_residency(wanted, 10**9, CPU) for wanted in ("device", "stream")] == ["device", "stream"]
