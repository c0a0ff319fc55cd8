"""Which kind a specification is, and the digest that says whether its content changed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from data_samples import write_classes, write_image

from sdfast.data.config import DataConfig
from sdfast.data.items import Source
from sdfast.data.modality import IMAGES, TEXTS, Modality
from sdfast.data.sources import open_source
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
    assert str(caught.value).startswith(
        f"{spec} does not exist; --data takes an image folder, a .csv or .jsonl list, a parquet"
    )


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


@pytest.mark.parametrize("inside", ["cat/2024", "cat"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_a_folder_below_that_cannot_be_listed(
    tmp_path: Path, open_spec: Open, monkeypatch: pytest.MonkeyPatch, inside: str, code: int
) -> None:
    """It is not taken for an empty one: the model would be trained on less."""
    write_classes(tmp_path / "pets", {"cat": 2, "cat/2024": 2, "dog": 2})
    closed, scan = str(tmp_path / "pets" / inside), os.scandir

    def scandir(path: str) -> object:
        if os.fspath(path) == closed:
            raise OSError(code, os.strerror(code), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=f"{closed} cannot be read: {os.strerror(code).lower()}"):
        open_spec(tmp_path / "pets")


def test_a_folder_without_permission(tmp_path: Path, open_spec: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:  # as the system does; root may read everything
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match="closed cannot be read: permission denied"):
        open_spec(tmp_path / "closed")


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "train-images-idx3-ubyte", "x.jsonl"])
@pytest.mark.parametrize("modality", [IMAGES, TEXTS])
@pytest.mark.parametrize("kind", ["pipe", "device", "loop"])
def test_files_that_are_none(tmp_path: Path, name: str, modality: Modality, kind: str) -> None:
    path = tmp_path / name
    {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(name),
    }[kind]()
    what = {
        "pipe": "a named pipe, not a regular file",
        "device": "a device, not a regular file",
        "loop": os.strerror(errno.ELOOP).lower(),
    }[kind]
    with pytest.raises(UserError) as caught:
        open_source(str(path), DataConfig(), modality)
    assert str(caught.value) == f"{path} cannot be read: {what}."


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("a\0b", "'a\\\\x00b' does not exist; --data takes"),
        ("a\ud800b", "'a\\\\ud800b' does not exist; --data takes"),
        ("x" * 5000, "^x{80}.* cannot be read: file name too long"),
        ("~no-such-user/x", "~no-such-user/x: there is no such user's home"),
    ],
)
def test_names_that_no_file_has(
    tmp_path: Path, open_spec: Open, spec: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        open_spec(spec)
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


def test_texts_without_a_model_of_text(tmp_path: Path, open_spec: Open) -> None:
    for name in ("train.jsonl", "a.txt", "b.tsv.gz"):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text("text\nx\n")
        with pytest.raises(UserError, match=r"texts need a model of text: .*--model.*--preset text-demo"):
            open_spec(folder)
    (tmp_path / "train" / "train.jsonl").write_text('{"text": "x"}')
    with pytest.raises(UserError, match=r"no field 'file_name' .*its fields are 'text': texts need a model of text"):
        open_spec(tmp_path / "train" / "train.jsonl")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "list.csv").write_text("file_name\nx.png\n")
    with pytest.raises(UserError, match=r"a list of images is passed itself \(--data .*list.csv\)"):
        open_spec(tmp_path / "tables")


def test_images_with_a_model_of_text(tmp_path: Path) -> None:
    write_classes(tmp_path / "pets", {"a": 1})
    (tmp_path / "list.csv").write_text("file_name,label\nx.png,a\nx.png,b\n")
    for path in (tmp_path / "pets", tmp_path / "list.csv"):
        with pytest.raises(UserError, match="images need a model of images"):
            open_source(str(path), DataConfig(), TEXTS)


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
