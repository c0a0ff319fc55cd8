"""One class for each label whatever its spelling, and a sentence for what is no label: in every kind of source."""

from __future__ import annotations

import datetime
import io
import json
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_samples import write_image

from sdfast.data.config import DataConfig
from sdfast.data.items import Source, known_items
from sdfast.data.labels import NA_LABELS, compare_classes, encode_labels, known_classes
from sdfast.data.modality import TEXTS
from sdfast.data.sources import open_source
from sdfast.errors import UserError

Write = Callable[[Path, dict[str, list[Any]]], Path]  # labels by split -> what --data takes
CAFE = "caf\u00e9"
NAN = float("nan")


def texts_of(split: str, count: int) -> list[str]:
    return [f"{split} {row}" for row in range(count)]


def as_parquet(root: Path, labels: dict[str, list[Any]]) -> Path:
    for split, column in labels.items():
        pq.write_table(pa.table({"text": texts_of(split, len(column)), "label": column}), root / f"{split}.parquet")
    return root


def as_saved(root: Path, labels: dict[str, list[Any]]) -> Path:
    parts = {
        split: datasets.Dataset.from_dict({"text": texts_of(split, len(column)), "label": column})
        for split, column in labels.items()
    }
    datasets.DatasetDict(parts).save_to_disk(str(root / "saved"))
    return root / "saved"


def as_json_lines(root: Path, labels: dict[str, list[Any]]) -> Path:
    for split, column in labels.items():
        records = [{"text": text, "label": label} for text, label in zip(texts_of(split, 9), column, strict=False)]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return root


def as_csv(root: Path, labels: dict[str, list[Any]]) -> Path:
    for split, column in labels.items():
        rows = [
            f"{text},{'' if label is None else label}" for text, label in zip(texts_of(split, 9), column, strict=False)
        ]
        (root / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return root


def opened(path: Path, **options: Any) -> Source:
    return open_source(str(path), DataConfig(**options), TEXTS)


def classes_of(source: Source) -> dict[str, list[str | None]]:
    names = source.class_names or []
    return {
        split: [None if label is None else names[label] for label in items.labels]
        for split, items in source.splits.items()
    }


@pytest.mark.parametrize("write", [as_parquet, as_saved, as_json_lines, as_csv])
@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (
            {"train": [0.0, 1.0, None, 1.0], "test": [0, 1, 1]},
            ["0", "1"],
            {"train": [0, 1, None, 1], "test": [0, 1, 1]},
        ),
        (
            {"train": [0, 1, 10], "test": [10.0, None, 0.0]},
            ["0", "1", "10"],
            {"train": [0, 1, 2], "test": [2, None, 0]},
        ),
        ({"train": [-1.0, 0.0, 1.0], "test": [1, -1, 0]}, ["0", "1"], {"train": [None, 0, 1], "test": [1, None, 0]}),
        (
            {"train": [0.5, 1.0, 1.5], "test": [0.5, 1.0, 1.5]},
            ["0.5", "1.0", "1.5"],
            {"train": [0, 1, 2], "test": [0, 1, 2]},
        ),
        ({"train": ["b ", " a", "a"], "test": ["a", "b"]}, ["a", "b"], {"train": [1, 0, 0], "test": [0, 1]}),
    ],
)
def test_the_spellings_of_a_number_are_one_class_in_every_source(
    tmp_path: Path, write: Write, labels: dict[str, list[Any]], names: list[str], numbers: dict[str, list[int | None]]
) -> None:
    source = opened(write(tmp_path, labels))
    assert source.class_names == names
    assert {split: items.labels for split, items in source.splits.items()} == numbers


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        (0, 0.0, "0"),
        ("0", "0.0", "0"),
        ("0.00", "-0", "0"),
        ("+7", "7.", "7"),
        (".5", "0.50", "0.5"),
        (Decimal("2.00"), "2", "2"),
        (np.int64(3), np.float32(3), "3"),
        (np.str_("x"), "x", "x"),
        (True, "true", "true"),
        ("TRUE", np.bool_(True), "true"),
        (CAFE, unicodedata.normalize("NFD", CAFE), CAFE),
        (" x\t", "x", "x"),
        ("\ufeffx", "x", "x"),
    ],
)
def test_two_spellings_are_one_class(first: Any, second: Any, name: str) -> None:
    for one, other in ((first, second), (second, first)):
        names, numbers = encode_labels({"train": [one, "zebra"], "test": [other]})
        assert names == sorted([name, "zebra"])
        assert numbers["train"][0] == numbers["test"][0] == names.index(name)


