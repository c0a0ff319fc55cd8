"""Stanford Dogs: `Images/<class>/*.jpg` (images.tar), with `train_list.mat` and `test_list.mat` (lists.tar) beside."""

from __future__ import annotations

from pathlib import Path

from sdfast.data.items import Source
from sdfast.data.labels import compare_classes
from sdfast.data.layouts.lists import image_items
from sdfast.data.layouts.mat import as_numbers, as_texts, read_mat
from sdfast.errors import UserError

KIND = "Stanford Dogs"


def is_dogs(path: Path) -> bool:
    """Whether the folder, or a `lists/` in it, has the lists."""
    return _lists(path) is not None


def open_dogs(path: Path) -> Source:
    """Open the folder; the classes are the folders of the images, in the order of their published numbers.

    Raises:
        UserError: no images, a list that is missing or damaged or has fewer or more labels than images, a label that is
            not the number of its folder, or a listed image that is not there.
    """
    folder = _lists(path) or path
    images = next((path / name for name in ("Images", "images") if (path / name).is_dir()), None)
    if images is None:
        raise UserError(f"{path} has train_list.mat and no Images/; unpack images.tar there.")
    listed = {split: _read(folder / f"{split}_list.mat") for split in ("train", "test")}
    name_of: dict[int, str] = {}
    for split, rows in listed.items():
        for name, number in rows:
            breed = name.rpartition("/")[0]
            if name_of.setdefault(number, breed) != breed:
                raise UserError(
                    f"{folder / f'{split}_list.mat'}: {name} has label {number}, which is {name_of[number]}; "
                    "unpack lists.tar again."
                )
    numbers = sorted(name_of)
    if len(set(name_of.values())) != len(numbers):
        raise UserError(f"{folder / 'train_list.mat'}: a folder has two labels; unpack lists.tar again.")
    source = Source(path.name, KIND, [name_of[number] for number in numbers], {})
    for split, rows in listed.items():
        labelled = [(f"{images.name}/{name}", numbers.index(number)) for name, number in rows]
        source.splits[split] = image_items(path, labelled, folder / f"{split}_list.mat")
    compare_classes(source, strict=True)
    return source


def _lists(path: Path) -> Path | None:
    return next((folder for folder in (path, path / "lists") if (folder / "train_list.mat").is_file()), None)


def _read(file: Path) -> list[tuple[str, int]]:
    """Name below the images' folder and published class number of each image."""
    files, labels = read_mat(file, "file_list", "labels")
    names, numbers = as_texts(file, "file_list", files), as_numbers(file, "labels", labels)
    if len(names) != len(numbers):
        raise UserError(f"{file} has {len(numbers):,} labels for its {len(names):,} images; unpack lists.tar again.")
    return list(zip(names, numbers, strict=True))
