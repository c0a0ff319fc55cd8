"""FGVC-Aircraft 2013b: `data/images/*.jpg` and `data/images_variant_{train,val,trainval,test}.txt`.

Train is the published train and val together. The lowest 20 rows of pixels of each image are a banner with its
copyright, and the benchmark asks to remove it before training and evaluating. (The paper's released loader does not;
the images that it loads are not public.)
"""

from __future__ import annotations

from pathlib import Path

from sdfast.data.items import Source
from sdfast.data.labels import compare_classes
from sdfast.data.layouts.lists import image_items, read_listed, read_pairs
from sdfast.errors import UserError

KIND = "FGVC-Aircraft"

_BANNER = 20  # pixels
_VARIANTS = "variants.txt"


def is_aircraft(path: Path) -> bool:
    """Whether the folder is the unpacked archive, or its `data/`."""
    return (_data(path) / "images_variant_test.txt").is_file()


def open_aircraft(path: Path) -> Source:
    """Open the folder; the classes are the 100 variants.

    Raises:
        UserError: a list that is missing, a variant without a line in `variants.txt`, a listed image that is not there.
    """
    data = _data(path)
    names = [text for _, text in read_listed(data / _VARIANTS)]
    whole = data / "images_variant_trainval.txt"
    lists = {
        "train": [whole] if whole.is_file() else [data / f"images_variant_{part}.txt" for part in ("train", "val")],
        "test": [data / "images_variant_test.txt"],
    }
    source = Source(path.name, KIND, names, {})
    for split, files in lists.items():
        rows = [row for file in files for row in _read_rows(file, names)]
        source.splits[split] = image_items(data, rows, files[0], _BANNER)
    compare_classes(source, strict=True)
    return source


def _data(path: Path) -> Path:
    return path / "data" if (path / "data").is_dir() else path


def _read_rows(file: Path, names: list[str]) -> list[tuple[str, int]]:
    number = {name: index for index, name in enumerate(names)}
    rows = []
    for line, image, variant in read_pairs(file):
        if variant not in number:
            raise UserError(f"{file} line {line}: {variant!r} is not in {_VARIANTS}; unpack the archive again.")
        rows.append((f"images/{image}.jpg", number[variant]))
    return rows
