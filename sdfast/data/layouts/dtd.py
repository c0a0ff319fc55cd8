"""DTD (Describable Textures) r1.0.1: `images/<class>/*.jpg` and ten published splits, `labels/{train,val,test}N.txt`.

The paper trained on 4,230 images, three quarters of all 5,640, which none of the published splits has. So the folder is
opened without a split, and a quarter is held out when it is packed. Its `labels/` is opened with the first published
split.
"""

from __future__ import annotations

from pathlib import Path

from sdfast.data.items import SPLITS, Source
from sdfast.data.labels import compare_classes
from sdfast.data.layouts.lists import image_items, read_listed
from sdfast.errors import UserError

KIND = "DTD"


def is_dtd(path: Path) -> bool:
    """Whether the folder is the unpacked archive, or its `labels/`."""
    return _has_lists(path / "labels") or (_has_lists(path) and (path.parent / "images").is_dir())


def open_dtd(path: Path) -> Source:
    """Open the folder.

    Raises:
        UserError: a list that is missing, a line without a class, or a listed image that is not there.
    """
    whole = _has_lists(path / "labels")
    labels = path / "labels" if whole else path
    listed = {split: _read(labels / f"{split}1.txt") for split in SPLITS}
    images = sorted(name for part in listed.values() for name in part)
    names = sorted({_class_of(name) for name in images})
    source = Source(path.name, KIND, names, {})
    for split, part in {"train": images}.items() if whole else listed.items():
        rows = [(f"images/{name}", names.index(_class_of(name))) for name in part]
        source.splits[split] = image_items(labels.parent, rows, labels if whole else labels / f"{split}1.txt")
    compare_classes(source, strict=True)
    return source


def _class_of(name: str) -> str:
    return name.split("/")[0]


def _has_lists(folder: Path) -> bool:
    return (folder / "train1.txt").is_file() and (folder / "test1.txt").is_file()


def _read(file: Path) -> list[str]:
    names = []
    for line, name in read_listed(file):
        if name.count("/") != 1:
            raise UserError(f"{file} line {line} is not a class, '/' and an image; unpack the archive again.")
        names.append(name)
    return names
