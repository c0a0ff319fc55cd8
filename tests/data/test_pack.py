"""The pack: what it holds, when it is built again, what it counts and what it refuses."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from data_samples import idx_bytes, pixels, write_classes, write_image
from PIL import Image

from sdfast.data.config import DataConfig
from sdfast.data.modality import IMAGES
from sdfast.data.pack_checks import Rows, Tally, repeated_warning
from sdfast.data.rows import row_digest
from sdfast.errors import RunError, UserError
from sdfast.evaluation.classification import evaluation_split
from sdfast.modalities.images.pack import ImagePack
from sdfast.modalities.images.transform import Transform
from sdfast.regular import read_regular

Build = Callable[..., ImagePack]


def split_folder(root: Path, train: int = 2, test: int = 1) -> Path:
    write_classes(root / "train", {"a": train, "b": train})
    write_classes(root / "test", {"a": test, "b": test}, first_seed=1000)
    return root


def rows_of(pack: ImagePack, split: str) -> dict[str, bytes]:
    return {name: row.tobytes() for name, row in zip(pack.split(split).names, pack.split(split).images, strict=True)}


def test_rows_labels_digests_and_names(tmp_path: Path, build: Build, transform: Transform) -> None:
    pack = build(split_folder(tmp_path / "pets"))
    assert list(pack.splits) == ["train", "test"] and pack.class_names == ["a", "b"] and pack.transform == transform
    train = pack.split("train")
    assert isinstance(train.images, np.memmap) and train.images.shape == (4, 6, 8, 3)
    assert train.images.dtype == np.uint8 and not train.images.flags.writeable
    assert train.names == ["train/a/000.png", "train/a/001.png", "train/b/000.png", "train/b/001.png"]
    assert train.labels is not None and train.labels.dtype == np.int64 and train.labels.tolist() == [0, 0, 1, 1]
    for row, name in enumerate(train.names):
        with Image.open(tmp_path / "pets" / name) as image:
            expected = np.asarray(image.convert("RGB").resize((8, 6), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(train.images[row], expected)
        assert train.digests[row].tobytes() == row_digest(expected)
    assert pack.warnings == build.said == []  # type: ignore[attr-defined]


def test_manifest(tmp_path: Path, build: Build) -> None:
    pack = build(split_folder(tmp_path / "pets"))
    manifest = json.loads((pack.directory / "manifest.json").read_text())
    assert manifest == pack.manifest
    assert manifest["source"]["name"] == "pets" and manifest["source"]["kind"] == "image folder"
    assert manifest["splits"]["train"]["rows"] == 4
    assert manifest["splits"]["test"]["classes"] == {"a": 1, "b": 1}
    assert set(manifest["libraries"]) == {"pillow", "numpy", "datasets"}
    assert str(tmp_path) not in json.dumps(manifest)
    files = {entry["file"] for split in manifest["splits"].values() for entry in split["files"].values()}
    assert files | {"manifest.json"} == {path.name for path in pack.directory.iterdir()}


def test_one_channel_and_unlabelled(tmp_path: Path) -> None:
    write_image(tmp_path / "flat" / "a.png", 0)
    pack = ImagePack.prepare(
        str(tmp_path / "flat"), tmp_path / "pack", Transform(6, 8, 1, (0.5,), (0.5,)), DataConfig(), pytest.fail
    )
    assert pack.split("train").images.shape == (1, 6, 8, 1)
    assert pack.class_names is None and pack.split("train").labels is None and list(pack.splits) == ["train"]
    with pytest.raises(UserError, match="flat has no test split; it has train"):
        pack.split("test")


def test_threads_change_nothing(tmp_path: Path, transform: Transform) -> None:
    split_folder(tmp_path / "pets", train=20)
    packs = [
        ImagePack.prepare(
            str(tmp_path / "pets"), tmp_path / f"p{threads}", transform, DataConfig(), print, threads=threads
        )
        for threads in (1, 4)
    ]
    assert packs[0].manifest == packs[1].manifest


def test_progress_counts_every_image(tmp_path: Path, transform: Transform) -> None:
    split_folder(tmp_path / "pets")
    seen: list[tuple[int, int]] = []
    ImagePack.prepare(
        str(tmp_path / "pets"), tmp_path / "p", transform, DataConfig(), print, lambda *counts: seen.append(counts)
    )
    assert seen == [(done, 6) for done in range(1, 7)]


def test_built_once_and_again_only_when_the_content_changes(tmp_path: Path, build: Build) -> None:
    source = split_folder(tmp_path / "pets")
    first = build(source)
    inode = (first.directory / "manifest.json").stat().st_ino
    for path in source.rglob("*.png"):
        path.touch()
    moved = tmp_path / "elsewhere" / "pets2"
    shutil.copytree(source, moved)
    for spec, options in ((source, {}), (moved, {}), (source, {"limit": 3, "limit_seed": 5, "image_size": 64})):
        assert build(spec, **options).fingerprint == first.fingerprint
        assert (first.directory / "manifest.json").stat().st_ino == inode
    write_image(source / "train" / "a" / "000.png", 77)
    second = build(source)
    assert second.fingerprint != first.fingerprint
    assert (first.directory / "manifest.json").stat().st_ino != inode


def test_another_transform_or_option_builds_again(tmp_path: Path, build: Build) -> None:
    source = write_classes(tmp_path / "pets", {"a": 8, "b": 8})
    first = build(source)
    second = ImagePack.prepare(str(source), first.directory, Transform(4, 4), DataConfig(), print)
    assert second.split("train").images.shape[1:] == (4, 4, 3) and second.fingerprint != first.fingerprint
    third = ImagePack.prepare(str(source), first.directory, Transform(4, 4), DataConfig(split_seed=7), print)
    assert third.fingerprint != second.fingerprint


def test_fingerprint_is_of_content_labels_and_transform(tmp_path: Path, build: Build) -> None:
    first = build(write_classes(tmp_path / "one", {"a": 2, "b": 2})).fingerprint
    renamed = tmp_path / "two"
    shutil.copytree(tmp_path / "one", renamed)
    (renamed / "a" / "000.png").rename(renamed / "a" / "0.png")  # still the first
    assert build(renamed).fingerprint == first
    (renamed / "b").rename(renamed / "c")
    assert build(renamed).fingerprint != first
    relabelled = tmp_path / "three"
    shutil.copytree(tmp_path / "one", relabelled)
    (relabelled / "a" / "001.png").rename(relabelled / "b" / "!.png")
    assert build(relabelled, test_fraction=0).fingerprint != build(tmp_path / "one", test_fraction=0).fingerprint


def test_a_test_split_is_held_out_and_written_down(tmp_path: Path, build: Build) -> None:
    source = write_classes(tmp_path / "pets", {"a": 16, "b": 8})
    write_image(source / "b" / "copy.png", 0)  # the same image as a/000.png
    pack = build(source)
    train, test = pack.split("train"), pack.split("test")
    assert len(train.images) + len(test.images) == 25 and train.labels is not None and test.labels is not None
    assert abs(np.sum(test.labels == 0) - 4) <= 1 and abs(np.sum(test.labels == 1) - 2) <= 1
    assert not set(rows_of(pack, "train").values()) & set(rows_of(pack, "test").values())
    for split in ("train", "test"):
        labels = pack.split(split).labels
        assert labels is not None
        for name, row, label in zip(pack.split(split).names, pack.split(split).images, labels, strict=True):
            with Image.open(source / name) as image:
                np.testing.assert_array_equal(row, pack.transform.apply(image))
            assert label == (name[0] == "b")
    rule = pack.manifest["split_rule"]
    assert rule["test_fraction"] == 0.25 and rule["split_seed"] == 42 and len(rule["test_digests"]) == 64
    assert pack.warnings == [
        f"pets has no test split: {len(test)} of 25 images are held out of train "
        "(data.test_fraction=0.25, data.split_seed=42).",
        f"Images of {'test' if 'b/copy.png' in test.names else 'train'} with the content of another and a different "
        "label: 1 (a/000.png and b/copy.png); only one label can be right.",
    ]


def test_the_split_is_of_content_not_of_names(tmp_path: Path, transform: Transform) -> None:
    source = write_classes(tmp_path / "pets", {"a": 12, "b": 12})
    renamed = tmp_path / "renamed"
    for path in source.rglob("*.png"):
        (renamed / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, renamed / path.parent.name / f"{999 - int(path.stem)}.png")
    tests = [
        set(rows_of(ImagePack.prepare(str(spec), tmp_path / f"p{i}", transform, DataConfig(), print), "test").values())
        for i, spec in enumerate((source, renamed))
    ]
    assert tests[0] == tests[1] and len(tests[0]) == 6


@pytest.mark.parametrize(
    ("classes", "options", "splits"),
    [
        ({"a": 4, "b": 4}, {"test_fraction": 0}, ["train"]),
        ({"train/a": 4, "train/b": 4, "val/a": 1}, {}, ["train", "val"]),
        ({"test/a": 4, "test/b": 4}, {}, ["test"]),
    ],
)
def test_nothing_is_held_out(
    tmp_path: Path, build: Build, classes: dict[str, int], options: dict[str, float], splits: list[str]
) -> None:
    assert list(build(write_classes(tmp_path / "x", classes), **options).splits) == splits


def test_too_few_images_to_hold_any_out(tmp_path: Path, build: Build) -> None:
    pack = build(write_classes(tmp_path / "x", {"a": 1, "b": 1}))
    assert list(pack.splits) == ["train"]
    assert pack.warnings == ["x has no test split and too few images of each class to hold any out."]
    sentence = "x has no test split, and too few images of each class to hold any out; add one, or more of each class."
    with pytest.raises(UserError) as caught:
        evaluation_split(pack)
    assert str(caught.value) == sentence
    alone = build(tmp_path / "x", test_fraction=0)
    with pytest.raises(UserError, match=r"x has no test split; add one, or set data.test_fraction above 0\."):
        evaluation_split(alone)


def test_few_labelled_among_many_unlabelled(tmp_path: Path, build: Build) -> None:
    """60 unlabelled images, 30 of them copies of one of class a: its quota stays that of its labelled images."""
    source = write_classes(tmp_path / "x", {"a": 12, "b": 8})
    for index in range(60):
        write_image(source / f"{index:02d}.png", 0 if index < 30 else 100 + index)
    pack = build(source)
    labels = {split: pack.split(split).labels for split in ("train", "test")}
    assert {split: np.bincount(found[found >= 0]).tolist() for split, found in labels.items() if found is not None} == {
        "train": [9, 6],
        "test": [3, 2],
    }
    assert len(pack.split("train")) == 75 and "a/000.png" in pack.split("train").names
    assert pack.warnings[:3] == [
        "Images of train without a label, which take no part in fine-tuning: 60 of 75 (00.png, 01.png, 02.png and 57 "
        "more).",
        "x has no test split: 5 of 80 images are held out of train (data.test_fraction=0.25, data.split_seed=42).",
        "Images with a label of which a copy has none, so that both stay in train: 1 (a/000.png).",
    ]
    assert list(build(source, unseen="drop", split_key="none").directory.glob("*")) and not build.said  # the same pack


def test_lopsided_classes_are_named_with_their_numbers(tmp_path: Path, build: Build) -> None:
    source = write_classes(tmp_path / "x", {"a": 40, "b": 1, "c": 2, "d": 1, "e": 1, "f": 8})
    pack = build(source)
    assert pack.warnings[1:] == [
        "Classes with fewer than two labelled images in train or none in test: 4 of 6 ('b': 1 train, 0 test; "
        "'c': 1 train, 1 test; 'd': 1 train, 0 test; and 1 more)."
    ]
    given = write_classes(tmp_path / "y", {"train/a": 3, "train/b": 1, "test/a": 1, "test/b": 3})
    assert build(given).warnings == [
        "Classes with fewer than two labelled images in train: 1 of 2 ('b': 1 train, 3 test)."
    ]


def test_idx_rows(tmp_path: Path, build: Build) -> None:
    images = pixels(0, 6, 8, 5).transpose(2, 0, 1).copy()
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
    pack = build(tmp_path / "i")
    np.testing.assert_array_equal(pack.split("train").images, np.repeat(images[..., None], 3, axis=3))


def test_limited_rows(tmp_path: Path, build: Build) -> None:
    train = build(write_classes(tmp_path / "x", {"a": 30, "b": 10}), test_fraction=0).split("train")
    rows = train.limited(8, 42)
    assert train.labels is not None and np.bincount(train.labels[rows]).tolist() == [6, 2]
    assert set(rows.tolist()) < set(train.limited(16, 42).tolist())


# Broken files.


def break_files(source: Path, count: int) -> None:
    paths = sorted((source / "train").rglob("*.png"))
    for path, content in zip(paths[:count], (b"", path_half(paths[1]), b"no image", b"", b""), strict=False):
        path.write_bytes(content)


def path_half(path: Path) -> bytes:
    return path.read_bytes()[: path.stat().st_size // 2]


def test_broken_files_are_skipped_with_one_counted_warning(tmp_path: Path, build: Build) -> None:
    source = split_folder(tmp_path / "pets", train=10)
    break_files(source, 4)
    pack = build(source, max_broken=0.2)
    assert len(pack.split("train").images) == 16 == len(pack.split("train").names)
    assert build.said == pack.warnings  # type: ignore[attr-defined]
    assert len(pack.warnings) == 1
    assert pack.warnings[0].startswith(
        "Skipped 4 of 22 images, which cannot be used: train/a/000.png (empty (0 bytes)), train/a/001.png (truncated"
    )
    assert pack.warnings[0].endswith("train/a/002.png (not an image of a known format) and 1 more.")
    assert [entry["name"] for entry in pack.manifest["skipped"]] == [f"train/a/00{i}.png" for i in range(4)]
    with Image.open(source / "train" / "a" / "004.png") as image:
        np.testing.assert_array_equal(pack.split("train").images[0], pack.transform.apply(image))


def test_too_many_broken_files(tmp_path: Path, build: Build) -> None:
    source = split_folder(tmp_path / "pets", train=10)
    break_files(source, 2)
    with pytest.raises(UserError) as caught:
        build(source)
    assert str(caught.value) == (
        "pets: 2 of 22 images cannot be used, more than data.max_broken=0.05 allows; the first is train/a/000.png: "
        "empty (0 bytes). Repair or remove them, or raise data.max_broken."
    )
    assert not (tmp_path / "out" / "pack").exists()
    break_files(source, 1)
    assert len(build(source, max_broken=2 / 22).split("train").images) == 18


def test_a_file_that_csv_names_and_is_not_there(tmp_path: Path, build: Build) -> None:
    write_image(tmp_path / "a.png", 0)
    (tmp_path / "list.csv").write_text("file_name\na.png\ngone.png\n")
    with pytest.raises(UserError, match=r"the first is gone.png: cannot be read \(No such file or directory\)"):
        build(tmp_path / "list.csv")


def test_no_image_of_a_split_is_left(tmp_path: Path, build: Build) -> None:
    source = split_folder(tmp_path / "pets", train=1)
    break_files(source, 2)
    with pytest.raises(UserError, match=r"no image of train is left: train/a/000.png is empty \(0 bytes\)"):
        build(source, max_broken=1)


# Images that are not what they seem.


def test_unexpected_images_are_counted(tmp_path: Path, build: Build) -> None:
    source = split_folder(tmp_path / "pets")
    frames = [Image.fromarray(pixels(seed)) for seed in (50, 51)]
    frames[0].save(source / "train" / "a" / "moving.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    frames[1].save(source / "train" / "a" / "phone.jpg", exif=exif)
    Image.new("RGBA", (8, 6), (9, 9, 9, 0)).save(source / "train" / "b" / "clip.png")
    Image.new("CMYK", (8, 6), (9, 9, 9, 0)).save(source / "train" / "b" / "print.jpg")
    Image.new("I;16", (8, 6), 700).save(source / "train" / "b" / "xray.png")
    pack = build(source)
    assert pack.warnings == [
        "Images with several frames or pages, of which the first is used: 1 (train/a/moving.gif).",
        "Images with an EXIF rotation, which is applied (data.exif_rotation=ignore leaves them as stored): 1 "
        "(train/a/phone.jpg).",
        "Images with transparent pixels, which are put on white (data.background): 1 (train/b/clip.png).",
        "Grey images of more than 8 bits, whose samples from 0 to 1,023 become 0 to 65,535 (data.range=auto: the "
        "largest of the source is 700, in train/b/xray.png): 1 (train/b/xray.png).",
        "CMYK images, converted to RGB without their colour profile: 1 (train/b/print.jpg).",
        "Images of one colour, from which nothing can be learnt (look at some; data.background and data.range decide "
        "what is seen of transparent and of 16-bit images): 3 (train/b/clip.png, train/b/print.jpg, train/b/xray.png).",
    ]
    assert pack.manifest["conversions"] == {
        "animated": 1,
        "blank": 3,
        "cmyk": 1,
        "exif_rotation": 1,
        "grey16": 1,
        "other_aspect": 1,
        "transparent": 1,
    }
    assert np.all(
        pack.split("train").images[pack.split("train").names.index("train/b/xray.png")] == 44843
    )  # 700 of 1,023, of 65,535
    assert "which is not applied" in build(source, exif_rotation="ignore").warnings[1]
    assert build(source, background="keep").warnings[2] == (
        "Images with transparent pixels, of which the colours are kept without the transparency (data.background=white "
        "puts them on white): 1 (train/b/clip.png)."
    )


@pytest.mark.parametrize(
    ("distinct", "copies", "said"), [(18, 2, False), (17, 3, True), (97, 3, False), (95, 5, True), (2000, 99, False)]
)
def test_many_copies_in_train_are_counted(distinct: int, copies: int, said: bool) -> None:
    """From 100 copies on, or from 5 % of the rows and at least 3."""
    contents = [*range(distinct), *[7] * (copies - 1), 8]
    digests = np.array([list(row.to_bytes(32, "big")) for row in contents], np.uint8)
    names = [f"{row}.png" for row in range(len(contents))]
    found = repeated_warning(Rows(names, np.zeros(len(names), np.int64), digests), Tally(len(names), IMAGES))
    sentence = (
        f"Images of train that repeat another image of train: {copies} of {distinct + copies}; the most frequent one "
        f"is there {copies} times (7.png). Look whether they should differ; else remove the copies, as each counts in "
        "training."
    )
    assert found == ([sentence] if said else [])


def test_labels_that_contradict_each_other_are_said(tmp_path: Path, build: Build) -> None:
    source = split_folder(tmp_path / "pets", train=4)
    shutil.copy(source / "train" / "a" / "001.png", source / "train" / "b" / "same.png")
    shutil.copy(source / "train" / "a" / "002.png", source / "train" / "a" / "again.png")  # of its own class
    assert build(source).warnings == [
        "Images of train with the content of another and a different label: 1 (train/a/001.png and train/b/same.png); "
        "only one label can be right."
    ]


def test_copies_are_counted_in_the_pack(tmp_path: Path, build: Build) -> None:
    source = split_folder(tmp_path / "pets", train=4)
    for index in range(4):
        shutil.copy(source / "train" / "a" / "001.png", source / "train" / "a" / f"copy{index}.png")
    assert build(source).warnings == [
        "Images of train that repeat another image of train: 4 of 12; the most frequent one is there 5 times "
        "(train/a/001.png). Look whether they should differ; else remove the copies, as each counts in training."
    ]


def test_rows_without_a_label_are_kept_and_counted(tmp_path: Path, build: Build) -> None:
    source = split_folder(tmp_path / "pets")
    write_image(source / "train" / "unknown.png", 500)
    pack = build(source)
    labels = pack.split("train").labels
    assert labels is not None and labels.tolist() == [0, 0, 1, 1, -1]
    assert pack.warnings == [
        "Images of train without a label, which take no part in fine-tuning: 1 of 5 (train/unknown.png)."
    ]


# The same image in train and test.


def share_images(tmp_path: Path) -> Path:
    """Two images of train are also in test, one of them as a file of another format and name."""
    source = split_folder(tmp_path / "pets", train=3, test=2)
    with Image.open(source / "test" / "a" / "000.png") as image:
        image.save(source / "train" / "b" / "same.bmp")
    shutil.copy(source / "test" / "b" / "001.png", source / "train" / "a" / "zz.png")
    return source


def test_shared_images_stop_the_build(tmp_path: Path, build: Build) -> None:
    with pytest.raises(UserError) as caught:
        build(share_images(tmp_path))
    assert str(caught.value) == (
        "train/a/zz.png (train) and test/b/001.png (test) are the same image; in all, 2 images of train are in test; "
        "remove them, or set data.duplicates=drop to leave them out of train or data.duplicates=keep to train on them."
    )


def test_shared_images_are_dropped_from_train(tmp_path: Path, build: Build) -> None:
    pack = build(share_images(tmp_path), duplicates="drop")
    assert len(pack.split("train").images) == 6 and len(pack.split("test").images) == 4
    assert not set(rows_of(pack, "train").values()) & set(rows_of(pack, "test").values())
    assert not {"train/a/zz.png", "train/b/same.bmp"} & set(pack.split("train").names)
    assert pack.warnings == [
        "Images of train that are also in test and were left out of train: 2 (train/a/zz.png, train/b/same.bmp)."
    ]
    assert len(pack.manifest["duplicates"]["dropped_from_train"]) == 2


def test_shared_images_are_kept_and_counted(tmp_path: Path, build: Build) -> None:
    pack = build(share_images(tmp_path), duplicates="keep")
    assert len(pack.split("train").images) == 8
    assert pack.warnings == [
        "Images of train that are also in test: 2 (the first: train/a/zz.png (train) and test/b/001.png (test))."
    ]


def test_val_counts_as_held_out_too(tmp_path: Path, build: Build) -> None:
    source = split_folder(tmp_path / "pets")
    shutil.copytree(source / "train" / "a", source / "val" / "a")
    with pytest.raises(UserError, match=r"train/a/000.png \(train\) and val/a/000.png \(val\) are the same image"):
        build(source)
    shutil.rmtree(source / "val")
    shutil.copytree(source / "test", source / "val")
    assert build(source).warnings == [
        "Images of val that are also in test: 2 (the first: val/a/000.png (val) and test/a/000.png (test))."
    ]


# What lies at the place of the pack.


@pytest.mark.parametrize("ending", ["images.npy", "labels.npy", "digests.npy", "names.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_pack_is_refused_and_built_again(tmp_path: Path, build: Build, ending: str, damage: str) -> None:
    source = split_folder(tmp_path / "pets")
    pack = build(source)
    path = pack.directory / f"test-{ending}"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.unlink() if damage == "gone" else path.write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(UserError, match=f"test-{ending} is missing or differs from its manifest; delete"):
        ImagePack.open(pack.directory)
    again = build(source)
    assert again.fingerprint == pack.fingerprint == ImagePack.open(pack.directory).fingerprint
    assert f"test-{ending}" in build.said[0] and "built again" in build.said[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 99}'])
def test_a_damaged_manifest_is_built_again(tmp_path: Path, build: Build, content: str) -> None:
    source = split_folder(tmp_path / "pets")
    pack = build(source)
    (pack.directory / "manifest.json").write_text(content)
    with pytest.raises(UserError):
        ImagePack.open(pack.directory)
    assert build(source).fingerprint == pack.fingerprint


def test_no_pack(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no pack"):
        ImagePack.open(tmp_path / "nothing")


def test_a_directory_with_other_things_is_never_replaced(tmp_path: Path, build: Build) -> None:
    source = split_folder(tmp_path / "pets")
    (tmp_path / "out" / "pack").mkdir(parents=True)
    (tmp_path / "out" / "pack" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"pack holds 'thesis.tex', which is no part of a pack; choose another --out"):
        build(source)
    assert (tmp_path / "out" / "pack" / "thesis.tex").read_text() == "mine"
    shutil.rmtree(tmp_path / "out" / "pack")
    (tmp_path / "out" / "pack").write_text("mine")
    with pytest.raises(UserError, match="is a file; choose another --out"):
        build(source)


@pytest.mark.parametrize("free", [20 * 6 * 8 * 3 - 1, 20 * 6 * 8 * 3])
def test_a_pack_that_the_disk_cannot_hold_is_one_sentence_before_anything_is_decoded(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    source = split_folder(tmp_path / "pets", train=9)
    monkeypatch.setattr("sdfast.durable.shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    if free == 20 * 6 * 8 * 3:
        assert len(build(source).split("train")) == 18
        return
    monkeypatch.setattr("sdfast.modalities.images.pack.decode", pytest.fail)
    with pytest.raises(RunError, match=r"the pack of 20 images needs 0\.00 GB .* 0\.00 GB are free; free some space"):
        build(source)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_array_that_cannot_be_read_is_named(tmp_path: Path, build: Build) -> None:
    """As of a failing disk, whose errors name no file; the kernel has a regular file of which no byte can be read."""
    pack = build(split_folder(tmp_path / "pets"))
    files = pack.manifest["splits"]["train"]["files"]
    for kind in ("digests", "labels", "images"):
        path = pack.directory / files[kind]["file"]
        whole = path.read_bytes()
        path.unlink()
        path.symlink_to("/proc/self/mem")
        with pytest.raises(OSError, match="Input/output error") as caught:
            type(pack.split("train"))(pack.directory, files)
        assert caught.value.filename == str(path)
        path.unlink()
        path.write_bytes(whole)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.EMFILE, errno.EINTR, errno.ESTALE, errno.ENOSPC])
def test_an_error_that_may_pass_leaves_no_image_out(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The rows of a data set do not depend on how the disk or the memory was just then; the earlier pack stays."""
    source = split_folder(tmp_path / "pets", train=3)
    before = build(source).fingerprint
    write_image(source / "train" / "a" / "new.png", 7)

    def failing(path: Path, limit: int) -> bytes:
        if path.name == "new.png":
            raise OSError(number, os.strerror(number), str(path))
        return read_regular(path, limit)

    with monkeypatch.context() as patch:
        patch.setattr("sdfast.data.items.read_regular", failing)
        with pytest.raises(RunError, match=rf"/new\.png cannot be read: {os.strerror(number).lower()}\. Run the same"):
            build(source, max_broken=1.0)
    assert ImagePack.open(build(source).directory).fingerprint != before
