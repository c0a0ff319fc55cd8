"""Oxford Flowers 102: `jpg/image_NNNNN.jpg`, `imagelabels.mat` (a class for each) and `setid.mat` (the splits).

Train is the published train and val together (2,040); test is the published test (6,149).
"""

from __future__ import annotations

from pathlib import Path

from sdfast.data.items import Source
from sdfast.data.labels import compare_classes
from sdfast.data.layouts.lists import image_items
from sdfast.data.layouts.mat import as_numbers, read_mat
from sdfast.errors import UserError

KIND = "Oxford Flowers 102"

_LABELS, _SPLITS = "imagelabels.mat", "setid.mat"
_SETS = {"train": ("trnid", "valid"), "test": ("tstid",)}


def is_flowers(path: Path) -> bool:
    """Whether the folder has the lists."""
    return (path / _LABELS).is_file() and (path / _SPLITS).is_file()


def open_flowers(path: Path) -> Source:
    """Open the folder; the classes have no published names and are called "1" to "102".

    Raises:
        UserError: no images, a list that is damaged, a split with an image that has no label, a label below 1, or a
            listed image that is not there.
    """
    if not (path / "jpg").is_dir():
        raise UserError(f"{path} has {_SPLITS} and no jpg/; unpack 102flowers.tgz there.")
    labels = as_numbers(path / _LABELS, "labels", read_mat(path / _LABELS, "labels")[0])
    if min(labels, default=1) < 1:
        raise UserError(f"{path / _LABELS} has the label {min(labels)}, and its classes begin at 1; download it again.")
    names = [str(number) for number in sorted(set(labels))]
    number = {int(name): index for index, name in enumerate(names)}
    source = Source(path.name, KIND, names, {})
    for split, sets in _SETS.items():
        found = zip(sets, read_mat(path / _SPLITS, *sets), strict=True)
        images = [image for name, values in found for image in as_numbers(path / _SPLITS, name, values)]
        if other := [image for image in images if not 1 <= image <= len(labels)]:
            raise UserError(
                f"{path / _SPLITS} names image {other[0]}, and {_LABELS} has labels for images 1 to {len(labels):,}; "
                "download both again."
            )
        rows = [(f"jpg/image_{image:05d}.jpg", number[labels[image - 1]]) for image in images]
        source.splits[split] = image_items(path, rows, path / _SPLITS)
    compare_classes(source, strict=True)
    return source
