"""Sources of texts: miniature copies of the public layouts, and a sentence for everything that is wrong."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from text_samples import records, sentence, write_json_lines, write_splits

from sdfast.data.config import DataConfig
from sdfast.data.items import Source
from sdfast.data.modality import TEXTS
from sdfast.data.sources import open_source
from sdfast.errors import UserError

Open = Callable[..., Source]


@pytest.fixture
def open_texts() -> Open:
    return lambda spec, **options: open_source(str(spec), DataConfig(**options), TEXTS)


def texts_of(source: Source, split: str = "train") -> list[str]:
    return [bytes(item.read()).decode() for item in source.splits[split]]


def names_of(source: Source, split: str = "train") -> list[str]:
    return [item.name for item in source.splits[split]]


# JSON lines.


def test_json_lines_as_dont_stop_pretraining(tmp_path: Path, open_texts: Open) -> None:
    source = open_texts(write_splits(tmp_path / "mine"))
    assert source.name == "mine" and source.kind == "jsonl" and source.modality is TEXTS
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 6, "val": 2, "test": 2}
    assert source.class_names == ["class 0", "class 1"]
    assert source.splits["train"].labels == [0, 1, 0, 1, 0, 1]
    assert texts_of(source) == [sentence(index) for index in range(6)]
    assert names_of(source, "val") == ["dev.jsonl:1", "dev.jsonl:2"]
    last = source.splits["test"][-1]
    assert last.read() == sentence(20_001).encode() and last.name == "test.jsonl:2" and last.label == 1
    with pytest.raises(IndexError):
        source.splits["test"][2]
    assert source.warnings == []


def test_one_file_named_fields_and_gzip(tmp_path: Path, open_texts: Open) -> None:
    path = tmp_path / "x.jsonl.gz"
    lines = '{"body": "a\u2028b \u00e9", "kind": 10}\n{"body": "c", "kind": 9}\n{"body": "d", "kind": null}\n'
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + lines.encode()))
    source = open_texts(path, text_key="body", label_key="kind")
    assert source.class_names == ["9", "10"] and source.splits["train"].labels == [1, 0, None]
    assert texts_of(source) == ["a\u2028b \u00e9", "c", "d"]


def test_labels_may_be_absent(tmp_path: Path, open_texts: Open) -> None:
    source = open_texts(write_json_lines(tmp_path / "x.jsonl", [{"text": "a"}, {"text": "b"}]))
    assert source.class_names is None and source.splits["train"].labels == [None, None]


def test_usual_names_of_fields(tmp_path: Path, open_texts: Open) -> None:
    rows = [{"id": 1, "Sentence": "a", "category": "x"}, {"Sentence": "b", "category": None}, {"Sentence": "c"}]
    source = open_texts(write_json_lines(tmp_path / "x.jsonl", rows))
    assert texts_of(source) == ["a", "b", "c"] and source.class_names == ["x"]
    assert source.splits["train"].labels == [0, None, None] and source.warnings == [
        "x.jsonl: 'Sentence' is taken for the texts (data.text_key chooses another).",
        "x.jsonl: 'category' is taken for the labels (data.label_key chooses another).",
    ]
    rows = [{"text": "a", "content": "-", "kind": "x", "id": 7}, {"text": "b", "content": "-", "kind": "y"}]
    source = open_texts(write_json_lines(tmp_path / "x.jsonl", rows))
    assert texts_of(source) == ["a", "b"] and source.warnings == [
        "x.jsonl: no column is taken for the labels; if they are one of 'content', 'kind', 'id', say so by "
        "data.label_key."
    ]
    rows = [{"text": "a"}, {"text": "b", "label": 3}]  # the first object needs no label
    source = open_texts(write_json_lines(tmp_path / "x.jsonl", rows))
    assert source.class_names == ["3"] and source.warnings == []
    assert open_texts(tmp_path / "x.jsonl", label_key="none").class_names is None


def test_a_field_of_splits(tmp_path: Path, open_texts: Open) -> None:
    rows = [
        {"text": "a", "label": 0, "split": "train"},
        {"text": "b", "label": 1, "split": "test"},
        {"text": "c", "label": 1, "split": "train"},
        {"text": "d", "label": 0, "split": "validation"},
    ]
    table = "text,label,split\n" + "".join(f"{row['text']},{row['label']},{row['split']}\n" for row in rows)
    (tmp_path / "x.csv").write_text(table)
    write_json_lines(tmp_path / "x.jsonl", rows)
    for name in ("x.jsonl", "x.csv"):
        source = open_texts(tmp_path / name)
        assert {split: texts_of(source, split) for split in source.splits} == {
            "train": ["a", "c"],
            "val": ["d"],
            "test": ["b"],
        }
        assert [source.splits[split].labels for split in source.splits] == [[0, 1], [0], [1]]
        assert f"The splits of {name} are those of its column 'split': train 2, val 1, test 1." in source.warnings
        assert texts_of(open_texts(tmp_path / name, split_key="none")) == ["a", "b", "c", "d"]
    folder = tmp_path / "two"
    write_json_lines(folder / "train.jsonl", [{"text": "a", "label": 0, "split": "train"}])
    write_json_lines(folder / "test.jsonl", [{"text": "b", "label": 0}])  # without the field it is what its name says
    assert {split: texts_of(open_texts(folder), split) for split in ("train", "test")} == {
        "train": ["a"],
        "test": ["b"],
    }


def test_old_line_ends_and_encodings(tmp_path: Path, open_texts: Open) -> None:
    lines = ['{"text": "caf\xe9", "label": "x"}', '{"text": "th\xe9", "label": "y"}', ""]
    for number, (end, encoding) in enumerate((("\r", "utf-8"), ("\n", "cp1252"), ("\r\n", "utf-16"))):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(end.join(lines).encode(encoding))
        source = open_texts(path, encoding=encoding)
        assert texts_of(source) == ["caf\xe9", "th\xe9"] and source.class_names == ["x", "y"]
    root = write_tweet_eval(tmp_path / "irony")
    (root / "test_text.txt").write_bytes("caf\xe9\nth\xe9\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"data.encoding=cp1252"):
        open_texts(root)
    assert texts_of(open_texts(root, encoding="cp1252"), "test") == ["caf\xe9", "th\xe9"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b'{"text": "a"}\n{"text": "\x81"}\n', {}, "x.jsonl line 2 is not a UTF-8 text: invalid start byte."),
        (b'{"text": "a"}\n[1, 2]\n', {}, "x.jsonl line 2 is not a JSON object"),
        (b'{"text": "a"}\n{"text": \n', {}, "x.jsonl line 2 is not JSON: Expecting value."),
        (b"[" * 100_000, {}, "x.jsonl line 1 is not JSON"),
        (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", {}, "x.jsonl line 1 is not JSON: a number is too long."),
        (b'{"title": "a", "label": 1}\n', {}, "line 1 has no field 'text' (data.text_key); its fields are 'title', 'l"),
        (b'{"text": "a", "label": 1}\n{"label": 2}\n', {}, "line 2 has no field 'text' (data.text_key)"),
        (b'{"text": "a", "label": 1}\n', {"label_key": "kind"}, "line 1 has no field 'kind' (data.label_key)"),
        (b'{"text": 3}\n', {}, "line 1: field 'text' is a number, not a text."),
        (b'{"text": ["a"]}\n', {}, "line 1: field 'text' is a list, not a text."),
        (b'{"text": "a", "label": {"a": 1}}\n', {}, "line 1: field 'label' is an object, not one label."),
        (
            b'{"text": "a", "label": [1, 2]}\n',
            {"problem_type": "single_label_classification"},
            "line 1: field 'label' is a list, not one label.",
        ),
        (b"", {}, "x.jsonl holds no documents."),
    ],
)
def test_json_lines_that_do_not_do(
    tmp_path: Path, open_texts: Open, content: bytes, options: dict[str, str], message: str
) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_texts(tmp_path / "x.jsonl", **options)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_gzip_is_named(tmp_path: Path, open_texts: Open) -> None:
    whole = gzip.compress(b'{"text": "a"}\n' * 1000)
    for content in (whole[:-12], b"plain"):
        (tmp_path / "x.jsonl.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"x\.jsonl\.gz is not a whole gzip file"):
            open_texts(tmp_path / "x.jsonl.gz")


def test_an_empty_file_of_a_split(tmp_path: Path, open_texts: Open) -> None:
    write_splits(tmp_path)
    (tmp_path / "dev.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match=r"dev\.jsonl holds no documents"):
        open_texts(tmp_path)


def test_a_class_of_test_that_train_lacks(tmp_path: Path, open_texts: Open) -> None:
    write_splits(tmp_path / "mine")
    write_json_lines(tmp_path / "mine" / "test.jsonl", [{"text": "x", "label": "new"}])
    with pytest.raises(UserError) as caught:
        open_texts(tmp_path / "mine")
    assert str(caught.value) == (
        "mine: classes of test that train lacks: 1 (the first: 'new'); rename the class or remove its documents. "
        "The classes of train are 'class 0', 'class 1'."
    )


def test_a_class_of_train_that_test_lacks(tmp_path: Path, open_texts: Open) -> None:
    write_splits(tmp_path, test=1)
    assert open_texts(tmp_path).warnings == ["Classes of train without a document in test: 1 (the first: 'class 1')."]


# Tables and plain lines.


def test_csv_with_quotes_separators_and_line_ends(tmp_path: Path, open_texts: Open) -> None:
    path = tmp_path / "x.csv"
    path.write_text('id,text,label\n1,"a, ""b""\nc",x\n2,plain,y\n', encoding="utf-8")
    source = open_texts(path)
    assert texts_of(source) == ['a, "b"\nc', "plain"] and source.class_names == ["x", "y"]
    assert names_of(source) == ["x.csv:3", "x.csv:4"]
    path.write_text("kind;body\nx;a, b\n", encoding="utf-8")
    assert texts_of(open_texts(path, text_key="body", label_key="kind")) == ["a, b"]


@pytest.mark.parametrize(("name", "mark"), [("x.csv", ";"), ("x.csv", ","), ("x.tsv", "\t")])
def test_empty_cells_behind_the_last_column(tmp_path: Path, open_texts: Open, name: str, mark: str) -> None:
    rows = [["text", "label"], ["one two", "a", "", ""], ["three", "b"], ["four", "", ""]]
    for header in (rows[0], [*rows[0], "", ""]):
        (tmp_path / name).write_text("\n".join(map(mark.join, [header, *rows[1:]])), encoding="utf-8")
        source = open_texts(tmp_path / name)
        assert texts_of(source) == ["one two", "three", "four"] and source.splits["train"].labels == [0, 1, None]
    (tmp_path / name).write_text(f"text{mark}label\nshort\n")
    with pytest.raises(UserError, match="line 2 has 1 cells, not 2 as the header"):
        open_texts(tmp_path / name)


def test_one_column_holds_any_mark(tmp_path: Path, open_texts: Open) -> None:
    lines = ["plain", "well, well", "a; b|c\td", '"quoted, ""too"""']
    (tmp_path / "x.csv").write_text("\n".join(["text", *lines]), encoding="utf-8")
    by_hand = [row[0] for row in csv.reader(lines, delimiter="\x00")]
    assert texts_of(open_texts(tmp_path / "x.csv")) == by_hand == [*lines[:3], 'quoted, "too"']


