"""Lists of image files in JSON lines and parquet, written by pandas: the rules and the outcome are those of .csv."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from data_samples import write_image

from sdfast.data.items import Source
from sdfast.errors import UserError

Open = Callable[..., Source]
KINDS = ["csv", "jsonl", "parquet"]


def write_list(folder: Path, kind: str, columns: dict[str, list[Any]], name: str = "list") -> Path:
    for index in range(4):
        write_image(folder / "photos" / f"{index}.png", index)
    path, table = folder / f"{name}.{kind}", pd.DataFrame(columns)
    if kind == "csv":
        table.to_csv(path, index=False)
    elif kind == "parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=True)
    return path


def contents(source: Source) -> dict[str, list[tuple[str, int | None, Any]]]:
    return {split: [(item.name, item.label, item.read()) for item in items] for split, items in source.splits.items()}


FILES = [f"photos/{index}.png" for index in range(4)]


@pytest.mark.parametrize("column", ["file_name", "path", "Image"])
def test_the_kinds_of_lists_agree(tmp_path: Path, open_spec: Open, column: str) -> None:
    columns = {
        column: FILES,
        "label": ["cat", "dog", None, "cat"],
        "split": ["train", "train", "train", "test"],
        "note": ["a", "b", "c", "d"],
    }
    sources = {kind: open_spec(write_list(tmp_path, kind, columns)) for kind in KINDS}
    assert {kind: source.kind for kind, source in sources.items()} == {kind: kind for kind in KINDS}
    by_hand = [
        (name, label, (tmp_path / name).read_bytes()) for name, label in zip(FILES, (0, 1, None, 0), strict=True)
    ]
    for source in sources.values():
        assert source.class_names == ["cat", "dog"]
        assert contents(source) == {"train": by_hand[:3], "test": by_hand[3:]}
    assert len({source.content_digest() for source in sources.values()}) == 1


def test_a_data_set_that_names_files(tmp_path: Path, open_spec: Open) -> None:
    write_list(tmp_path, "csv", {"file_name": FILES})
    path = str(tmp_path / "saved")
    names = [str(tmp_path / name) for name in FILES]
    datasets.Dataset.from_dict({"file_name": names, "label": [0, 1, 0, 1]}).save_to_disk(path)
    source = open_spec(path)
    assert [item.read() for item in source.splits["train"]] == [Path(name).read_bytes() for name in names]
    assert [item.name for item in source.splits["train"]] == ["0.png", "1.png", "2.png", "3.png"]


@pytest.mark.parametrize("kind", KINDS)
def test_backslashes(tmp_path: Path, open_spec: Open, kind: str) -> None:
    path = write_list(tmp_path, kind, {"file_name": [name.replace("/", "\\") for name in FILES], "label": [0, 1, 0, 1]})
    source = open_spec(path)
    assert [item.name for item in source.splits["train"]] == FILES
    said = "File names with backslashes, which are read as slashes: 4 (the first: photos\\0.png)."
    assert said in source.warnings


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["https://a.b/1.png"], "names https://a.b/1.png, which is an address and no file: download the images"),
        (["file:///a/1.png"], "write the path alone, without file://"),
        (
            ["0.jpg", "1.jpg"],
            "names '0.jpg', which is no file, while photos/0.png is: write names as the files have them",
        ),
        (["photos/0.png", None], "no file name in "),
    ],
)
def test_names_that_cannot_be_used(
    tmp_path: Path, open_spec: Open, kind: str, names: list[str | None], message: str
) -> None:
    path = write_list(tmp_path, kind, {"file_name": names, "label": ["a"] * len(names)})
    with pytest.raises(UserError, match=message) as caught:
        open_spec(path)
    assert f"list.{kind}" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_file_is_one_of_the_broken(tmp_path: Path, build: Callable[..., Any], kind: str) -> None:
    path = write_list(tmp_path, kind, {"file_name": [*FILES, "photos/none.png"], "label": [0, 1, 0, 1, 0]})
    with pytest.raises(UserError, match=r"1 of 5 images cannot be used.*the first is photos/none.png: cannot be read"):
        build(path)
    assert build(path, max_broken=0.2, test_fraction=0).split("train").names == FILES


def test_columns_of_images_go_before_names_of_files(tmp_path: Path, open_spec: Open) -> None:
    images = [(tmp_path / "photos" / f"{index}.png") for index in range(4)]
    write_list(tmp_path, "csv", {"file_name": FILES})
    table = {"image": [image.read_bytes() for image in images], "file_name": ["x.png"] * 4, "label": [0, 1, 0, 1]}
    source = open_spec(write_list(tmp_path, "parquet", table))
    assert [item.name for item in source.splits["train"]] == [f"list.parquet:{row}" for row in range(4)]
    by_name = open_spec(write_list(tmp_path, "parquet", {**table, "file_name": FILES}), image_key="file_name")
    assert [item.name for item in by_name.splits["train"]] == FILES


def test_json_lines_of_images_as_people_have_them(tmp_path: Path, open_spec: Open) -> None:
    write_list(tmp_path, "csv", {"file_name": FILES})
    lines = '{"file_name": "photos/0.png", "label": 1, "w": 9}\n\n{"file_name": "photos/1.png", "w": 9}\n'
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    source = open_spec(tmp_path / "x.jsonl.gz")
    assert [item.name for item in source.splits["train"]] == FILES[:2] and source.splits["train"].labels == [0, None]
    for text, message in {
        '{"file_name": 3}': "x.jsonl line 1: field 'file_name' is a number, not a file name",
        '{"name": "a"}': r"x.jsonl line 1 has no field 'file_name' \(data.image_key\); its fields are 'name'",
        "\n": "x.jsonl lists no images",
        "[\n": "is not JSON: .* this looks like one list",
    }.items():
        (tmp_path / "x.jsonl").write_text(text)
        with pytest.raises(UserError, match=message):
            open_spec(tmp_path / "x.jsonl")
