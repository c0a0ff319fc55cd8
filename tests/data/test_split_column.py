"""A column that says each row's split: whose rows go where, in tables of every kind, and what is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_samples import write_image

from sdfast.data.config import DataConfig
from sdfast.data.items import Source
from sdfast.data.modality import TEXTS
from sdfast.data.records import split_of_value
from sdfast.data.sources import open_source
from sdfast.errors import UserError

Write = Callable[[Path, list[dict[str, Any]]], Path]
SAID = "The splits of {} are those of its column 'split': train 3, val 1, test 2."
LABELS = [0, 0, 1, 1, 1, 0]
ROWS = [
    {"text": f"text {row}", "label": "ab"[LABELS[row]], "split": split}
    for row, split in enumerate(["test", "train", "val", "train", "test", "train"])
]
WANTED = {"train": [1, 3, 5], "val": [2], "test": [0, 4]}


def as_parquet(root: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), root / "x.parquet", row_group_size=4)
    return root / "x.parquet"


def as_saved(root: Path, rows: list[dict[str, Any]]) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(str(root / "saved"))
    return root / "saved"


def as_csv(root: Path, rows: list[dict[str, Any]]) -> Path:
    lines = [",".join(rows[0]), *(",".join(str(cell or "") for cell in row.values()) for row in rows)]
    (root / "x.csv").write_text("\n".join(lines) + "\n")
    return root / "x.csv"


def as_json_lines(root: Path, rows: list[dict[str, Any]]) -> Path:
    (root / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root / "x.jsonl"


every_table = pytest.mark.parametrize("write", [as_parquet, as_saved, as_csv, as_json_lines])


def opened(path: Path, **options: Any) -> Source:
    return open_source(str(path), DataConfig(**options), TEXTS)


def rows_of(source: Source) -> dict[str, list[int]]:
    """The number of each row by its text, read in passes and by index alike; labels are the row's."""
    found = {}
    for split, items in source.splits.items():
        texts = [bytes(item.read()).decode() for item in items]
        assert texts == [bytes(items[index].read()).decode() for index in range(len(items))]
        found[split] = [int(text.split()[1]) for text in texts]
        assert items.labels == [LABELS[row] for row in found[split]] == [item.label for item in items]
    return found


def renamed(rows: list[dict[str, Any]], column: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"text": row["text"], "label": row["label"], column: names[row["split"]]} for row in rows]


@every_table
def test_a_split_column_is_used_and_said(tmp_path: Path, write: Write) -> None:
    source = opened(write(tmp_path, ROWS))
    assert rows_of(source) == WANTED and list(source.splits) == ["train", "val", "test"]
    lacks = "Classes of train without a document in val: 1 (the first: 'a')."
    assert source.warnings == [SAID.format(source.name), lacks]


@every_table
@pytest.mark.parametrize(
    ("column", "names"),
    [
        ("subset", {"train": "Training", "val": "validation", "test": "TESTING"}),
        ("Set", {"train": "train", "val": "dev", "test": "holdout"}),
        ("partition", {"train": "train", "val": "eval", "test": "held_out"}),
    ],
)
def test_usual_names(tmp_path: Path, write: Write, column: str, names: dict[str, str]) -> None:
    assert rows_of(opened(write(tmp_path, renamed(ROWS, column, names)))) == WANTED


@every_table
def test_a_named_column_and_none(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path, renamed(ROWS, "usage", {"train": "train", "val": "val", "test": "test"}))
    assert list(opened(path).splits) == ["train"]
    assert rows_of(opened(path, split_key="usage")) == WANTED
    with pytest.raises(
        UserError, match=r"no (column|field) 'part' \(data.split_key\); its (columns|fields) are 'text'"
    ):
        opened(path, split_key="part")
    (tmp_path / "more").mkdir()
    source = opened(write(tmp_path / "more", ROWS), split_key="none")
    assert list(source.splits) == ["train"] and not source.warnings


@every_table
@pytest.mark.parametrize("unknown", ["extra", None])
def test_values_that_name_no_split_are_named(tmp_path: Path, write: Write, unknown: str | None) -> None:
    path = write(tmp_path, renamed(ROWS, "split", {"train": "train", "val": unknown, "test": "test"}))
    with pytest.raises(UserError) as caught:
        opened(path)
    assert str(caught.value) == (
        f"{path.name}: 1 of 6 rows have no split in column 'split' (values {unknown or ''!r}): write train, val or "
        "test there, remove the rows, or set data.split_key=none to ignore the column."
    )


