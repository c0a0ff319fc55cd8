"""Image data sets of Lee et al. (2023) as their archives unpack, known by their files and with the paper's splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdfast.data.cifar100 import is_cifar100, open_cifar100
from sdfast.data.config import DataConfig
from sdfast.data.folder import open_folder
from sdfast.data.items import SPLITS, Item, Source, file_reader, known_items
from sdfast.data.labels import compare_classes
from sdfast.data.lines import read_lines
from sdfast.data.modality import IMAGES
from sdfast.errors import UserError

_Rows = Sequence[tuple[str, int]]  # name ('/' between folders) and class number of each image, in order


@dataclass(frozen=True)
class Layout:
    """One published data set.

    Attributes:
        kind: of its source; `PaperSet.layout` names it.
        is_here: whether a folder has the files that mark it.
        open: opens such a folder. Raises `UserError`: a list that is missing, damaged or contradicts another, a class
            without a name, or a listed image that is not there.
    """

    kind: str
    is_here: Callable[[Path], bool]
    open: Callable[[Path], Source]


def layout_of(path: Path) -> Layout | None:
    """The layout of a folder, or None."""
    return next((layout for layout in LAYOUTS if layout.is_here(path)), None)


def check_not_above(path: Path, classes: Iterable[str]) -> None:
    """Check that no sub-folder that is to be a class is a published data set.

    Raises:
        UserError: one is.
    """
    for name in classes:
        if (layout := layout_of(path / name)) is not None:
            raise UserError(f"{path} holds {name}/, which is the data set {layout.kind}: pass --data {path / name}.")


_BANNER = 20  # pixels


def _aircraft_data(path: Path) -> Path:
    return path / "data" if (path / "data").is_dir() else path


def _open_aircraft(path: Path) -> Source:
    """FGVC-Aircraft 2013b: `data/images/*.jpg` and `data/images_variant_{train,val,trainval,test}.txt`.

    The classes are the 100 variants. Train is the published train and val together. The lowest 20 rows of pixels of
    each image are a banner with its copyright, and the benchmark asks to remove it before training and evaluating.
    (The paper's released loader does not; the images that it loads are not public.)
    """
    data = _aircraft_data(path)
    names = [text for _, text in _read_list(data / "variants.txt")]
    number = {name: index for index, name in enumerate(names)}
    whole = data / "images_variant_trainval.txt"
    trained = [whole] if whole.is_file() else [data / f"images_variant_{part}.txt" for part in ("train", "val")]

    def rows(file: Path) -> Iterator[tuple[str, int]]:
        for line, image, variant in _read_pairs(file):
            if variant not in number:
                raise UserError(f"{file} line {line}: {variant!r} is not in variants.txt; unpack the archive again.")
            yield f"images/{image}.jpg", number[variant]

    lists = {"train": trained, "test": [data / "images_variant_test.txt"]}
    found = ((split, [row for file in files for row in rows(file)], files[0]) for split, files in lists.items())
    return _source(path, "FGVC-Aircraft", names, data, found, _BANNER)


_CUB = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
_CUB_SPLITS = {"1": "train", "0": "test"}


def _open_cub(path: Path) -> Source:
    """CUB-200-2011: `images/`, and lists of names, labels and splits by the number of an image."""

    def read(file: Path) -> dict[str, str]:
        """What the file says of each number, in its order."""
        found: dict[str, str] = {}
        for line, key, value in _read_pairs(file):
            if key in found:
                raise UserError(f"{file} line {line} has the number {key} a second time; unpack the archive again.")
            found[key] = value
        return found

    listed, labelled, divided = (path / name for name in _CUB)
    names = read(path / "classes.txt")
    number = {key: index for index, key in enumerate(names)}
    images = read(listed)
    labels, parts = read(labelled), read(divided)
    for file, values in ((labelled, labels), (divided, parts)):
        if other := sorted(values.keys() ^ images.keys()):
            raise UserError(
                f"{file} has {len(values):,} images and {listed.name} {len(images):,}; image {other[0]} is in one of "
                "them alone: unpack the archive again."
            )
    rows: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for key, name in images.items():
        if labels[key] not in number:
            raise UserError(
                f"{labelled} gives image {key} the class {labels[key]}, which is not in classes.txt; "
                "unpack the archive again."
            )
        if parts[key] not in _CUB_SPLITS:
            raise UserError(f"{divided} gives image {key} {parts[key]!r}, neither 1 (train) nor 0 (test).")
        rows[_CUB_SPLITS[parts[key]]].append((f"images/{name}", number[labels[key]]))
    found = ((split, part, listed if part else divided) for split, part in rows.items())
    return _source(path, "CUB-200-2011", list(names.values()), path, found)


def _is_chest_xray(path: Path) -> bool:
    return all((path / split / name).is_dir() for split in ("train", "test") for name in ("NORMAL", "PNEUMONIA"))


def _open_chest_xray(path: Path) -> Source:
    """Chest X-ray images (Kermany et al., 2018): `{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg`, an image folder.

    The 16 images of val are, like any val beside a test split, used by `finetune.best_dev` alone; the paper does not
    use them. The copies of itself that Kaggle's archive holds (`chest_xray/`, `__MACOSX/`) are not used.
    """
    source = open_folder(path, DataConfig(), IMAGES)
    source.kind = "Chest X-ray"
    return source


def _dtd_lists(path: Path) -> Path | None:
    """The folder of the lists: `labels/` of the data set, or what was opened where that is its `labels/`."""
    folders = [path / "labels", *([path] if (path.parent / "images").is_dir() else [])]
    return next((folder for folder in folders if _has("train1.txt", "test1.txt")(folder)), None)


def _open_dtd(path: Path) -> Source:
    """DTD (Describable Textures) r1.0.1: `images/<class>/*.jpg` and ten splits, `labels/{train,val,test}N.txt`.

    The paper trained on 4,230 images, three quarters of all 5,640, which none of the ten has. So the
    folder is opened without a split, and a quarter is held out when it is packed. Its `labels/` is opened with the
    first published split.
    """

    def read(file: Path) -> Iterator[str]:
        for line, name in _read_list(file):
            if name.count("/") != 1:
                raise UserError(f"{file} line {line} is not a class, '/' and an image; unpack the archive again.")
            yield name

    labels = _dtd_lists(path) or path
    whole = labels != path
    files = {split: labels / f"{split}1.txt" for split in SPLITS}
    listed = {split: list(read(file)) for split, file in files.items()}
    images = sorted(name for part in listed.values() for name in part)
    names = sorted({name.split("/")[0] for name in images})
    rows = {name: (f"images/{name}", names.index(name.split("/")[0])) for name in images}
    found = (
        (split, [rows[name] for name in part], labels if whole else files[split])
        for split, part in ({"train": images} if whole else listed).items()
    )
    return _source(path, "DTD", names, labels.parent, found)


def _dogs_lists(path: Path) -> Path | None:
    return next((folder for folder in (path, path / "lists") if (folder / "train_list.mat").is_file()), None)


def _open_dogs(path: Path) -> Source:
    """Stanford Dogs: `Images/<class>/*.jpg` (images.tar), with `{train,test}_list.mat` (lists.tar).

    The lists lie beside the images' folder or in a `lists/`. The classes are the folders of the images, in the order of
    their published numbers.
    """

    def read(file: Path) -> list[tuple[str, int]]:
        """Name below the images' folder and published class number of each image."""
        names, numbers = _read_mat(file, "file_list", "labels")
        if len(names) != len(numbers):
            raise UserError(
                f"{file} has {len(numbers):,} labels for its {len(names):,} images; unpack lists.tar again."
            )
        return list(zip(names, numbers, strict=True))

    folder = _dogs_lists(path) or path
    images = next((path / name for name in ("Images", "images") if (path / name).is_dir()), None)
    if images is None:
        raise UserError(f"{path} has train_list.mat and no Images/; unpack images.tar there.")
    files = {split: folder / f"{split}_list.mat" for split in ("train", "test")}
    listed = {split: read(file) for split, file in files.items()}
    name_of: dict[int, str] = {}
    for split, rows in listed.items():
        for name, number in rows:
            breed = name.rpartition("/")[0]
            if name_of.setdefault(number, breed) != breed:
                raise UserError(
                    f"{files[split]}: {name} has label {number}, which is {name_of[number]}; unpack lists.tar again."
                )
    numbers = sorted(name_of)
    if len(set(name_of.values())) != len(numbers):
        raise UserError(f"{files['train']}: a folder has two labels; unpack lists.tar again.")
    found = (
        (split, [(f"{images.name}/{name}", numbers.index(number)) for name, number in rows], files[split])
        for split, rows in listed.items()
    )
    return _source(path, "Stanford Dogs", [name_of[number] for number in numbers], path, found)


_FLOWER_SETS = {"train": ("trnid", "valid"), "test": ("tstid",)}


def _open_flowers(path: Path) -> Source:
    """Oxford Flowers 102: `jpg/image_NNNNN.jpg`, `imagelabels.mat` (classes), `setid.mat` (splits).

    Train is the published train and val together (2,040); test is the published test (6,149). The classes have no
    published names and are called "1" to "102".
    """
    labelled, divided = path / "imagelabels.mat", path / "setid.mat"
    if not (path / "jpg").is_dir():
        raise UserError(f"{path} has {divided.name} and no jpg/; unpack 102flowers.tgz there.")
    (labels,) = _read_mat(labelled, "labels")
    if min(labels, default=1) < 1:
        raise UserError(f"{labelled} has the label {min(labels)}, and its classes begin at 1; download it again.")
    classes = sorted(set(labels))
    number = {label: index for index, label in enumerate(classes)}

    def rows(sets: Sequence[str]) -> list[tuple[str, int]]:
        images = [image for values in _read_mat(divided, *sets) for image in values]
        if other := [image for image in images if not 1 <= image <= len(labels)]:
            raise UserError(
                f"{divided} names image {other[0]}, and {labelled.name} has labels for images 1 to {len(labels):,}; "
                "download both again."
            )
        return [(f"jpg/image_{image:05d}.jpg", number[labels[image - 1]]) for image in images]

    found = ((split, rows(sets), divided) for split, sets in _FLOWER_SETS.items())
    return _source(path, "Oxford Flowers 102", list(map(str, classes)), path, found)


def _source(
    path: Path, kind: str, names: list[str], root: Path, lists: Iterable[tuple[str, _Rows, Path]], banner: int = 0
) -> Source:
    """The source, of a kind, of the images that lists name, with names of its classes.

    Args:
        root: what the images' names are relative to.
        lists: the split, its rows, and the file that names them, for the sentence.
        banner: see `Item`.

    Raises:
        UserError: a split lists no image, or one that is not there, or has a class that train lacks.
    """
    source = Source(path.name, kind, names, {})
    for split, rows, listed_by in lists:
        if not rows:
            raise UserError(f"{listed_by} names no images; unpack the archive again.")
        folders = {name.rpartition("/")[0] for name, _ in rows}  # each is listed once
        there = {
            f"{folder}/{file}" for folder in folders if (root / folder).is_dir() for file in os.listdir(root / folder)
        }
        if missing := [name for name, _ in rows if name not in there]:
            raise UserError(
                f"{listed_by} names images that are not in {root}: {len(missing):,} of {len(rows):,} (the first: "
                f"{missing[0]}); unpack the whole archive again."
            )
        source.splits[split] = known_items(Item(name, label, file_reader(root / name), banner) for name, label in rows)
    compare_classes(source, strict=True)
    return source


def _read_list(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text without blanks around it) of each line that is not blank.

    Raises:
        UserError: no such file, or one that is not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; unpack the whole archive again.")
    yield from ((line, text.strip()) for line, text in read_lines(path) if text.strip())


def _read_pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line, first word, what follows it) of each line that is not blank.

    Raises:
        UserError: no such file, one that is not UTF-8, or a line of a single word.
    """
    for line, text in _read_list(path):
        first, _, rest = text.partition(" ")
        if not rest.strip():
            raise UserError(f"{path} line {line} is one word, not two; unpack the archive again.")
        yield line, first, rest.strip()


def _read_mat(path: Path, *names: str) -> list[list[Any]]:
    """The variables of these names in a MATLAB file (version 5 to 7): texts of `file_list`, whole numbers of others.

    Raises:
        UserError: no such file, not a MATLAB file, or one without such a variable or where it holds something else.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise UserError(f"{path} is missing; unpack or download it again.")
    try:
        found = loadmat(path, variable_names=names, squeeze_me=True)
    except Exception as error:  # scipy raises its own, ValueError, TypeError, zlib.error, ... for a damaged file
        why = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as a MATLAB file ({why}); download it again.") from error
    if absent := [name for name in names if name not in found]:
        raise UserError(f"{path} has no variable {absent[0]!r}; it is not the published file: download it again.")
    variables: list[list[Any]] = []
    for name in names:
        values, texts = np.ravel(found[name]), name == "file_list"
        whole = values.dtype.kind in "iuf" and not np.any(values != np.floor(values))
        if not (all(isinstance(value, str) for value in values) if texts else whole):
            raise UserError(
                f"{name} of {path} are not {'texts' if texts else 'whole numbers'}; download the file again."
            )
        variables.append([str(value) if texts else int(value) for value in values])
    return variables


def _has(*names: str) -> Callable[[Path], bool]:
    """Whether a folder has the files of these names."""
    return lambda path: all((path / name).is_file() for name in names)


LAYOUTS = (
    Layout("FGVC-Aircraft", lambda path: _has("images_variant_test.txt")(_aircraft_data(path)), _open_aircraft),
    Layout("CUB-200-2011", _has(*_CUB), _open_cub),
    Layout("Chest X-ray", _is_chest_xray, _open_chest_xray),
    Layout("DTD", lambda path: _dtd_lists(path) is not None, _open_dtd),
    Layout("Stanford Dogs", lambda path: _dogs_lists(path) is not None, _open_dogs),
    Layout("Oxford Flowers 102", _has("imagelabels.mat", "setid.mat"), _open_flowers),
    Layout("CIFAR-100", is_cifar100, open_cifar100),
)