def test_a_long_cell_is_no_error(tmp_path: Path, open_texts: Open) -> None:
    (tmp_path / "x.csv").write_text(f"text,label\n{'word ' * 60_000},a\n")
    assert len(texts_of(open_texts(tmp_path / "x.csv"))[0]) == 299_999


def test_tsv_keeps_quotation_marks_inside_cells(tmp_path: Path, open_texts: Open) -> None:
    path = tmp_path / "x.tsv"
    path.write_text('text\tlabel\n"open, never closed\ta\nsay ""\tb\n"quoted ""cell"""\ta\n', encoding="utf-8")
    assert texts_of(open_texts(path)) == ['"open, never closed', 'say ""', 'quoted "cell"']


def test_tables_by_split(tmp_path: Path, open_texts: Open) -> None:
    for name, first in (("train", 0), ("test", 50)):
        rows = "".join(f"{record['text']}\t{record['label']}\n" for record in records(4, first=first))
        (tmp_path / f"{name}.tsv").write_text(f"text\tlabel\n{rows}")
    (tmp_path / "notes.md").write_text("x")
    source = open_texts(tmp_path)
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 4, "test": 4}
    assert source.kind == "tsv" and names_of(source, "test")[0] == "test.tsv:2"


def test_usual_columns_and_bars(tmp_path: Path, open_texts: Open) -> None:
    path = tmp_path / "x.csv"
    for mark in ";|\t,":
        path.write_text(f'Text{mark} Label\n"a{mark} b"{mark}x\nText{mark}Label\nc{mark}y\n')
        source = open_texts(path)
        assert texts_of(source) == [f"a{mark} b", "c"] and source.class_names == ["x", "y"]
        assert names_of(source) == ["x.csv:2", "x.csv:4"]
        assert (
            "Lines that are the header again" in source.warnings[2]
            and "1 (the first: x.csv line 3)" in source.warnings[2]
        )
    path.write_text("text\na\ntext\n")  # one column: the word may be a document
    assert texts_of(open_texts(path)) == ["a", "text"]
    for name in ("train", "test"):
        (tmp_path / "both" / f"{name}.csv").parent.mkdir(exist_ok=True)
        (tmp_path / "both" / f"{name}.csv").write_text(f"Document,Target\nthe {name},x\n")
    source = open_texts(tmp_path / "both")
    assert [texts_of(source, split) for split in ("train", "test")] == [["the train"], ["the test"]]
    assert len(source.warnings) == 2  # each sentence once, not for each file


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"body,label\na,b\n", "x.csv has no column 'text'; its columns are 'body', 'label': name the one"),
        ("x.csv", b"text,label\na, b, c\n", "x.csv line 2 has 3 cells, not 2 as the header: quote texts that hold"),
        ("x.tsv", b"text\tlabel\na\tb\tc\n", "x.tsv line 2 has 3 cells, not 2"),
        ("x.csv", b"text,label\na,b\n\x81,b\n", "x.csv line 3 is not a UTF-8 text table"),
        ("x.tsv", b"text\tlabel\na\tb\n\x81\tb\n", "x.tsv line 3 is not a UTF-8 text table"),
        ("x.csv", b"text,label\n", "x.csv holds no documents."),
        ("x.csv", b"", "x.csv has no column 'text'; its columns are none"),
        (
            "x.csv",
            b"good one,pos\nbad one,neg\nwell,pos\n",
            "x.csv has no header: its first line is a row ('good one',",
        ),
        (
            "x.csv",
            b"good one here\nbad one here\n",
            "or, if this is its first row, write the names of the columns above",
        ),
        (
            "x.csv",
            b"sentence,content,label\na,b,c\n",
            "several columns that may hold the texts ('sentence', 'content')",
        ),
        ("x.csv", b"file_name,label\na.png,c\n", "images need a model of images, and this is one of text"),
        ("x.csv", b"text,label\na,b\nlabel,text\nb,a\n", "line 3 is a header again, with its columns in another order"),
        ("x.csv", b"te\rxt,label\n", "x.csv line 1 is no header of a text table: its lines end in several ways"),
        ("x.jsonl", b'[\n{"text": "a"},\n{"text": "b"}\n]\n', "write each document as an object in a line of its own"),
        ("x.jsonl", b'{"text": "a", "y": 1}\n{"text": "b", "label": 2}\n', "line 2 has a field 'label' and the lines"),
        ("x.txt", b"a\n\x81\n", "x.txt line 2 is not a UTF-8 text"),
        ("x.txt", b"", "x.txt holds no documents."),
        (
            "x.docx",
            b"a",
            "x.docx is a file of an unknown kind; --data takes a .jsonl, .csv, .tsv, .txt or parquet file",
        ),
        ("x.zip", b"a", "x.zip is an archive: unpack it"),
    ],
)
def test_files_that_do_not_do(tmp_path: Path, open_texts: Open, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_texts(tmp_path / name)
    assert message in str(caught.value)


def test_a_document_a_line(tmp_path: Path, open_texts: Open) -> None:
    (tmp_path / "train.txt").write_text("one\n\ntwo\r\nthree", encoding="utf-8")
    (tmp_path / "test.txt").write_text("four\n", encoding="utf-8")
    source = open_texts(tmp_path)
    assert texts_of(source) == ["one", "", "two", "three"] and texts_of(source, "test") == ["four"]
    assert source.class_names is None and source.kind == "txt"
    assert texts_of(open_texts(tmp_path / "train.txt")) == ["one", "", "two", "three"]


def test_files_of_two_formats_that_name_splits(tmp_path: Path, open_texts: Open) -> None:
    write_splits(tmp_path)
    (tmp_path / "train.csv").write_text("text\na\n")
    with pytest.raises(UserError, match=r"holds dev.jsonl and train.csv, data files of several formats"):
        open_texts(tmp_path)


def test_missing_paths_are_not_looked_for_at_the_hub(open_texts: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: pytest.fail("the hub was asked"))
    for spec in ("x.jsonl", "x.tsv", "x.txt", "x.jsonl.gz"):
        with pytest.raises(UserError, match=f"{spec} does not exist; --data takes a .jsonl, .csv"):
            open_texts(spec)


# Folders of .txt.


def write_class_folders(root: Path, first: int = 0) -> Path:
    for index, name in enumerate(("sci.space", "rec.autos")):
        for number in range(3):
            path = root / name / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(sentence(first + 3 * index + number), encoding="utf-8")
    return root


def test_a_folder_of_txt_per_class(tmp_path: Path, open_texts: Open) -> None:
    source = open_texts(write_class_folders(tmp_path / "news"))
    assert source.kind == "text folder" and source.class_names == ["rec.autos", "sci.space"]
    assert names_of(source)[0] == "rec.autos/0.txt" and texts_of(source)[0] == sentence(3)
    assert source.splits["train"].labels == [0, 0, 0, 1, 1, 1]


def test_class_folders_below_splits(tmp_path: Path, open_texts: Open) -> None:
    for split, first in (("train", 0), ("validation", 100), ("test", 200)):
        write_class_folders(tmp_path / split, first)
    (tmp_path / "train" / "sci.space" / "readme.md").write_text("x")
    source = open_texts(tmp_path)
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 6, "val": 6, "test": 6}
    assert source.warnings == [
        f"Files in {tmp_path.name} that are not documents and were passed over: 1 "
        "(the first: train/sci.space/readme.md)."
    ]