@every_table
def test_a_column_of_other_things_is_passed_over(tmp_path: Path, write: Write) -> None:
    others = {"train": "1", "val": "2", "test": "3"}
    source = opened(write(tmp_path, renamed(ROWS, "fold", others)))
    assert list(source.splits) == ["train"] and not source.warnings
    (tmp_path / "more").mkdir()
    source = opened(write(tmp_path / "more", renamed(ROWS, "split", others)))
    assert list(source.splits) == ["train"]
    assert source.warnings == [
        f"The column 'split' of {source.name} is not used: its values ('3', '1', '2') are no names of splits "
        "(train, val, test)."
    ]


@every_table
def test_two_names_for_one_split_are_refused(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path, renamed(ROWS, "split", {"train": "train", "val": "val", "test": "dev"}))
    with pytest.raises(UserError, match=r"column 'split' holds 'dev' and 'val', which are both val; write one of them"):
        opened(path)


def test_files_of_splits_and_a_column(tmp_path: Path) -> None:
    """Files that agree are taken, files that do not are an error, and a column that is named decides."""
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_pylist([r for r in ROWS if r["split"] == split]), tmp_path / f"{split}.parquet")
    assert rows_of(opened(tmp_path)) == {"train": [1, 3, 5], "test": [0, 4]}
    pq.write_table(pa.Table.from_pylist([r for r in ROWS if r["split"] != "test"]), tmp_path / "train.parquet")
    with pytest.raises(UserError) as caught:
        opened(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path.name}: column 'split' puts 1 rows of the train files in val; set data.split_key=split to go by the "
        "column, or data.split_key=none to go by the files."
    )
    assert rows_of(opened(tmp_path, split_key="split")) == WANTED
    assert rows_of(opened(tmp_path, split_key="none")) == {"train": [1, 2, 3, 5], "test": [0, 4]}


def test_files_that_are_all_train_are_divided(tmp_path: Path) -> None:
    for name, rows in (("train-0", ROWS[:2]), ("train-1", ROWS[2:])):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    assert rows_of(opened(tmp_path)) == WANTED


def test_a_column_of_class_labels(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["test", "train", "val"])
    rows = datasets.Dataset.from_list(ROWS).cast_column("split", names)
    rows.save_to_disk(str(tmp_path / "saved"))
    rows.to_parquet(tmp_path / "x.parquet")
    for path in (tmp_path / "saved", tmp_path / "x.parquet"):
        source = opened(path)
        assert rows_of(source) == WANTED and source.class_names == ["a", "b"]


def test_images_of_a_table(tmp_path: Path) -> None:
    cells = [
        {"image": {"bytes": write_image(tmp_path / f"{row}.png", row).read_bytes(), "path": None}, **ROWS[row]}
        for row in range(6)
    ]
    pq.write_table(pa.Table.from_pylist([{**cell, "text": None} for cell in cells]), tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"), DataConfig())
    for split, rows in WANTED.items():
        assert [item.read() for item in source.splits[split]] == [cells[row]["image"]["bytes"] for row in rows]
        assert [item.name for item in source.splits[split]] == [f"x.parquet:{row}" for row in rows]


@pytest.mark.parametrize("value", ["cat", "", None, 0, 1.5, "train set", "trainer"])
def test_what_is_no_name_of_a_split(value: object) -> None:
    assert split_of_value(value) is None


def test_folders_and_files_called_training_and_testing(tmp_path: Path) -> None:
    for name in ("Training/a/1", "Training/b/2", "Testing/a/3", "Testing/b/4"):
        write_image(tmp_path / "scans" / f"{name}.png", int(name[-1]))
    source = open_source(str(tmp_path / "scans"), DataConfig())
    assert source.class_names == ["a", "b"]
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 2, "test": 2}
    (tmp_path / "files").mkdir()
    for name in ("training", "testing"):
        pq.write_table(
            pa.Table.from_pylist(renamed(ROWS, "id", dict.fromkeys(WANTED, 1))), tmp_path / f"files/{name}.parquet"
        )
    assert list(opened(tmp_path / "files").splits) == ["train", "test"]


def test_a_class_called_training(tmp_path: Path) -> None:
    for number, name in enumerate(("training", "match", "interview")):
        write_image(tmp_path / name / "1.png", number)
    assert open_source(str(tmp_path), DataConfig()).class_names == ["interview", "match", "training"]
