"""Damage to an unfinished bank that several processes began: what comes out is the right bank, or one sentence."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bank_samples import contents, make_images, make_module, make_recipe
from test_mutations import flipped
from test_several_processes import in_threads

from sdfast.modalities.images.augment import Augmentation, content_keys
from sdfast.modalities.images.teacher import ImageRecipe
from sdfast.teacher.build import prepare_bank

RANKS, BATCHES = 3, 6


class Stopped(Exception):
    pass


def the_recipe(**changes: Any) -> ImageRecipe:
    recipe = make_recipe(images=make_images(32 * BATCHES), dtype="int8", tokens="all", layer=1)
    recipe = replace(recipe, augment=Augmentation("crop", 5, 2, content_keys(recipe.digests)))
    return replace(recipe, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("whole") / "teacher"
    prepare_bank(directory, the_recipe())
    return contents(directory)


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three processes have built one of their two batches each."""
    directory = tmp_path_factory.mktemp("part") / "teacher"

    def stop(done: int, total: int) -> None:
        raise Stopped

    in_threads(RANKS, lambda ranks: prepare_bank(directory, the_recipe(), progress=stop, ranks=ranks))
    found = directory.with_name(".partial-teacher")
    names = sorted(path.name for path in found.iterdir())
    journals = [f"journal-{rank:05d}.bin" for rank in range(RANKS)]
    assert names == ["checksums.bin", "features-00000.bin", *journals, "plan.json", "rows.bin", "scales-00000.bin"]
    assert [len((found / name).read_bytes()) for name in journals] == [40] * RANKS
    return found


class Case:
    """A copy of the part that is changed, and then built to the end."""

    def __init__(self, part: Path, root: Path, whole: dict[str, bytes]) -> None:
        self.part, self.root, self.whole, self.count, self.kept = part, root, whole, 0, 0

    def ends_well(self, change: Callable[[Path], Any], recipe: ImageRecipe | None = None, ranks: int = 1) -> None:
        self.count += 1
        directory = self.root / str(self.count) / "teacher"
        copy = Path(shutil.copytree(self.part, directory.with_name(".partial-teacher")))
        change(copy)
        computed = 0

        class Counted(ImageRecipe):
            def features(self, *arguments: Any) -> Any:
                nonlocal computed
                computed += 1
                return super().features(*arguments)

        counted = Counted(**{name: value for name, value in vars(recipe or the_recipe()).items() if name in FIELDS})
        if ranks == 1:
            prepare_bank(directory, counted)
        else:
            ends = in_threads(ranks, lambda rank: prepare_bank(directory, counted, ranks=rank))
            assert not any(isinstance(end, Exception) for end in ends), ends
        self.kept += computed < BATCHES * (recipe is None)
        assert contents(directory) == self.whole
        assert [path.name for path in directory.parent.iterdir()] == ["teacher"]
        shutil.rmtree(directory.parent)


FIELDS = ImageRecipe.__dataclass_fields__


@pytest.fixture
def case(part: Path, tmp_path: Path, whole: dict[str, bytes]) -> Case:
    return Case(part, tmp_path, whole)


def test_flipped_bits_and_wrong_lengths(case: Case, part: Path) -> None:
    chance = random.Random(0)
    case.ends_well(lambda copy: None)
    assert case.kept == 1  # what is whole is used
    for path in sorted(part.iterdir()):
        data = path.read_bytes()
        for bit in chance.sample(range(8 * len(data)), 30 if path.name == "journal-00001.bin" else 5):
            case.ends_well(lambda copy, n=path.name, d=data, b=bit: (copy / n).write_bytes(flipped(d, b)))
        places = {0, 8, len(data) - 1} if path.name.startswith("journal") else {len(data) - 1}
        for changed in [*(data[:place] for place in places), data + data[:40]]:
            case.ends_well(lambda copy, n=path.name, d=changed: (copy / n).write_bytes(d))
        case.ends_well(lambda copy, n=path.name: (copy / n).unlink())
    assert case.count > 90 and case.kept > 50


def test_swapped_strange_and_foreign_files(case: Case, part: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in part.iterdir())
    for one in names:
        for two in names:
            case.ends_well(lambda copy, o=one, t=two: (copy / o).write_bytes((part / t).read_bytes()))
    outside = tmp_path / "outside"
    for name in names:
        data = (part / name).read_bytes()

        def link(copy: Path, name: str = name, data: bytes = data) -> None:
            outside.write_bytes(data)
            (copy / name).unlink()
            (copy / name).symlink_to(outside)

        case.ends_well(link)
        assert outside.read_bytes() == data  # neither believed nor written to
        for make in (os.mkdir, os.mkfifo):
            case.ends_well(lambda copy, n=name, make=make: (copy / n).unlink() or make(copy / n))
    for text in (b"{", b"[]", b"null", b"[" * 100_000, b"1" * 10_000, b"\xff", b'{"plan": 1, "seconds": "x"}'):
        case.ends_well(lambda copy, t=text: (copy / "plan.json").write_bytes(t))
    for whole_part in (lambda copy: copy.write_bytes(b"file"), lambda copy: copy.symlink_to(tmp_path)):
        case.ends_well(lambda copy, make=whole_part: shutil.rmtree(copy) or make(copy))
    case.ends_well(lambda copy: (copy / "journal-00007.bin").write_bytes((part / "journal-00000.bin").read_bytes()))


def test_records_that_lie(case: Case, part: Path) -> None:
    """Numbers of batches that are not done, or not there, before checksums that are."""
    record = (part / "journal-00000.bin").read_bytes()
    for number in (0, 1, 2, 5, 6, 2**32, 2**63, 2**64 - 1):
        lie = number.to_bytes(8, "little") + record[8:]
        for rank in range(RANKS):
            case.ends_well(lambda copy, r=rank, d=lie: (copy / f"journal-{r:05d}.bin").write_bytes(d), ranks=2)


def test_a_part_of_something_else_is_not_gone_on_with(part: Path, tmp_path: Path) -> None:
    keys = content_keys(the_recipe().digests)
    changes: list[dict[str, Any]] = [
        {"encoder": make_module(4).encoder},
        {"layer": "last"},
        {"tokens": "patch"},
        {"dtype": "float32"},
        {"augment": None},
        *({"augment": Augmentation(*of, keys)} for of in (("crop", 6, 2), ("flip", 5, 2), ("crop", 5, 1))),
    ]
    for number, change in enumerate(changes):
        plain, resumed = (tmp_path / f"{number}" / name / "teacher" for name in ("plain", "resumed"))
        shutil.copytree(part, resumed.with_name(".partial-teacher"))
        for directory in (plain, resumed):
            prepare_bank(directory, the_recipe(**change))
        assert contents(plain) == contents(resumed)