def test_a_folder_of_files_without_classes(tmp_path: Path, open_texts: Open) -> None:
    (tmp_path / "b.txt").write_text("two\nlines")
    (tmp_path / "a.txt").write_text("one")
    source = open_texts(tmp_path)
    assert texts_of(source) == ["one", "two\nlines"] and source.class_names is None


def test_a_folder_without_documents(tmp_path: Path, open_texts: Open) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no documents in .* \(1 other files, the first: a.png\); a text folder holds"):
        open_texts(tmp_path)


# TweetEval.


def write_tweet_eval(root: Path) -> Path:
    root.mkdir()
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        (root / f"{split}_text.txt").write_text("".join(f"{split} tweet {n} \u2028 @user \n" for n in range(count)))
        (root / f"{split}_labels.txt").write_text("".join(f"{n % 2}\n" for n in range(count)))
    (root / "mapping.txt").write_text("0\tanger\n1\tjoy\n")
    return root


def test_tweet_eval(tmp_path: Path, open_texts: Open) -> None:
    source = open_texts(write_tweet_eval(tmp_path / "irony"))
    assert source.kind == "TweetEval" and source.class_names == ["anger", "joy"] and source.warnings == []
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 4, "val": 2, "test": 2}
    assert texts_of(source, "val") == ["val tweet 0 \u2028 @user", "val tweet 1 \u2028 @user"]
    assert names_of(source)[3] == "train_text.txt:4" and source.splits["train"].labels == [0, 1, 0, 1]
    (tmp_path / "irony" / "mapping.txt").unlink()
    assert open_texts(tmp_path / "irony").class_names == ["0", "1"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("test_labels.txt", b"0\n", "test_labels.txt has 1 labels for the 2 texts of test_text.txt."),
        ("test_labels.txt", b"0\njoy\n", "test_labels.txt line 2 is not the number of a class."),
        (
            "test_labels.txt",
            b"0\n7777777777\n",
            "test_labels.txt line 2 has the number 7777777777, which is no class's.",
        ),
        (
            "mapping.txt",
            "\u00b2\tanger\n".encode(),
            "mapping.txt line 1 is not a number, a tab and the name of a class.",
        ),
        ("test_labels.txt", b"0\n7\n", "row 1 has label 7, but only 2 classes have a name."),
        ("test_labels.txt", None, "test_text.txt has no test_labels.txt beside it."),
        ("mapping.txt", b"anger\n", "mapping.txt line 1 is not a number, a tab and the name of a class."),
        ("mapping.txt", b"0\tanger\n2\tjoy\n", "mapping.txt does not number its classes from 0 without a gap."),
        ("val_text.txt", b"a\n\xff\n", "val_text.txt line 2 is not a UTF-8 text"),
    ],
)
def test_tweet_eval_that_does_not_do(
    tmp_path: Path, open_texts: Open, file: str, content: bytes | None, message: str
) -> None:
    path = write_tweet_eval(tmp_path / "irony") / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_texts(tmp_path / "irony")
    assert message in str(caught.value)