@pytest.mark.parametrize(
    "labels",
    [
        ["0.0", "1.0"],  # as pandas writes integers beside an empty cell: the names stay what they were
        ["False", "True"],
        ["false", "true"],
        [unicodedata.normalize("NFD", CAFE), "x"],
        ["01", "1"],
        ["1", "1.5", "2.0"],
        ["Cat", "cat"],
        ["1000000000000000000000000000000", "1000000000000000000000000000001"],
    ],
)
def test_one_spelling_keeps_its_name(labels: list[str]) -> None:
    """So that the packs and runs of such data stay what they are."""
    names, numbers = encode_labels({"train": labels})
    assert names == labels and numbers["train"] == list(range(len(labels)))


def test_what_is_missing_has_no_class() -> None:
    missing = [None, NAN, np.float32("nan"), Decimal("nan"), "", "  "]
    assert encode_labels({"train": ["a", *missing]}) == (["a"], {"train": [0, *[None] * 6]})
    assert encode_labels({"train": ["2.5", "nan", "NaN", 1]})[1]["train"] == [1, None, None, 0]
    assert encode_labels({"train": missing}) == (None, {"train": [None] * 6})
    assert encode_labels({"train": ["nan", "rice"]}) == (["rice"], {"train": [None, 0]})
    assert encode_labels({"train": ["nan", "rice"]}, na_labels="class")[0] == ["nan", "rice"]  # a dish


WORDS = ["cat", "N/A", "nan", "dog", "NA", "null", "None", "none", "cat", "", "#N/A", "<NA>", "n/a", "NULL", "NaN"]


@pytest.mark.parametrize("write", [as_csv, as_parquet, as_json_lines])
def test_words_for_no_label_are_those_of_pandas(tmp_path: Path, write: Write) -> None:
    source = opened(write(tmp_path, {"train": WORDS, "test": ["dog", "nan", "none", "cat"]}))
    pd.DataFrame({"label": WORDS}).to_csv(tmp_path / "by-hand", index=False)
    read = pd.read_csv(tmp_path / "by-hand", skip_blank_lines=False)["label"]
    names = source.class_names or []
    given = [None if label is None else names[label] for label in source.splits["train"].labels]
    assert given == [None if pd.isna(label) else label for label in read][: len(given)]
    words = {word for word, label in zip(WORDS, read, strict=True) if word and pd.isna(label)}
    said = next(warning for warning in source.warnings if "read as missing" in warning)
    met = [word for word in [*WORDS[: len(given)], "nan"] if word in words]
    assert f": {len(met):,}; data.na_labels=class" in said and repr(sorted({*met})[0]) in said


def test_words_for_no_label_are_classes_where_that_is_asked(tmp_path: Path) -> None:
    labels = {"train": ["cat", "None", "N/A", ""], "test": ["cat", "None", "N/A"]}
    source = opened(as_csv(tmp_path, labels), na_labels="class")
    assert source.class_names == sorted({"cat", "None", "N/A"}) and source.warnings == []
    assert classes_of(source)["train"] == ["cat", "None", "N/A", None]


def test_every_word_that_pandas_takes_for_missing() -> None:
    words = sorted(NA_LABELS)
    read = pd.read_csv(io.StringIO("\n".join(["label", "x", *words])))["label"]
    assert read.isna().tolist() == [False] + [True] * len(words)
    assert encode_labels({"train": ["x", *words]}) == (["x"], {"train": [0] + [None] * len(words)})
    assert encode_labels({"train": [3, *words, "1.0"], "test": ["1", "3.0"]}) == (
        ["1", "3"],
        {"train": [1, *[None] * len(words), 0], "test": [0, 1]},
    )


def test_folders_keep_classes_of_such_names(tmp_path: Path) -> None:
    for name in ("None/1", "crack/2", "NA/3"):
        write_image(tmp_path / f"{name}.png", int(name[-1]))
    source = open_source(str(tmp_path), DataConfig())
    assert source.class_names == ["NA", "None", "crack"] and source.warnings == []


