"""The recipe of the studies' images: no image is in two sets, and neighbours of a list stay on one side."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sdfast.data.config import DataConfig
from sdfast.data.idx import open_idx


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "recipes"))
    import study_images  # type: ignore[import-not-found]

    return study_images


def rows(recipe: ModuleType, first: int, last: int):  # type: ignore[no-untyped-def]
    """Images of one value each, first to last - 1, of three classes."""
    values = np.arange(first, last, dtype=np.uint8)
    return recipe.Rows(np.broadcast_to(values[:, None, None], (len(values), 2, 2)).copy(), values % 3)


def test_what_is_taken_leaves_the_pool(recipe: ModuleType) -> None:
    kept = recipe.without(rows(recipe, 0, 8), rows(recipe, 2, 4), rows(recipe, 7, 9))
    assert kept.images[:, 0, 0].tolist() == [0, 1, 4, 5, 6] and kept.labels.tolist() == [0, 1, 1, 2, 0]


def test_sets_that_share_an_image_are_named(recipe: ModuleType) -> None:
    apart = {"pool": [rows(recipe, 0, 3)], "target": [rows(recipe, 3, 5), rows(recipe, 5, 6)]}
    recipe.check_apart(apart)
    with pytest.raises(SystemExit, match="target and validation share 2 images"):
        recipe.check_apart({**apart, "validation": [rows(recipe, 4, 9)]})


def test_a_written_pool_has_neither_labels_nor_rows_of_the_other_sets(recipe: ModuleType, tmp_path: Path) -> None:
    validation = {"train": rows(recipe, 0, 3), "t10k": rows(recipe, 3, 6)}
    target = {"train": rows(recipe, 6, 9), "t10k": rows(recipe, 9, 12)}
    recipe.write_fashion(tmp_path, "", rows(recipe, 4, 20), validation, target)
    pool = open_idx(tmp_path / "pool", DataConfig())
    assert {split: len(items) for split, items in pool.splits.items()} == {"train": 8}
    assert all(item.label is None for item in pool.splits["train"])
    read = open_idx(tmp_path / "validation", DataConfig())
    assert {split: len(items) for split, items in read.splits.items()} == {"train": 3, "test": 3}


def test_classes_of_the_shifted_sets_are_apart(recipe: ModuleType) -> None:
    assert sorted(recipe.UPPER_BODY + recipe.OTHERS) == list(range(10))
    assert rows(recipe, 0, 6).of_classes([1]).images[:, 0, 0].tolist() == [1, 4]


def test_a_split_has_its_shares_of_each_stratum(recipe: ModuleType) -> None:
    strata = ["a", "b"] * 20
    split = recipe.seeded_split(strata, seed=3)
    assert Counter(zip(strata, split, strict=True)) == {
        (stratum, part): n for stratum in "ab" for part, n in (("train", 10), ("val", 4), ("test", 6))
    }
    assert split == recipe.seeded_split(strata, seed=3) != recipe.seeded_split(strata, seed=4)


def test_blocks_are_of_one_kind_and_no_longer_than_a_module(recipe: ModuleType) -> None:
    kinds = ["mono"] * 61 + ["poly"] * 2 + ["mono"]
    blocks = recipe.blocks_of(kinds)
    assert blocks == [0] * 60 + [1, 2, 2, 3]
    strata = recipe.strata_of(blocks, kinds, [True] * 64)
    assert strata == [("mono", 0), ("mono", 0), ("poly", 0), ("mono", 0)]


def test_strata_go_by_the_share_of_defective_cells(recipe: ModuleType) -> None:
    blocks = list(range(12))
    defective = [block % 2 == 0 for block in blocks]
    strata = recipe.strata_of(blocks, ["poly"] * 12, defective)
    assert [block for block in blocks if strata[block] == ("poly", 1)] == [8, 10]
