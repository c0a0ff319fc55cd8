"""The paper's image data sets: known by their files, split and compared in size as in the paper; damage is named."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import paper_image_samples as samples
import pytest
import torch
from data_samples import pixels, write_classes, write_image
from PIL import Image
from scipy.io import savemat

from sdfast.config import Config
from sdfast.data import paper_sets
from sdfast.data.items import Source, known_items
from sdfast.data.paper_images import LAYOUTS
from sdfast.data.paper_sets import PAPER_SETS, paper_set
from sdfast.data.rows import held_out_rows
from sdfast.errors import UserError
from sdfast.studies.paper_results import MISPRINTS, paper_number

Open = Callable[..., Source]

TITLES = tuple(samples.WRITERS)
ROWS = {  # of the miniatures
    "Aircraft": {"train": 6, "test": 2},
    "CUB": {"train": 4, "test": 2},
    "Chest-Xray": {"train": 4, "val": 2, "test": 2},
    "DTD": {"train": 8},
    "Dogs": {"train": 4, "test": 2},
    "Flower": {"train": 6, "test": 3},
    "CIFAR-100": {"train": 4, "test": 3},
}
COUNTS = {  # train, test and classes, as the paper and the publishers give them
    "Aircraft": ("6,667 train, 3,333 test", 100),
    "CUB": ("5,994 train, 5,794 test", 200),
    "Chest-Xray": ("5,216 train, 624 test", 2),
    "DTD": ("5,640 train", 47),
    "Dogs": ("12,000 train, 8,580 test", 120),
    "Flower": ("2,040 train, 6,149 test", 102),
    "CIFAR-100": ("50,000 train, 10,000 test", 100),
}


def names(source: Source, split: str = "train") -> list[str]:
    return [item.name for item in source.splits[split]]


def labels(source: Source, split: str = "train") -> list[str]:
    assert source.class_names is not None
    return [source.class_names[label] for label in source.splits[split].labels if label is not None]


def replaced(path: Path, old: str, new: str) -> None:
    content = path.read_text()
    assert content.count(old) == 1
    path.write_text(content.replace(old, new))


# All of them.


@pytest.mark.parametrize("title", TITLES)
def test_a_copy_is_known_by_its_files_and_compared_with_the_paper(tmp_path: Path, open_spec: Open, title: str) -> None:
    source = open_spec(samples.WRITERS[title](tmp_path / "somewhere"))
    assert source.name == "somewhere"
    assert {split: len(items) for split, items in source.splits.items()} == ROWS[title]
    counts, classes = COUNTS[title]
    assert len(source.warnings) == 1
    assert source.warnings[0].startswith(f"somewhere has the layout of the paper's {title} but another size: ")
    corrected = " (Table 7 prints 5,594 train, and the published split has 5,994)" if title == "CUB" else ""
    assert source.warnings[0].endswith(f"; the paper's has {counts} and {classes} classes{corrected}.")
    assert f"{ROWS[title]['train']} train" in source.warnings[0] and "val" not in source.warnings[0]


@pytest.mark.parametrize("title", TITLES)
def test_a_copy_of_the_papers_size_is_not_remarked_on(
    tmp_path: Path, open_spec: Open, monkeypatch: pytest.MonkeyPatch, title: str
) -> None:
    root = samples.WRITERS[title](tmp_path / "somewhere")
    classes = len(open_spec(root).class_names or ())
    rows = {"train": 6, "test": 2} if title == "DTD" else {split: ROWS[title][split] for split in ("train", "test")}
    small = [
        dataclasses.replace(found, rows=rows, classes=classes) if found.title == title else found
        for found in PAPER_SETS
    ]
    monkeypatch.setattr(paper_sets, "PAPER_SETS", small)
    assert open_spec(root).warnings == []


def test_a_number_that_the_paper_does_not_print_says_what_it_prints() -> None:
    printed = {  # Tables 7 and 8: training instances and classes
        "Aircraft": (6667, 100),
        "CUB": (5594, 200),
        "Chest-Xray": (5216, 2),
        "DTD": (4230, 47),
        "Dogs": (12_000, 120),
        "Flower": (2040, 102),
        "SCIERC": (3219, 7),
        "ACL-ARC": (1688, 6),
        "Chemprot": (4169, 13),
        "Twitter-Emotion": (4230, 47),
    }
    sets = {found.title: found for found in PAPER_SETS}
    assert sets.keys() - printed.keys() == {"CIFAR-100"}  # of Figure 3 alone
    for title, (rows, classes) in printed.items():
        found = sets[title]
        corrected = [each for each in (rows, classes) if each not in (found.rows["train"], found.classes)]
        assert bool(corrected) == (found.misprint is not None), title
        assert all(f"{each:,}" in (found.misprint or "") for each in corrected), title
    page = (Path(__file__).parents[2] / "docs" / "differences.md").read_text("utf-8")
    listed = page.partition("## What the paper misprints")[2].partition("\n## ")[0]
    for clause in [*(found.misprint for found in PAPER_SETS if found.misprint), *MISPRINTS.values()]:
        assert all(number in listed for number in re.findall(r"\d[\d,.]*\d", clause)), clause


def test_every_layout_is_a_data_set_of_the_paper() -> None:
    images = [found for found in PAPER_SETS if found.modality == "images"]
    assert [found.layout for found in images] == [layout.kind for layout in LAYOUTS]
    assert {found.title: found.metric for found in images} == dict.fromkeys(TITLES, "accuracy")


@pytest.mark.parametrize("title", TITLES)
def test_the_folder_above_is_refused(tmp_path: Path, open_spec: Open, title: str) -> None:
    samples.WRITERS[title](tmp_path / "above" / "unpacked")
    with pytest.raises(UserError) as caught:
        open_spec(tmp_path / "above")
    assert str(caught.value).startswith(f"{tmp_path / 'above'} holds unpacked/, which is the data set ")
    assert str(caught.value).endswith(f": pass --data {tmp_path / 'above' / 'unpacked'}.")


@pytest.mark.parametrize("title", TITLES)
def test_they_are_packed(tmp_path: Path, build: Callable[..., Any], title: str) -> None:
    root = samples.WRITERS[title](tmp_path / "somewhere")
    pack = build(root)
    expected = {"train": 6, "test": 2} if title == "DTD" else ROWS[title]
    assert {split: len(rows) for split, rows in pack.splits.items()} == expected
    source = pack.manifest["source"]
    found = paper_set(source["name"], source["kind"], "images")
    assert found is not None and found.title == title
    made_at = (tmp_path / "out" / "pack" / "manifest.json").stat().st_mtime_ns
    assert build(root) and build.said == []  # nothing has changed
    assert (tmp_path / "out" / "pack" / "manifest.json").stat().st_mtime_ns == made_at


# FGVC-Aircraft.


def test_aircraft(tmp_path: Path, open_spec: Open) -> None:
    root = samples.write_aircraft(tmp_path / "fgvc-aircraft-2013b")
    source = open_spec(root)
    assert source.class_names == list(samples.VARIANTS)
    assert names(source) == [f"images/{index:07d}.jpg" for index in range(6)]  # train and val
    assert names(source, "test") == ["images/0000006.jpg", "images/0000007.jpg"]
    assert labels(source) == ["707-320", "Boeing 717"] * 3 and labels(source, "test") == ["707-320", "Boeing 717"]
    assert source.splits["train"][1].read() == (root / "data" / "images" / "0000001.jpg").read_bytes()
    digest = source.content_digest()
    assert open_spec(root / "data").content_digest() == digest
    (root / "data" / "images_variant_trainval.txt").unlink()  # train and val say the same
    assert open_spec(root).content_digest() == digest


def test_the_banner_of_aircraft_is_cut_off(tmp_path: Path, build: Callable[..., Any]) -> None:
    root = samples.write_aircraft(tmp_path / "planes")
    for index in range(8):
        picture = np.concatenate([pixels(index, 6, 8), np.full((20, 8, 3), 255, np.uint8)])
        Image.fromarray(picture).save(root / "data" / "images" / f"{index:07d}.png")
        (root / "data" / "images" / f"{index:07d}.png").rename(root / "data" / "images" / f"{index:07d}.jpg")
    pack = build(root)
    np.testing.assert_array_equal(pack.split("train").images[4], pixels(4, 6, 8))
    assert pack.manifest["conversions"] == {"banner": 8}
    assert any(said.startswith("Images with a banner at their bottom, which is cut off: 8 (") for said in build.said)


def test_an_image_that_is_all_banner_is_broken(tmp_path: Path, build: Callable[..., Any]) -> None:
    root = samples.write_aircraft(tmp_path / "planes")
    for index in range(8):
        Image.fromarray(pixels(index, 21, 8)).save(root / "data" / "images" / f"{index:07d}.jpg")
    Image.fromarray(pixels(0, 20, 8)).save(root / "data" / "images" / "0000003.jpg")
    with pytest.raises(UserError, match=r"images/0000003.jpg: 20 pixels high, and 20 of them are a banner"):
        build(root)
    assert len(build(root, max_broken=0.2).split("train")) == 5


def test_the_banner_counts_in_the_digest(tmp_path: Path, open_spec: Open) -> None:
    source = open_spec(samples.write_aircraft(tmp_path / "planes"))
    before = source.content_digest()
    first, *others = source.splits["test"]
    source.splits["test"] = known_items([first._replace(banner=0), *others])
    assert source.content_digest() != before


# CUB-200-2011.


def test_cub(tmp_path: Path, open_spec: Open) -> None:
    root = samples.write_cub(tmp_path / "CUB_200_2011")
    source = open_spec(root)
    assert source.class_names == list(samples.BIRDS)
    assert names(source)[0] == "images/002.Laysan_Albatross/Bird_0001.jpg" and len(source.splits["train"]) == 4
    assert names(source, "test") == [
        "images/002.Laysan_Albatross/Bird_0005.jpg",
        "images/001.Black_footed_Albatross/Bird_0006.jpg",
    ]
    for split in ("train", "test"):
        assert [name.split("/")[1] for name in names(source, split)] == labels(source, split)
    assert source.splits["test"][1].read() == (root / names(source, "test")[1]).read_bytes()
    (root / "classes.txt").write_text("2 second\n1 first\n")  # numbers decide, not places
    again = open_spec(root)
    assert again.class_names == ["second", "first"] and labels(again)[:2] == ["second", "first"]


# Chest X-ray.


def test_chest_xray_with_kaggles_copy_of_itself(tmp_path: Path, open_spec: Open) -> None:
    root = samples.write_chest_xray(tmp_path / "chest_xray")
    samples.write_chest_xray(root / "chest_xray")
    source = open_spec(root)
    assert source.class_names == ["NORMAL", "PNEUMONIA"] and labels(source, "val") == ["NORMAL", "PNEUMONIA"]
    assert names(source)[0] == "train/NORMAL/IM-0000.jpeg" and len(source.splits["train"]) == 4
    assert source.warnings[0] == "Folders beside the splits that are not used: 1 (the first: chest_xray)."
    assert "4 train, 2 test and 2 classes" in source.warnings[1]
    assert names(open_spec(root / "chest_xray")) == names(source)


def test_other_classes_are_no_chest_xray(tmp_path: Path, open_spec: Open) -> None:
    for split in ("train", "test"):
        write_classes(tmp_path / split, {"NORMAL": 1, "COVID": 1})
    source = open_spec(tmp_path)
    assert source.kind == "image folder" and source.warnings == []


# DTD.


def test_dtd_is_one_set_and_its_labels_the_first_published_split(tmp_path: Path, open_spec: Open) -> None:
    root = samples.write_dtd(tmp_path / "dtd")
    source = open_spec(root)
    assert names(source) == [f"images/{name}/{name}_{n:04d}.jpg" for name in samples.TEXTURES for n in range(4)]
    assert labels(source) == ["banded"] * 4 + ["waffled"] * 4
    split = open_spec(root / "labels")
    assert {part: len(items) for part, items in split.splits.items()} == {"train": 4, "val": 2, "test": 2}
    assert names(split, "test") == ["images/banded/banded_0001.jpg", "images/waffled/waffled_0001.jpg"]
    assert labels(split) == ["banded", "banded", "waffled", "waffled"] and names(split)[3].endswith("waffled_0002.jpg")
    assert split.splits["test"][0].read() == (root / names(split, "test")[0]).read_bytes()
    assert split.warnings == [
        "labels has the layout of the paper's DTD but another size: 4 train, 2 test and 2 classes; the paper's has "
        "4,230 train, 1,410 test and 47 classes."
    ]


def test_the_default_split_of_dtd_has_the_papers_size() -> None:
    digests = np.random.default_rng(0).integers(0, 256, (5640, 32), dtype=np.uint8)
    test = held_out_rows(digests, np.repeat(np.arange(47), 120), fraction=0.25, seed=42)
    assert (len(digests) - len(test), len(test)) == (4230, 1410)


# Stanford Dogs.


@pytest.mark.parametrize(("lists", "images"), [(".", "Images"), ("lists", "Images"), ("lists", "images")])
def test_dogs(tmp_path: Path, open_spec: Open, lists: str, images: str) -> None:
    root = samples.write_dogs(tmp_path / "dogs", lists, images)
    source = open_spec(root)
    assert source.class_names == list(samples.BREEDS)
    assert names(source) == [f"{images}/{samples.BREEDS[n % 2]}/dog_{n}.jpg" for n in range(4)]
    for split in ("train", "test"):
        assert [name.split("/")[1] for name in names(source, split)] == labels(source, split)
    assert source.splits["test"][1].read() == (root / names(source, "test")[1]).read_bytes()


def test_a_single_dog_in_a_list(tmp_path: Path, open_spec: Open) -> None:
    root = samples.write_dogs(tmp_path / "dogs")
    samples.write_dogs_list(root / "test_list.mat", [f"{samples.BREEDS[1]}/dog_5.jpg"], [2])
    assert labels(open_spec(root), "test") == [samples.BREEDS[1]]


# Oxford Flowers.


def test_flowers(tmp_path: Path, open_spec: Open) -> None:
    root = samples.write_flowers(tmp_path / "flowers-102")
    source = open_spec(root)
    assert source.class_names == ["1", "2", "10"]
    assert names(source) == [f"jpg/image_0000{n}.jpg" for n in (9, 1, 4, 2, 3, 5)]  # train and val, as listed
    assert labels(source) == ["2", "1", "10", "2", "1", "10"] and labels(source, "test") == ["2", "1", "10"]
    assert source.splits["train"][0].read() == (root / "jpg" / "image_00009.jpg").read_bytes()


# CIFAR-100.


def test_both_versions_of_cifar100_are_the_same(tmp_path: Path, open_spec: Open) -> None:
    binary = open_spec(samples.write_cifar100_binary(tmp_path / "cifar-100-binary"))
    source = open_spec(samples.write_cifar100_python(tmp_path / "cifar-100-python"))
    assert source.kind == binary.kind == "CIFAR-100" and source.class_names == list(samples.CIFAR_NAMES)
    assert labels(source) == ["baby", "apple", "aquarium_fish", "baby"] and names(source, "test")[2] == "test:2"
    data = samples.CIFAR["train"][0]
    read = source.splits["train"][1].read()
    assert isinstance(read, np.ndarray) and read.shape == (32, 32, 3)
    assert read[5, 7].tolist() == [data[1, plane * 1024 + 5 * 32 + 7] for plane in range(3)]
    assert source.content_digest() == binary.content_digest()


def test_cifar100_is_packed_without_a_codec(tmp_path: Path, build: Callable[..., Any]) -> None:
    from sdfast.data.config import DataConfig
    from sdfast.modalities.images.pack import ImagePack
    from sdfast.modalities.images.transform import Transform

    root = samples.write_cifar100_binary(tmp_path / "cifar-100-binary")
    pack = ImagePack.prepare(str(root), tmp_path / "pack", Transform(32, 32), DataConfig(), lambda said: None)
    expected = samples.CIFAR["test"][0].reshape(3, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(pack.split("test").images, expected)


# Copies under their names.


@pytest.mark.parametrize(
    ("name", "title"), [("CUB-200-2011", "CUB"), ("chest-xray-pneumonia", "Chest-Xray"), ("cifar100", "CIFAR-100")]
)
def test_copies_of_the_hub_are_known_by_name(tmp_path: Path, open_spec: Open, name: str, title: str) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [Image.fromarray(pixels(seed)) for seed in range(2)], "label": [0, 1]}
    part = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=part, test=part).save_to_disk(str(tmp_path / name))
    warning = open_spec(tmp_path / name).warnings[0]
    assert warning.startswith(f"{name} has the name of the paper's {title} but another size: 2 train, 2 test and 2 cl")


def test_names_are_of_one_modality() -> None:
    assert paper_set("uoft-cs/cifar100", "Hugging Face data set", "images") is not None
    assert paper_set("uoft-cs/cifar100", "Hugging Face data set", "texts") is None
    assert paper_set("chemprot", "image folder", "images") is None
    assert paper_set("flowers", "image folder", "images") is None


# Damage.


def drop(name: str) -> Callable[[Path], None]:
    def remove(root: Path) -> None:
        shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()

    return remove


def text(name: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda root: replaced(root / name, old, new)


def content(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(data)


def dog_list(names_of: list[str], labels_of: list[int], split: str = "train") -> Callable[[Path], None]:
    return lambda root: samples.write_dogs_list(root / f"{split}_list.mat", names_of, labels_of)


def flower_labels(**variables: Any) -> Callable[[Path], None]:
    return lambda root: savemat(root / "imagelabels.mat", variables)


DOGS = [f"{samples.BREEDS[n % 2]}/dog_{n}.jpg" for n in range(4)]
TRAIN, LABELS = samples.CIFAR["train"]

DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("Aircraft", drop("data/images"), r"images_variant_trainval.txt names images that are not in .*data: 6 of 6 "),
    (
        "Aircraft",
        drop("data/images/0000007.jpg"),
        r"images_variant_test.txt names images .*1 of 2 \(the first: images/0000007",
    ),
    ("Aircraft", drop("data/variants.txt"), r"variants.txt is missing; unpack the whole archive again"),
    (
        "Aircraft",
        text("data/variants.txt", "Boeing 717", "Boeing 71"),
        r"trainval.txt line 2: 'Boeing 717' is not in variants",
    ),
    ("Aircraft", content("data/images_variant_test.txt", b"0000006\n"), r"test.txt line 1 is one word, not two"),
    ("Aircraft", content("data/images_variant_test.txt", b"\n"), r"images_variant_test.txt names no images"),
    ("Aircraft", content("data/images_variant_test.txt", b"0000006 \xff\n"), r"test.txt line 1 is not a UTF-8 text"),
    ("CUB", drop("images/" + samples.BIRDS[0]), r"images.txt names images that are not in .*: 2 of 4 "),
    ("CUB", drop("classes.txt"), r"classes.txt is missing"),
    (
        "CUB",
        text("image_class_labels.txt", "3 2", "3 201"),
        r"labels.txt gives image 3 the class 201, which is not in classes",
    ),
    (
        "CUB",
        text("image_class_labels.txt", "3 2\n", ""),
        r"labels.txt has 5 images and images.txt 6; image 3 is in one",
    ),
    (
        "CUB",
        text("train_test_split.txt", "3 1\n", "7 1\n"),
        r"split.txt has 6 images and images.txt 6; image 3 is in one",
    ),
    (
        "CUB",
        text("train_test_split.txt", "3 1\n", "3 2\n"),
        r"split.txt gives image 3 '2', neither 1 \(train\) nor 0 \(test\)",
    ),
    ("CUB", text("images.txt", "3 ", "2 "), r"images.txt line 3 has the number 2 a second time"),
    (
        "CUB",
        content("train_test_split.txt", b"1 1\n2 1\n3 1\n4 1\n5 1\n6 1\n"),
        r"train_test_split.txt names no images",
    ),
    ("Chest-Xray", drop("train/NORMAL/IM-0000.jpeg"), ""),
    (
        "DTD",
        drop("images/waffled/waffled_0003.jpg"),
        r"labels names images .*: 1 of 8 \(the first: images/waffled/waffled_0003",
    ),
    ("DTD", drop("labels/val1.txt"), r"val1.txt is missing"),
    ("DTD", content("labels/val1.txt", b"banded_0003.jpg\n"), r"val1.txt line 1 is not a class, '/' and an image"),
    ("Dogs", drop("Images"), r"has train_list.mat and no Images/; unpack images.tar there"),
    ("Dogs", drop("test_list.mat"), r"test_list.mat is missing"),
    (
        "Dogs",
        drop("Images/" + DOGS[2]),
        r"train_list.mat names images .*: 1 of 4 \(the first: Images/n02085620-Chihuahua/dog_2",
    ),
    ("Dogs", dog_list(DOGS, [1, 2, 1]), r"train_list.mat has 3 labels for its 4 images"),
    ("Dogs", dog_list(DOGS, [1, 2, 1, 1]), r"dog_3.jpg has label 1, which is n02085620-Chihuahua"),
    ("Dogs", dog_list(DOGS, [1, 2, 3, 2]), r"train_list.mat: a folder has two labels"),
    ("Dogs", content("train_list.mat", b"\0" * 200), r"train_list.mat cannot be read as a MATLAB file"),
    ("Dogs", lambda root: savemat(root / "test_list.mat", {"file_list": 1}), r"test_list.mat has no variable 'labels'"),
    (
        "Dogs",
        lambda root: savemat(root / "test_list.mat", {"file_list": [1], "labels": [1]}),
        r"file_list of .* are not texts",
    ),
    ("Flower", drop("jpg"), r"has setid.mat and no jpg/; unpack 102flowers.tgz there"),
    ("Flower", drop("jpg/image_00004.jpg"), r"setid.mat names images .*: 1 of 6 \(the first: jpg/image_00004.jpg"),
    (
        "Flower",
        flower_labels(labels=[1, 2, 1, 2, 1]),
        r"setid.mat names image 9, and imagelabels.mat has labels for images 1 to 5",
    ),
    ("Flower", flower_labels(labels=[0] * 9), r"imagelabels.mat has the label 0, and its classes begin at 1"),
    ("Flower", flower_labels(labels=[1.5] * 9), r"labels of .*imagelabels.mat are not whole numbers"),
    ("Flower", flower_labels(labels=[1] * 8 + [2]), ""),
    ("Flower", flower_labels(names=[1]), r"imagelabels.mat has no variable 'labels'"),
    ("Flower", content("setid.mat", b"MATLAB 5.0"), r"setid.mat cannot be read as a MATLAB file"),
    ("CIFAR-100", content("train", samples.cifar_pickle(TRAIN, LABELS[:3])), r"train has 3 labels for its 4 images"),
    (
        "CIFAR-100",
        content("train", samples.cifar_pickle(TRAIN, [0, 1, 2, 3])),
        r"train: row 3 has label 3, but only 3 classes",
    ),
    ("CIFAR-100", content("train", samples.cifar_pickle(TRAIN[:, 1:], LABELS)), r"`data` are not rows of 3,072 bytes"),
    ("CIFAR-100", content("train", samples.cifar_pickle(TRAIN[:0], [])), r"train holds no images"),
    (
        "CIFAR-100",
        content("test", samples.cifar_pickle(TRAIN, LABELS)[:-9]),
        r"test is not a whole pickle of plain data",
    ),
    ("CIFAR-100", content("test", b"cos\nsystem\n(S'touch x'\ntR."), r"test is a pickle that asks for os.system"),
    (
        "CIFAR-100",
        content("test", samples.python2_pickle({"labels": b"]"})),
        r"test has no `data`, so it is not a file of CIFAR",
    ),
    (
        "CIFAR-100",
        content("meta", samples.python2_pickle({"fine_label_names": b"K\x01"})),
        r"`fine_label_names` are not names",
    ),
]


@pytest.mark.parametrize(
    ("title", "damage", "message"), DAMAGE, ids=[f"{title}-{number}" for number, (title, *_) in enumerate(DAMAGE)]
)
def test_damage_is_named(
    tmp_path: Path, open_spec: Open, title: str, damage: Callable[[Path], object], message: str
) -> None:
    root = samples.WRITERS[title](tmp_path / "set")
    damage(root)
    if not message:  # nothing lists it: the count says that it is missing
        assert any("but another size" in warning for warning in open_spec(root).warnings)
        return
    with pytest.raises(UserError, match=message) as caught:
        open_spec(root)
    assert str(root) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (content("train.bin", b"\0" * 3073), r"train.bin is damaged: 3,073 bytes are not records of 3,074"),
        (content("test.bin", b""), r"test.bin holds no images"),
        (content("test.bin", b"\0\x03" + b"\0" * 3072), r"test.bin: row 0 has label 3, but only 3 classes have a name"),
    ],
)
def test_damage_of_the_binary_cifar100(
    tmp_path: Path, open_spec: Open, damage: Callable[[Path], object], message: str
) -> None:
    root = samples.write_cifar100_binary(tmp_path / "cifar")
    damage(root)
    with pytest.raises(UserError, match=message):
        open_spec(root)


def test_a_class_of_test_that_train_lacks(tmp_path: Path, open_spec: Open) -> None:
    root = samples.write_flowers(tmp_path / "flowers", labels=(1, 1, 1, 1, 1, 2, 1, 1, 1))
    with pytest.raises(UserError, match=r"classes of test that train lacks: 1 \(the first: '2'\)"):
        open_spec(root)


def test_an_ordinary_folder_stays_one(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path / "pets", {"images": 1, "data": 1, "labels": 1, "jpg": 1})
    write_image(tmp_path / "pets" / "lists" / "a.png", 7)
    source = open_spec(tmp_path / "pets")
    assert source.kind == "image folder" and source.warnings == []
    assert source.class_names == ["data", "images", "jpg", "labels", "lists"]


# What runs and studies make of them.


def test_a_run_names_accuracy_as_the_papers_metric(capsys: pytest.CaptureFixture[str]) -> None:
    from sdfast.cli.show import show_metrics
    from sdfast.context import Context
    from sdfast.modalities.images.modality import IMAGES
    from sdfast.ranks import Ranks

    metrics = []
    for source in ({"name": "birds", "kind": "CUB-200-2011"}, {"name": "chemprot", "kind": "image folder"}):
        pack = SimpleNamespace(problem="single_label_classification", manifest={"source": source})
        metrics.append(Context(Config(), IMAGES, torch.device("cpu"), Ranks(), None, pack).paper_metric)
    assert metrics == ["accuracy", None]
    show_metrics({"accuracy": 0.5, "macro_f1": 0.25}, metrics[0])
    assert capsys.readouterr().out.splitlines() == [
        "accuracy 0.5000 (the paper's metric for this data set)",
        "macro_f1 0.2500",
    ]


def test_studies_find_the_papers_numbers_by_title() -> None:
    found = {title: paper_number("table1", title, "self-distillation", "score") for title in TITLES[:-1]}
    means = {title: number[0] for title, number in found.items() if number is not None}
    assert means == {"Aircraft": 74.37, "CUB": 58.06, "Chest-Xray": 79.68, "DTD": 68.51, "Dogs": 63.55, "Flower": 90.28}
