"""Tables of images: columns, separators, splits, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
        ("image,label\nimages/a.png,x\n", {}, "no column 'file_name'; its columns are 'image', 'label'"),
        ("file_name,label\nimages/a.png,x\n", {"label_key": "kind"}, r"no column 'kind' \(data.label_key\)"),
        ("file_name,label\nimages/a.png,x\n", {"image_key": "img"}, r"no column 'img' \(data.image_key\)"),
        ("file_name,label\n", {}, "lists no images"),
        ("", {}, "its columns are none"),
        ("file_name,label\nimages/a.png,x\n,y\n", {}, "line 3: no file name"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, open_spec: Open, text: str, options: dict[str, str], message: str
) -> None:
    path = write_table(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        open_spec(path, **options)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00file_name\n", b"file_name,label\n\xff\xfe,x\n"])
def test_not_a_text_table(tmp_path: Path, open_spec: Open, content: bytes) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"list\.csv.* is not a UTF-8 text table"):
        open_spec(path)
