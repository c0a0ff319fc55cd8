"""Image folders: classes, splits, what is passed over and what is refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from data_samples import write_classes, write_image

from sdfast.data.items import Source, read_item
from sdfast.errors import UserError

Open = Callable[..., Source]


def names(source: Source, split: str = "train") -> list[str]:
    return [item.name for item in source.splits[split]]


def test_a_class_per_sub_folder(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path / "pets", {"dog": 2, "cat": 1})
    write_image(tmp_path / "pets" / "dog" / "deep" / "er" / "z.jpg", 9)
    source = open_spec(tmp_path / "pets")
    assert source.name == "pets" and source.kind == "image folder" and source.warnings == []
    assert source.class_names == ["cat", "dog"]
    assert names(source) == ["cat/000.png", "dog/000.png", "dog/001.png", "dog/deep/er/z.jpg"]
    assert source.splits["train"].labels == [0, 1, 1, 1]
    assert source.splits["train"][1].read() == (tmp_path / "pets" / "dog" / "000.png").read_bytes()


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path, {"10": 1, "9": 1, "1": 1})
    assert open_spec(tmp_path).class_names == ["1", "9", "10"]


def test_a_flat_folder_has_no_labels(tmp_path: Path, open_spec: Open) -> None:
    write_image(tmp_path / "b.JPG", 0)
    write_image(tmp_path / "a.png", 1)
    source = open_spec(tmp_path)
    assert source.class_names is None
    assert names(source) == ["a.png", "b.JPG"] and source.splits["train"].labels == [None, None]


@pytest.mark.parametrize("val", ["val", "validation", "dev", "valid", "Valid"])
def test_splits(tmp_path: Path, open_spec: Open, val: str) -> None:
    for split in ("train", val, "Test"):
        write_classes(tmp_path / split, {"a": 1, "b": 2})
    source = open_spec(tmp_path)
    assert list(source.splits) == ["train", "val", "test"] and source.warnings == []
    assert names(source, "val") == [f"{val}/a/000.png", f"{val}/b/000.png", f"{val}/b/001.png"]
    assert source.splits["test"].labels == [0, 1, 1] and source.class_names == ["a", "b"]


def test_unlabelled_splits(tmp_path: Path, open_spec: Open) -> None:
    write_image(tmp_path / "train" / "a.png", 0)
    write_image(tmp_path / "test" / "a.png", 1)
    source = open_spec(tmp_path)
    assert source.class_names is None and list(source.splits) == ["train", "test"]


def test_only_a_test_folder_is_a_test_split(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path / "test", {"a": 1, "b": 1})
    assert list(open_spec(tmp_path).splits) == ["test"]


def test_a_class_may_be_called_test(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path, {"test": 1, "real": 1})
    assert open_spec(tmp_path).class_names == ["real", "test"]


def test_two_folders_for_one_split(tmp_path: Path, open_spec: Open) -> None:
    for split in ("train", "val", "dev"):
        write_classes(tmp_path / split, {"a": 1})
    with pytest.raises(UserError, match=r"dev/ and val/, which are both val"):
        open_spec(tmp_path)


def test_a_data_set_one_level_down_is_not_a_class(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path / "dataset" / "train", {"a": 1, "b": 1})
    with pytest.raises(UserError, match=r"dataset holds a folder train/.* pass --data .*dataset\."):
        open_spec(tmp_path)


def test_images_beside_class_folders_have_no_label(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path, {"a": 1, "b": 1})
    write_image(tmp_path / "more.png", 7)
    source = open_spec(tmp_path)
    assert source.splits["train"].labels == [0, 1, None] and names(source)[2] == "more.png"


def test_hidden_and_left_over_files_are_passed_over_and_others_counted(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path, {"a": 1, "b": 1})
    write_image(tmp_path / "a" / ".hidden.png", 1)
    write_image(tmp_path / "a" / "._000.png", 1)
    write_image(tmp_path / ".cache" / "x.png", 1)
    write_image(tmp_path / "__MACOSX" / "x.png", 1)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (tmp_path / "a" / name).write_bytes(b"x")
    assert open_spec(tmp_path).warnings == []
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "readme.md").write_text("x")
    source = open_spec(tmp_path)
    assert names(source) == ["a/000.png", "b/000.png"]
    assert source.warnings == [
        f"Files in {tmp_path.name} that are not images and were passed over: 2 (the first: readme.md)."
    ]


def test_an_empty_class_folder_is_no_class(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "empty").mkdir()
    source = open_spec(tmp_path)
    assert source.class_names == ["a", "b"]
    assert source.warnings == ["Class folders without images, which are no classes: 1 (the first: empty)."]


@pytest.mark.parametrize("inside", [None, "notes.txt", "train"])
def test_nothing_to_read(tmp_path: Path, open_spec: Open, inside: str | None) -> None:
    if inside == "train":
        (tmp_path / "train").mkdir()
    elif inside:
        (tmp_path / inside).write_text("x")
    with pytest.raises(UserError, match="no images in") as caught:
        open_spec(tmp_path)
    assert (
        str(tmp_path) in str(caught.value)
        and ".webp" in str(caught.value)
        and (inside != "notes.txt" or "notes.txt" in str(caught.value))
    )


def test_classes_of_test_that_train_lacks(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path / "train", {"cat": 1, "dog": 1})
    write_classes(tmp_path / "test", {"Cat": 1, "dog": 1})
    with pytest.raises(UserError, match=r"classes of test that train lacks: 1 \(the first: 'Cat'\); rename"):
        open_spec(tmp_path)


def test_classes_of_train_that_test_lacks(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path / "train", {"cat": 1, "dog": 1})
    write_classes(tmp_path / "test", {"dog": 1})
    source = open_spec(tmp_path)
    assert source.splits["test"].labels == [1]
    assert source.warnings == ["Classes of train without an image in test: 1 (the first: 'cat')."]


def test_what_lies_beside_the_splits_is_named(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path / "train", {"a": 1})
    write_classes(tmp_path, {"raw": 1})
    write_image(tmp_path / "overview.png", 0)
    (tmp_path / "test").mkdir()
    source = open_spec(tmp_path)
    assert list(source.splits) == ["train"]
    assert source.warnings == [
        "Folders beside the splits that are not used: 1 (the first: raw).",
        "Images beside the splits that are not used: 1 (the first: overview.png).",
        "test/ holds no images, so there is no test split.",
    ]


def test_metadata_csv_gives_the_labels(tmp_path: Path, open_spec: Open) -> None:
    for index, split in enumerate(("train", "train", "test", "test")):
        write_image(tmp_path / split / f"{index}.png", index)
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\n1.png,b\n0.png,a\n")
    (tmp_path / "test" / "metadata.csv").write_text("file_name,label\n3.png,b\n")
    source = open_spec(tmp_path)
    assert source.class_names == ["a", "b"]
    assert names(source) == ["train/1.png", "train/0.png"] and source.splits["train"].labels == [1, 0]
    assert names(source, "test") == ["test/3.png"]


def test_metadata_csv_with_other_usual_names_decides_where_the_folders_say_nothing(
    tmp_path: Path, open_spec: Open
) -> None:
    write_classes(tmp_path / "a" / "photos", {"": 2})
    (tmp_path / "a" / "metadata.csv").write_text("path;class\nphotos\\000.png;x\nphotos/001.png;y\n")
    source = open_spec(tmp_path / "a")
    assert source.class_names == ["x", "y"] and names(source) == ["photos/000.png", "photos/001.png"]
    assert "File names with backslashes, which are read as slashes: 1 (the first: photos\\000.png)." in source.warnings
    write_classes(tmp_path / "b", {"cat": 1, "dog": 1})
    for header in ("path,class", "image,img,class", "file_name,category"):
        (tmp_path / "b" / "metadata.csv").write_text(f"{header}\ncat/000.png,x,z\n")
        assert open_spec(tmp_path / "b").class_names == ["cat", "dog"]


def test_files_that_are_none_are_counted(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path, {"a": 1, "b": 1})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "dir.png").mkdir()
    for name, target in (("zero", "/dev/zero"), ("loop", "loop.png"), ("mem", "/proc/self/mem"), ("gone", "nothing")):
        (tmp_path / "b" / f"{name}.png").symlink_to(target)
    (tmp_path / "b" / "link.png").symlink_to(tmp_path / "a" / "000.png")
    items = {item.name: item for item in open_spec(tmp_path).splits["train"]}
    reasons = {}
    for name, item in items.items():
        content = read_item(item)
        reasons[name] = content.strerror if isinstance(content, OSError) else len(bytes(content))
    size = (tmp_path / "a" / "000.png").stat().st_size
    assert reasons == {
        "a/000.png": size,
        "a/pipe.png": "a named pipe, not a regular file",
        "b/000.png": (tmp_path / "b" / "000.png").stat().st_size,
        "b/gone.png": os.strerror(errno.ENOENT),
        "b/link.png": size,
        "b/loop.png": os.strerror(errno.ELOOP),
        "b/mem.png": 0,
        "b/zero.png": "a device, not a regular file",
    }


def test_a_file_of_more_than_a_gibibyte_is_not_read(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path, {"a": 1})
    with open(tmp_path / "a" / "huge.png", "wb") as file:
        file.truncate((1 << 30) + 1)  # a hole, which takes no room
    assert "1,073,741,825 bytes are more than the 1,073,741,824" in str(
        read_item(open_spec(tmp_path).splits["train"][1])
    )


def test_metadata_csv_at_the_top(tmp_path: Path, open_spec: Open) -> None:
    for index, split in enumerate(("train", "test")):
        write_image(tmp_path / split / f"{index}.png", index)
    (tmp_path / "metadata.csv").write_text("file_name,label\ntrain/0.png,a\ntest/1.png,a\n")
    source = open_spec(tmp_path)
    assert source.kind == "image folder" and source.name == tmp_path.name
    assert names(source) == ["train/0.png"] and names(source, "test") == ["test/1.png"]
    assert source.splits["test"][0].read() == (tmp_path / "test" / "1.png").read_bytes()


def test_metadata_csv_without_labels_leaves_the_folders(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "metadata.csv").write_text("file_name,text\na/000.png,a caption\n")
    assert open_spec(tmp_path).class_names == ["a", "b"]


def test_links_are_followed_and_loops_cut(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path / "real", {"a": 1, "b": 1})
    (tmp_path / "linked").mkdir()
    os.symlink(tmp_path / "real" / "a", tmp_path / "linked" / "a")
    os.symlink(tmp_path / "real" / "a", tmp_path / "real" / "a" / "loop")
    assert names(open_spec(tmp_path / "linked")) == ["a/000.png"]


def test_odd_file_names(tmp_path: Path, open_spec: Open) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9 #1.png"  # not UTF-8
    write_image(tmp_path / "x.png", 0)
    with open(raw, "wb") as file:
        file.write((tmp_path / "x.png").read_bytes())
    source = open_spec(tmp_path)
    assert len(source.splits["train"]) == 2 and len(source.content_digest()) == 64
    assert source.splits["train"][0].read() == source.splits["train"][1].read()