# Parquet and Hugging Face data sets.


def hf_rows(first: int, count: int, column: str = "text") -> datasets.Dataset:
    features = datasets.Features({column: datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {column: [sentence(first + n) for n in range(count)], "label": [n % 2 for n in range(count)]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_parquet_and_saved_data_set(tmp_path: Path, open_texts: Open) -> None:
    parts = datasets.DatasetDict(train=hf_rows(0, 70, "sentence"), test=hf_rows(100, 4, "sentence"))
    parts.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "files").mkdir()
    for split, rows in parts.items():
        rows.to_parquet(tmp_path / "files" / f"{split}.parquet")
    saved, files = open_texts(tmp_path / "saved"), open_texts(tmp_path / "files")
    for source in (saved, files):
        assert source.class_names == ["no", "yes"] and source.modality is TEXTS
        assert texts_of(source) == [sentence(n) for n in range(70)]
        assert source.splits["test"].labels == [0, 1, 0, 1]
        assert bytes(source.splits["test"][1].read()).decode() == sentence(101)
    assert names_of(saved, "test")[0] == "test:0" and names_of(files, "test")[0] == "test.parquet:0"


def test_hub_data_set(open_texts: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, configuration: datasets.DatasetDict(train=hf_rows(0, 3)))
    source = open_texts("owner/words:small")
    assert source.name == "owner/words:small" and texts_of(source)[2] == sentence(2)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"label": ["a"]}, {}, "no column of texts; its columns are 'label'"),
        ({"left": ["a"], "right": ["b"]}, {}, r"several such columns \('left', 'right'\); choose one by data.text_key"),
        ({"text": ["a"]}, {"text_key": "body"}, r"no column 'body' \(data.text_key\)"),
        ({"text": ["a"], "n": [1]}, {"text_key": "n"}, "column 'n' of .* holds no texts"),
    ],
)
def test_columns_that_do_not_do(
    tmp_path: Path, open_texts: Open, columns: dict[str, Any], options: dict[str, str], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=message):
        open_texts(tmp_path / "x.parquet", **options)