def test_class_labels_and_words_for_no_label(tmp_path: Path) -> None:
    class_column([0, 1], ["cat", "dog"]).to_parquet(tmp_path / "train.parquet")
    class_column(["dog", "N/A"], None).to_parquet(tmp_path / "test.parquet")
    assert classes_of(opened(tmp_path)) == {"train": ["cat", "dog"], "test": ["dog", None]}
    with pytest.raises(UserError, match="'N/A' is none of its classes"):
        opened(tmp_path, na_labels="class")


def test_integers_that_one_file_writes_as_floats_are_said(tmp_path: Path) -> None:
    source = opened(as_csv(tmp_path, {"train": ["1.0", "0.0", ""], "test": ["1", "0"]}))
    assert classes_of(source) == {"train": ["1", "0", None], "test": ["1", "0"]}
    assert source.warnings == [
        f"Classes of {source.name} that are spelled in several ways: 2 (the first: '0', '0.0' are '0')."
    ]


@pytest.mark.parametrize("write", [as_parquet, as_saved, as_json_lines])
def test_a_list_of_labels_is_refused_where_each_row_has_one_class(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path, {"train": [[0, 2], [1], [0, 2]]})
    with pytest.raises(UserError) as caught:
        opened(path, problem_type="single_label_classification")
    assert "label" in str(caught.value) and " is a list" in str(caught.value)
    assert "data.label_key=none" in str(caught.value)
    source = opened(path, label_key="none")
    assert source.class_names is None and source.splits["train"].labels == [None] * 3


def test_a_sequence_of_class_labels_is_several_classes_a_row(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "topics": datasets.Sequence(datasets.ClassLabel(names=["a", "b"]))}
    )
    rows = datasets.Dataset.from_dict({"text": ["x", "y"], "topics": [[0, 1], [1]]}, features=features)
    rows.save_to_disk(str(tmp_path / "saved"))
    rows.to_parquet(tmp_path / "x.parquet")
    for path in (tmp_path / "saved", tmp_path / "x.parquet"):
        bare = opened(path)
        assert (
            bare.class_names is None and "if they are 'topics', say so by" in bare.warnings[0]
        )  # not called as labels
        source = opened(path, label_key="topics")
        assert source.class_names == ["a", "b"] and source.splits["train"].labels == [(0, 1), (1,)]
        with pytest.raises(UserError, match=r"column 'topics' \(train\): a label is a list \(\[0, 1\]\)"):
            opened(path, label_key="topics", problem_type="single_label_classification")


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ([{"a": 1}, {"a": 2}], r"an object \(\{'a': 1\}\)"),
        ([b"cat", b"dog"], r"of type bytes \(b'cat'\)"),
        ([datetime.date(2020, 1, 2), None], r"of type date"),
    ],
)
def test_what_is_no_label_is_refused(tmp_path: Path, column: list[Any], kind: str) -> None:
    with pytest.raises(UserError, match=rf"column 'label': a label is {kind}"):
        opened(as_parquet(tmp_path, {"train": column}))


def class_column(values: list[Any], names: list[str] | None) -> datasets.Dataset:
    label = (
        datasets.ClassLabel(names=names)
        if names
        else datasets.Value("string" if isinstance(values[0], str) else "int64")
    )
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    return datasets.Dataset.from_dict({"text": texts_of("x", len(values)), "label": values}, features=features)


@pytest.mark.parametrize("plain", [["dog", "cat", " dog"], [1, 0, 1]])
def test_class_labels_in_one_split_and_their_names_or_numbers_in_the_other(tmp_path: Path, plain: list[Any]) -> None:
    splits = {"train": class_column([0, 1, 0], ["cat", "dog"]), "test": class_column(plain, None)}
    for split, rows in splits.items():
        rows.to_parquet(tmp_path / f"{split}.parquet")
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    for path in (tmp_path / "saved", tmp_path):
        assert classes_of(opened(path)) == {"train": ["cat", "dog", "cat"], "test": ["dog", "cat", "dog"]}


def test_class_labels_and_other_names_show_both(tmp_path: Path) -> None:
    class_column([0, 1], ["cat", "dog"]).to_parquet(tmp_path / "train.parquet")
    class_column(["Hund", "cat"], None).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(UserError, match=r"\(test\): label 'Hund' is none of its classes 'cat', 'dog'\."):
        opened(tmp_path)
    class_column([0, 1], ["dog", "cat"]).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(UserError, match=r"with the classes 'dog', 'cat', not .* with the classes 'cat', 'dog'\)"):
        opened(tmp_path)


