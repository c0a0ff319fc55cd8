"""Miniature copies of the paper's image data sets, in the layouts that their archives unpack to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from data_samples import pixels, write_image
from PIL import Image
from scipy.io import savemat

TEXTURES = ("banded", "waffled")
BREEDS = ("n02085620-Chihuahua", "n02116738-African_hunting_dog")
VARIANTS = ("707-320", "Boeing 717")  # with a blank in its name
BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross")


def write_aircraft(root: Path) -> Path:
    """4 images of train, 2 of val and 2 of test."""
    data = root / "data"
    (data / "images").mkdir(parents=True)
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for index, split in enumerate(("train", "train", "train", "train", "val", "val", "test", "test")):
        Image.fromarray(pixels(index, 30)).save(data / "images" / f"{index:07d}.jpg")
        lines[split].append(f"{index:07d} {VARIANTS[index % 2]}\n")
    lines["trainval"] = lines["train"] + lines["val"]
    for split, listed in lines.items():
        (data / f"images_variant_{split}.txt").write_text("".join(listed))
    (data / "variants.txt").write_text("".join(f"{name}\n" for name in VARIANTS))
    return root


def write_cub(root: Path) -> Path:
    """4 images of train and 2 of test, in turn."""
    images, labels, splits = [], [], []
    for number in range(1, 7):
        name = f"{BIRDS[number % 2]}/Bird_{number:04d}.jpg"
        write_image(root / "images" / name, number)
        images.append(f"{number} {name}\n")
        labels.append(f"{number} {number % 2 + 1}\n")
        splits.append(f"{number} {int(number < 5)}\n")
    for file, lines in (
        ("images.txt", images),
        ("image_class_labels.txt", labels),
        ("train_test_split.txt", splits),
        ("classes.txt", [f"{number} {name}\n" for number, name in enumerate(BIRDS, start=1)]),
    ):
        (root / file).write_text("".join(lines))
    return root


def write_chest_xray(root: Path) -> Path:
    """4 images of train, 2 of val and 2 of test, with what macOS and Kaggle's archive leave beside them."""
    seed = 0
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        for name in ("NORMAL", "PNEUMONIA"):
            for index in range(count):
                write_image(root / split / name / f"IM-{index:04d}.jpeg", seed)
                seed += 1
            (root / split / name / ".DS_Store").write_bytes(b"x")
    write_image(root / "__MACOSX" / "train" / "NORMAL" / "._IM-0000.jpeg", 0)
    return root


def write_dtd(root: Path) -> Path:
    """4 images of each of 2 classes: in the first published split 4 train, 2 val, 2 test."""
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    seed = 0
    for name in TEXTURES:
        for index, split in enumerate(("train", "test", "train", "val")):
            write_image(root / "images" / name / f"{name}_{index:04d}.jpg", seed)
            lines[split].append(f"{name}/{name}_{index:04d}.jpg\n")
            seed += 1
    (root / "images" / "waffled" / ".directory").write_text("x")
    (root / "labels").mkdir()
    for split, listed in lines.items():
        (root / "labels" / f"{split}1.txt").write_text("".join(listed))
    (root / "labels" / "labels_joint_anno.txt").write_text("x")
    return root


def write_dogs(root: Path, lists: str = ".", images: str = "Images") -> Path:
    """4 images of train and 2 of test."""
    for split, first, count in (("train", 0, 4), ("test", 4, 2)):
        names = [f"{BREEDS[index % 2]}/dog_{index}.jpg" for index in range(first, first + count)]
        for index, name in enumerate(names, start=first):
            write_image(root / images / name, index)
        write_dogs_list(
            root / lists / f"{split}_list.mat", names, [BREEDS.index(name.split("/")[0]) + 1 for name in names]
        )
    return root


def write_dogs_list(path: Path, names: Sequence[str], labels: Sequence[int]) -> None:
    path.parent.mkdir(exist_ok=True)
    cells = np.empty((len(names), 1), dtype=object)
    cells[:, 0] = list(names)
    savemat(path, {"file_list": cells, "annotation_list": cells, "labels": np.asarray(labels, np.uint8)[:, None]})