def test_a_string_label_is_no_text(tmp_path: Path, open_texts: Open) -> None:
    pq.write_table(pa.table({"body": ["a", None], "label": ["x", "y"]}), tmp_path / "x.parquet")
    source = open_texts(tmp_path / "x.parquet")
    assert source.class_names == ["x", "y"] and source.splits["train"][0].read() == b"a"
    with pytest.raises(OSError, match="no text"):
        source.splits["train"][1].read()


# The paper's data sets.


@pytest.mark.parametrize(
    ("name", "title", "counts", "classes"),
    [
        ("sciie", "SCIERC", (3219, 455, 974), 7),
        ("citation_intent", "ACL-ARC", (1688, 114, 139), 6),
        ("chemprot", "Chemprot", (4169, 2427, 3469), 13),
    ],
)
def test_the_papers_splits_are_checked_by_count(
    tmp_path: Path, open_texts: Open, name: str, title: str, counts: tuple[int, int, int], classes: int
) -> None:
    write_splits(tmp_path / name, *counts, classes=classes)
    assert open_texts(tmp_path / name).warnings == []
    write_splits(tmp_path / name, counts[0] - 1, counts[1], counts[2], classes=classes)
    train, dev, test = (f"{count:,}" for count in counts)
    assert open_texts(tmp_path / name).warnings == [
        f"{name} has the name of the paper's {title} but another size: {counts[0] - 1:,} train, {dev} val, {test} test "
        f"and {classes} classes; the paper's has {train} train, {dev} val, {test} test and {classes} classes."
    ]


def test_emotion_is_the_papers_in_tweet_evals_layout_alone(tmp_path: Path, open_texts: Open) -> None:
    root = write_tweet_eval(tmp_path / "emotion")
    warning = open_texts(root).warnings[0]
    assert "the paper's Twitter-Emotion but another size: 4 train, 2 val" in warning
    assert "and 4 classes (Table 8 prints 4,230 train and 47 classes, which are DTD's; the paper's F1 fits" in warning
    for split, count in (("train", 3257), ("val", 374), ("test", 1421)):
        (root / f"{split}_text.txt").write_text("".join(f"tweet {n}\n" for n in range(count)))
        (root / f"{split}_labels.txt").write_text("".join(f"{n % 4}\n" for n in range(count)))
    (root / "mapping.txt").write_text("0\tanger\n1\tjoy\n2\toptimism\n3\tsadness\n")
    assert open_texts(root).warnings == []
    write_splits(tmp_path / "other" / "emotion")
    assert open_texts(tmp_path / "other" / "emotion").warnings == []