@pytest.mark.parametrize("write", [as_parquet, as_saved, as_json_lines, as_csv])
def test_splits_of_other_classes_show_both(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path, {"train": ["cat", "dog", "cat"], "test": ["Cat", "Dog"]})
    for unseen in ("error", "drop"):
        with pytest.raises(UserError) as caught:
            opened(path, unseen=unseen)
        assert str(caught.value) == (
            f"{path.name}: classes of test that train lacks: 2 (the first: 'Cat'); rename the class or remove its "
            "documents. The classes of train are 'cat', 'dog'."
        )


@pytest.mark.parametrize("write", [as_parquet, as_saved, as_json_lines, as_csv])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_unseen_classes_stop_or_are_dropped(tmp_path: Path, write: Write, split: str) -> None:
    """The class between the two others: those after it are numbered anew."""
    path = write(tmp_path, {"train": ["a", "c", "a"], split: ["b", "c", "b", None, "a"]})
    here = "val" if split == "validation" else split
    with pytest.raises(UserError) as caught:
        opened(path)
    assert str(caught.value) == (
        f"{path.name}: classes of {here} that train lacks: 1 (the first: 'b'); rename the class or remove its "
        "documents. The classes of train are 'a', 'c', and data.unseen=drop leaves out the 2 documents of such classes."
    )
    source = opened(path, unseen="drop")
    assert source.class_names == ["a", "c"]
    assert classes_of(source) == {"train": ["a", "c", "a"], here: ["c", None, "a"]}
    items = source.splits[here]
    assert [item.label for item in items] == items.labels == [items[row].label for row in range(3)] == [1, None, 0]
    assert [bytes(item.read()).decode() for item in items] == [f"{split} {row}" for row in (1, 3, 4)]
    assert source.warnings == [
        f"Classes of {here} that train lacks: 1 (the first: 'b'); their 2 documents are left out (data.unseen=drop)."
    ]


def test_unseen_classes_of_folders_are_dropped(tmp_path: Path) -> None:
    for name in ("train/a/1", "train/c/2", "test/a/3", "test/b/4", "test/c/5"):
        write_image(tmp_path / f"{name}.png", int(name[-1]))
    source = open_source(str(tmp_path), DataConfig(unseen="drop"))
    assert [item.name for item in source.splits["test"]] == ["test/a/3.png", "test/c/5.png"]
    assert source.class_names == ["a", "c"] and source.splits["test"].labels == [0, 1]


BAD_NAMES = {"a\ud800": "half of a surrogate pair", "a\x00b": "a control character", "a\x1b[1m": "a control character"}


@pytest.mark.parametrize(("name", "what"), BAD_NAMES.items())
def test_class_names_that_cannot_be_read_back_are_refused(tmp_path: Path, name: str, what: str) -> None:
    path = as_json_lines(tmp_path, {"train": [name, "b"]})
    with pytest.raises(UserError, match=rf"the class 'a\\.* holds {what}") as caught:
        opened(path)
    str(caught.value).encode()
    for split in ("train", "test"):
        source = Source("x", "any", [name, "b"], {split: known_items()})
        with pytest.raises(UserError, match=what):
            compare_classes(source, strict=True)


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "caf\udce9" / "1.png", 1)
    write_image(tmp_path / "b" / "1.png", 2)
    with pytest.raises(UserError, match=r"the class 'caf\\udce9' holds half of a surrogate pair"):
        open_source(str(tmp_path), DataConfig())


def test_known_classes_by_spelling_and_then_by_key() -> None:
    assert known_classes(["0", "1.0", "cat", "x"], ["0.0", "cat", "1.0", "1"]) == [0, 2, 1, None]
    assert known_classes(["1"], ["1.0", "1"]) == [1]


def test_the_text_beside_a_label_of_a_less_usual_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"category": ["b", "a"], "body": ["x", "y"]}), tmp_path / "x.parquet")
    source = opened(tmp_path / "x.parquet")
    assert classes_of(source) == {"train": ["b", "a"]}
    assert [item.read() for item in source.splits["train"]] == [b"x", b"y"]
    pq.write_table(pa.table({"topic": ["x", "y"]}), tmp_path / "x.parquet")
    assert [item.read() for item in opened(tmp_path / "x.parquet").splits["train"]] == [b"x", b"y"]
