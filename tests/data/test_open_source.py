"""Which kind a specification is, and the digest that says whether its content changed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from data_samples import write_classes, write_image

from sdfast.data.items import Source
from sdfast.errors import UserError

Open = Callable[..., Source]


@pytest.mark.parametrize(
    "spec", ["./fotos", "/no/such/folder", "a/b/c", "fotos/", "birds.csv", "../x", "x.parquet", "a b"]
)
def test_missing_paths_are_not_looked_for_at_the_hub(
    tmp_path: Path, open_spec: Open, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def asked(*args: object, **options: object) -> None:
        pytest.fail("the hub was asked")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", asked)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError) as caught:
        open_spec(spec)
    assert str(caught.value).startswith(f"{spec} does not exist; --data takes an image folder, a .csv list, a parquet")


def test_home_is_expanded(tmp_path: Path, open_spec: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path / "pets", {"a": 1})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_spec("~/pets").name == "pets"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photo.png", "is a file of an unknown kind; --data takes"),
        ("photos.zip", "is an archive: unpack it"),
        ("photos.tar.gz", "is an archive: unpack it"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, open_spec: Open, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=message) as caught:
        open_spec(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_folder_without_permission(tmp_path: Path, open_spec: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:  # as the system does; root may read everything
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match="closed cannot be read: permission denied"):
        open_spec(tmp_path / "closed")


def test_digest_ignores_place_and_time(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path / "one" / "pets", {"a": 2, "b": 2})
    shutil.copytree(tmp_path / "one" / "pets", tmp_path / "two" / "animals")
    os.utime(tmp_path / "two" / "animals" / "a" / "000.png", (0, 0))
    one, two = open_spec(tmp_path / "one" / "pets"), open_spec(tmp_path / "two" / "animals")
    assert one.content_digest() == two.content_digest() == two.content_digest(threads=3)


@pytest.mark.parametrize("change", ["bytes", "name", "label", "class name", "added", "removed", "split", "swapped"])
def test_digest_sees_every_change(tmp_path: Path, open_spec: Open, change: str) -> None:
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    before = open_spec(tmp_path).content_digest()
    a, b = tmp_path / "train" / "a", tmp_path / "train" / "b"
    if change == "bytes":
        write_image(a / "000.png", 99)
    elif change == "name":
        (a / "000.png").rename(a / "0000.png")
    elif change == "label":
        (a / "000.png").rename(b / "zzz.png")
    elif change == "class name":
        b.rename(b.with_name("c"))
    elif change == "added":
        write_image(a / "zzz.png", 5)
    elif change == "removed":
        (a / "000.png").unlink()
    elif change == "split":
        (tmp_path / "train").rename(tmp_path / "test")
    else:
        first, second = (a / "000.png").read_bytes(), (a / "001.png").read_bytes()
        (a / "000.png").write_bytes(second)
        (a / "001.png").write_bytes(first)
    assert open_spec(tmp_path).content_digest() != before


def test_digest_sees_a_label_alone(tmp_path: Path, open_spec: Open) -> None:
    write_image(tmp_path / "x.png", 0)
    digests = set()
    for label in ("a", "b", ""):
        (tmp_path / "list.csv").write_text(f"file_name,label\nx.png,{label}\nx.png,a\nx.png,b\n")
        digests.add(open_spec(tmp_path / "list.csv").content_digest())
    assert len(digests) == 3


def test_digest_sees_a_missing_file_return(tmp_path: Path, open_spec: Open) -> None:
    write_image(tmp_path / "x.png", 0)
    (tmp_path / "list.csv").write_text("file_name\nx.png\ny.png\n")
    source = open_spec(tmp_path / "list.csv")
    before = source.content_digest()
    write_image(tmp_path / "y.png", 1)
    assert source.content_digest() != before
