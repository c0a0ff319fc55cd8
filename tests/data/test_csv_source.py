"""Tables of images: columns, separators, splits, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from data_samples import write_image

from sdfast.data.items import Source
from sdfast.errors import UserError

Open = Callable[..., Source]


def write_table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    for index, name in enumerate(("a.png", "b.png", "c.png")):
        write_image(folder / "images" / name, index)
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_file_name_and_label(tmp_path: Path, open_spec: Open) -> None:
    path = write_table(tmp_path, "file_name,label\nimages/c.png,1.0\nimages/a.png,0.3333\nimages/b.png,\n")
    source = open_spec(path)
    assert source.name == "list.csv" and source.class_names == ["0.3333", "1.0"]
    assert [item.name for item in source.splits["train"]] == ["images/c.png", "images/a.png", "images/b.png"]
    assert source.splits["train"].labels == [1, 0, None]
    assert source.splits["train"][0].read() == (tmp_path / "images" / "c.png").read_bytes()


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_separators_marks_and_named_columns(tmp_path: Path, open_spec: Open, mark: str, encoding: str) -> None:
    lines = [["path ", "note", "kind"], ["images/a.png", '"x, y; z"', " cat"], ["images/b.png", "", "dog"]]
    path = write_table(tmp_path, "".join(mark.join(line) + "\r\n" for line in lines), encoding)
    source = open_spec(path, image_key="path", label_key="kind")
    assert source.class_names == ["cat", "dog"] and source.splits["train"].labels == [0, 1]


def test_without_labels(tmp_path: Path, open_spec: Open) -> None:
    source = open_spec(write_table(tmp_path, "file_name\nimages/a.png\n\nimages/b.png\n"))
    assert source.class_names is None and len(source.splits["train"]) == 2


def test_splits_by_the_first_folder(tmp_path: Path, open_spec: Open) -> None:
    path = write_table(tmp_path, "file_name,label\ntrain/x.png,a\ntest/y.png,a\nvalid/z.png,a\n")
    assert {split: len(items) for split, items in open_spec(path).splits.items()} == {"train": 1, "val": 1, "test": 1}
    path = write_table(tmp_path, "file_name,label\ntrain/x.png,a\nimages/a.png,a\n")
    assert {split: len(items) for split, items in open_spec(path).splits.items()} == {"train": 2}


def test_absolute_names_lose_what_is_outside(tmp_path: Path, open_spec: Open) -> None:
    (tmp_path / "lists").mkdir()
    inside = write_image(tmp_path / "lists" / "deep" / "a.png", 0)
    outside = write_image(tmp_path / "far" / "b.png", 1)
    path = tmp_path / "lists" / "list.csv"
    path.write_text(f"file_name\n{inside}\n{outside}\n../far/b.png\n")
    items = list(open_spec(path).splits["train"])
    assert [item.name for item in items] == ["deep/a.png", "b.png", "../far/b.png"]
    assert items[1].read() == items[2].read() == outside.read_bytes()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "foto,label\nimages/a.pmg,x\n",
            {},
            "no column 'file_name'; its columns are 'foto', 'label': name the one with",
        ),
        ("image,file,label\na,a,x\n", {}, r"several columns that may hold the images \('image', 'file'\); choose one"),
        ("file_name,label\nimages/a.png,x\n", {"label_key": "kind"}, r"no column 'kind' \(data.label_key\)"),
        ("file_name,label\nimages/a.png,x\n", {"image_key": "img"}, r"no column 'img' \(data.image_key\)"),
        ("file_name,label\n", {}, "lists no images"),
        ("file_name label\nimages/a.png x\n", {}, "has blanks between its columns .*: separate them by commas"),
        ("", {}, "its columns are none"),
        ("file_name,label\nimages/a.png,x\n,y\n", {}, "line 3: no file name"),
        ("images/a.png,x\nimages/b.png,y\n", {}, r"no header: its first line is a row \('images/a.png', 'x'\)"),
        (
            "cat;1\ndog;2\ncat;3\n",
            {},
            "has no header: .*; write the names of the columns above it, as 'file_name;label'",
        ),
        (
            "Text;Label\nwords;x\n",
            {},
            "its columns are 'Text', 'Label': texts need a model of text.* --preset text-demo",
        ),
        ("file_name,label\nhttps://x.org/a.png,x\n", {}, "line 2 names https://x.org/a.png, .* download the images"),
        ("file_name\nfile:///tmp/a.png\n", {}, "line 2 names file:///tmp/a.png: write the path alone"),
        ("file_name,label\na,x\nlabel,file_name\ny,b\n", {}, "line 3 is a header again, with its columns in another"),
        ("file_name,label\na,x\rb,y\n", {}, "is not a text table: its lines end in several ways"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, open_spec: Open, text: str, options: dict[str, str], message: str
) -> None:
    path = write_table(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        open_spec(path, **options)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "encoding"), [(b"\xff\xfe\x00file_name\n", "UTF-16"), (b"file_name,label\n\xff\xfe,x\n", "UTF-8")]
)
def test_not_a_text_table(tmp_path: Path, open_spec: Open, content: bytes, encoding: str) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"list\.csv.* is not a {encoding} text table"):
        open_spec(path)


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("file_name,label", []),
        ("File Name , LABEL", ["'File Name' is taken for the images", "'LABEL' is taken for the labels"]),
        ("Path|Class|note", ["'Path' is taken for the images", "'Class' is taken for the labels"]),
        ("y\tfilename", ["'filename' is taken for the images", "'y' is taken for the labels"]),
        ("image;file_name;label", []),
        ("Label,file_name,class", ["'Label' is taken for the labels"]),
        ("file_name,label,class", []),
    ],
)
def test_usual_names_and_separators(tmp_path: Path, open_spec: Open, header: str, taken: list[str]) -> None:
    mark = next(mark for mark in "\t;|," if mark in header)
    names = [name.strip().lower().replace(" ", "_") for name in header.split(mark)]
    rows = ""
    for file, label in (("a", "cat"), ("b", "dog")):
        cells = {"label": label, "class": label, "y": label, "note": "-", "image": "-"}
        if "label" in names:
            cells["class"] = "-"
        rows += mark.join(cells.get(name, f"images/{file}.png") for name in names) + "\n"
    source = open_spec(write_table(tmp_path, f"{header}\n{rows}"))
    assert [item.name for item in source.splits["train"]] == ["images/a.png", "images/b.png"]
    assert source.class_names == ["cat", "dog"] and source.splits["train"].labels == [0, 1]
    said = [sentence.partition(" (data.")[0].removeprefix("list.csv: ") for sentence in source.warnings]
    assert said == taken


def test_labels_under_another_name_are_named(tmp_path: Path, open_spec: Open) -> None:
    path = write_table(tmp_path, "file_name,kind\nimages/a.png,cat\nimages/b.png,dog\n")
    source = open_spec(path)
    assert source.class_names is None and source.warnings == [
        "list.csv: no column is taken for the labels; if they are 'kind', say so by data.label_key."
    ]
    assert open_spec(path, label_key="kind").class_names == ["cat", "dog"]
    path.write_text("file_name,class,target\nimages/a.png,cat,1\nimages/b.png,dog,2\n")
    source = open_spec(path)
    assert source.class_names is None and "one of 'class', 'target'" in source.warnings[0]
    assert open_spec(path, label_key="none").warnings == []


def test_a_column_of_splits_is_used(tmp_path: Path, open_spec: Open) -> None:
    rows = [("a", "x", "train"), ("b", "x", "test"), ("c", "y", "Training"), ("a", "y", "TRAIN"), ("c", "x", "dev")]
    text = "file_name,label,split\n" + "".join(f"images/{a}.png,{b},{c}\n" for a, b, c in rows if c != "Training")
    source = open_spec(write_table(tmp_path, text))
    assert {split: [item.name for item in items] for split, items in source.splits.items()} == {
        "train": ["images/a.png", "images/a.png"],
        "val": ["images/c.png"],
        "test": ["images/b.png"],
    }
    assert source.splits["train"].labels == [0, 1]
    assert "those of its column 'split': train 2, val 1, test 1" in " ".join(source.warnings)
    assert {
        split: len(items) for split, items in open_spec(tmp_path / "list.csv", split_key="none").splits.items()
    } == {"train": 4}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_header_in_the_middle_is_no_row(tmp_path: Path, open_spec: Open, mark: str) -> None:
    text = "file_name,label\nimages/a.png,x\n"
    source = open_spec(write_table(tmp_path, f"{text}{mark}file_name , label\nimages/b.png,y\n{text}"))
    assert source.class_names == ["x", "y"] and source.splits["train"].labels == [0, 1, 0]
    assert source.warnings == [
        "Lines that are the header again, as where two tables were joined, and are left out: 2 (the first: list.csv "
        "line 3)."
    ]


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_line_ends_of_other_systems(tmp_path: Path, open_spec: Open, end: str) -> None:
    path = write_table(tmp_path, end.join(["file_name,label", "images/a.png,x", '"images/b.png","y, z"', ""]))
    assert open_spec(path).class_names == ["x", "y, z"]


def test_empty_cells_that_a_spreadsheet_wrote(tmp_path: Path, open_spec: Open) -> None:
    rows = ["file_name;label;;", "images/a.png;x;;", "images/b.png;", ";;;", "images/c.png;y, z;;", ";;;", ";"]
    path = write_table(tmp_path, "\r\n".join(rows), "utf-8-sig")
    source = open_spec(path)
    table = pd.read_csv(path, sep=";", usecols=["file_name", "label"]).dropna(how="all")
    assert [item.name for item in source.splits["train"]] == table["file_name"].tolist()
    names = source.class_names or []
    given = [None if label is None else names[label] for label in source.splits["train"].labels]
    assert given == [None if pd.isna(label) else label for label in table["label"]] == ["x", None, "y, z"]
    assert source.warnings == ["Rows whose cells are all empty, which are left out: 3 (the first: list.csv line 4)."]


def test_rows_of_more_cells_than_the_header_are_counted(tmp_path: Path, open_spec: Open) -> None:
    source = open_spec(write_table(tmp_path, "file_name,label\nimages/a.png,cat, black\nimages/b.png,dog,\n"))
    assert source.class_names == ["cat", "dog"] and source.warnings == [
        "Rows with more cells than the header, of which the last are not used (quote cells that hold the separator): 1 "
        "(the first: list.csv line 2)."
    ]


def test_a_mark_that_was_written_twice(tmp_path: Path, open_spec: Open) -> None:
    for start in ("\ufeff", "\ufeff\ufeff", "\ufeffsep=;\r\n"):
        source = open_spec(write_table(tmp_path, f"{start}file_name;label\nimages/a.png;x\nimages/b.png;y\n"))
        assert source.class_names == ["x", "y"] and source.warnings == []


def test_the_encoding_of_a_table(tmp_path: Path, open_spec: Open) -> None:
    text = "file_name;label\nimages/a.png;caf\xe9\nimages/b.png;th\xe9\n"
    path = write_table(tmp_path, text, "utf-16-le")
    with pytest.raises(UserError, match=r"data\.encoding=utf-16-le"):
        open_spec(path)
    assert open_spec(path, encoding="utf-16-le").class_names == ["caf\xe9", "th\xe9"]
    path = write_table(tmp_path, text, "cp1252")
    source = open_spec(path)
    assert source.class_names == ["caf\xe9", "th\xe9"]
    assert source.warnings == [
        "list.csv: line 2 of list.csv is not UTF-8, so the file is read as cp1252, in which it says "
        "'images/a.png;caf\xe9'; if that is wrong, name the right one by data.encoding."
    ]
    assert open_spec(path, encoding="cp1252").warnings == []
    assert open_spec(write_table(tmp_path, text, "utf-16")).class_names == ["caf\xe9", "th\xe9"]


def test_backslashes_are_slashes_where_that_is_the_file(tmp_path: Path, open_spec: Open) -> None:
    path = write_table(tmp_path, "file_name,label\nimages\\a.png,x\nimages\\none.png,x\nodd\\name.png,y\n")
    write_image(tmp_path / "odd\\name.png", 7)
    source = open_spec(path)
    assert [item.name for item in source.splits["train"]] == ["images/a.png", "images\\none.png", "odd\\name.png"]
    assert source.warnings == ["File names with backslashes, which are read as slashes: 1 (the first: images\\a.png)."]
    write_image(tmp_path / "train" / "x.png", 8)
    write_image(tmp_path / "test" / "y.png", 9)
    path.write_text("file_name,label\ntrain\\x.png,a\ntest\\y.png,a\n")
    assert list(open_spec(path).splits) == ["train", "test"]


def test_a_tsv_lists_images_too(tmp_path: Path, open_spec: Open) -> None:
    write_table(tmp_path, "")
    (tmp_path / "list.tsv").write_text('file_name\tlabel\nimages/a.png\tx "y" z\nimages/b.png\t"q"\n')
    assert open_spec(tmp_path / "list.tsv").class_names == ["q", 'x "y" z']


def test_names_that_no_file_has_are_counted(tmp_path: Path, open_spec: Open) -> None:
    path = write_table(tmp_path, f"file_name\nimages/a.png\nim\0ages/b.png\n{'x' * 5000}.png\n/dev/zero\nimages\n")
    items = open_spec(path).splits["train"]
    assert len(items[0].read()) > 0
    for item in list(items)[1:]:
        with pytest.raises(OSError):
            item.read()


def test_a_cell_that_is_not_closed(tmp_path: Path, open_spec: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdfast.data.table.LONGEST_LINE", 1000)
    path = write_table(tmp_path, 'file_name,label\nimages/a.png,"x\n' + "images/b.png,y\n" * 100)
    with pytest.raises(UserError, match=r"a cell is longer than 1,000 characters; look for a quotation mark"):
        open_spec(path)


@pytest.mark.parametrize("name", ["a", "A.PNG", "photos\\a.PNG", "other/a.png"])
def test_names_that_are_nearly_files(tmp_path: Path, open_spec: Open, name: str) -> None:
    path = write_table(tmp_path, f"file_name,label\n{name},cat\n")
    with pytest.raises(UserError) as error:
        open_spec(path)
    assert f"line 2 names {name!r}, which is no file, while images/a.png is" in str(error.value)
    with_one = write_table(tmp_path, f"file_name,label\n{name},cat\nimages/b.png,dog\n")
    assert len(open_spec(with_one).splits["train"]) == 2


@pytest.mark.parametrize("line", ["sep=;\r\n", '"sep=;"\n', "SEP=;\n"])
def test_the_line_that_is_for_excel(tmp_path: Path, open_spec: Open, line: str) -> None:
    path = write_table(tmp_path, f"{line}file_name;label\nimages/a.png;cat\nimages/b.png;dog\n")
    assert open_spec(path).class_names == ["cat", "dog"]
    path = write_table(tmp_path, f"{line}file_name;label\nimages/a.png;cat\nhttp://x/b.png;dog\n")
    with pytest.raises(UserError, match=r"line 4 names http://x/b\.png"):
        open_spec(path)


def test_classes_that_differ_in_capitals(tmp_path: Path, open_spec: Open) -> None:
    source = open_spec(write_table(tmp_path, "file_name,label\nimages/a.png,Cat\nimages/b.png,cat\nimages/c.png,dog\n"))
    assert source.class_names == ["Cat", "cat", "dog"]
    assert [note for note in source.warnings if "capitals" in note] == [
        "Classes whose names differ in capitals alone, which stay classes of their own: 'Cat', 'cat'; spell them alike "
        "if they are one."
    ]
