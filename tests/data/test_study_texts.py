"""The recipe of the study's texts: documents that are spared for choices are in no other set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "recipes"))
    import study_texts  # type: ignore[import-not-found]

    return study_texts


ROWS = [(label, f"{label} {number}") for number in range(6) for label in ("sci.med", "rec.autos")]


def test_spared_documents_leave_train_and_are_halved_by_class(recipe: ModuleType) -> None:
    parts = recipe.hold_out(ROWS, 4)
    assert sorted(row for part in parts.values() for row in part) == sorted(ROWS)
    assert {name: Counter(label for label, _ in part) for name, part in parts.items()} == {
        name: {"sci.med": 2, "rec.autos": 2} for name in ("kept", "train", "test")
    }


def test_without_spared_documents_train_is_as_it_was(recipe: ModuleType) -> None:
    assert recipe.hold_out(ROWS, 0) == {"kept": ROWS, "train": [], "test": []}


def test_rows_are_read_once_and_without_the_header(recipe: ModuleType, tmp_path: Path) -> None:
    table = tmp_path / "table.tab"
    table.write_text("category\ttext\nd\ts\nclass\tmeta\nb\ttwo words\r\na\tone\nb\ttwo words\nc\t \n")
    assert list(recipe.documents(table)) == [("b", "two words"), ("a", "one")]