def write_flowers(
    root: Path, labels: Sequence[int] = (1, 2, 1, 10, 10, 2, 1, 10, 2), train: Sequence[int] = (9, 1, 4)
) -> Path:
    """3 images of train, 3 of val, 3 of test; the classes are 1, 2 and 10."""
    for image in range(1, 10):
        write_image(root / "jpg" / f"image_{image:05d}.jpg", image)
    savemat(root / "imagelabels.mat", {"labels": np.asarray(labels, np.uint8)[None]})
    ids = {"trnid": train, "valid": (2, 3, 5), "tstid": (6, 7, 8)}
    savemat(root / "setid.mat", {name: np.asarray(numbers, np.uint16)[None] for name, numbers in ids.items()})
    return root


# CIFAR-100: [n, 3072] uint8 and fine labels of each split.
CIFAR_NAMES = ("apple", "aquarium_fish", "baby")
CIFAR = {
    "train": (pixels(1, 4, 3072, 1).reshape(4, 3072), [2, 0, 1, 2]),
    "test": (pixels(2, 3, 3072, 1).reshape(3, 3072), [0, 1, 2]),
}


def write_cifar100_python(root: Path) -> Path:
    root.mkdir(parents=True)
    for split, (data, labels) in CIFAR.items():
        (root / split).write_bytes(cifar_pickle(data, labels))
    names = python2_list([python2_text(name.encode()) for name in CIFAR_NAMES])
    (root / "meta").write_bytes(python2_pickle({"fine_label_names": names, "coarse_label_names": python2_list([])}))
    return root


def write_cifar100_binary(root: Path) -> Path:
    root.mkdir(parents=True)
    for split, (data, labels) in CIFAR.items():
        heads = np.asarray([(19, label) for label in labels], np.uint8)  # coarse, fine
        (root / f"{split}.bin").write_bytes(np.concatenate([heads, data], axis=1).tobytes())
    (root / "fine_label_names.txt").write_text("".join(f"{name}\n" for name in CIFAR_NAMES))
    (root / "coarse_label_names.txt").write_text("fruit\n")
    return root


def cifar_pickle(data: np.ndarray, labels: Sequence[int]) -> bytes:
    """What Python 2 wrote: protocol 2, texts as byte strings, the array through numpy.core.multiarray._reconstruct."""
    numbers = python2_list([b"K" + bytes([label]) for label in labels])
    names = python2_list([python2_text(b"some.png") for _ in labels])
    return python2_pickle(
        {
            "filenames": names,
            "batch_label": python2_text(b"training"),
            "fine_labels": numbers,
            "data": python2_array(data),
        }
    )


def python2_pickle(entries: dict[str, bytes]) -> bytes:
    items = b"".join(python2_text(key.encode()) + value for key, value in entries.items())
    return b"\x80\x02}(" + items + b"u."


def python2_text(text: bytes) -> bytes:
    return b"T" + len(text).to_bytes(4, "little") + text


def python2_list(values: list[bytes]) -> bytes:
    return b"](" + b"".join(values) + b"e"


def python2_array(array: np.ndarray, element: bytes = b"u1") -> bytes:
    shape = b"".join(b"M" + size.to_bytes(2, "little") for size in array.shape)
    dtype = (
        b"cnumpy\ndtype\n"
        + python2_text(element)
        + b"K\x00K\x01\x87R(K\x03"
        + python2_text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + python2_text(b"b") + b"\x87R"
    return start + b"(K\x01(" + shape + b"t" + dtype + b"\x89" + python2_text(array.tobytes()) + b"tb"


Write = Callable[[Path], Path]
WRITERS: dict[str, Write] = {
    "Aircraft": write_aircraft,
    "CUB": write_cub,
    "Chest-Xray": write_chest_xray,
    "DTD": write_dtd,
    "Dogs": write_dogs,
    "Flower": write_flowers,
    "CIFAR-100": write_cifar100_python,
}
