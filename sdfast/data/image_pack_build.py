"""Decode images into the files of a pack, in threads."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.data import decode as decoding
from sdfast.data.config import DataConfig
from sdfast.data.decode import BrokenImage, decode
from sdfast.data.items import Item, ItemList, Source, item_record, read_item
from sdfast.data.pack import FORMAT, IMAGES_ENDING, build_options
from sdfast.data.pack_build import PackBuilder
from sdfast.data.pack_checks import Rows, first_names
from sdfast.data.parallel import ordered_map
from sdfast.data.rows import RowWriter, copy_rows, row_digest
from sdfast.data.transform import Transform

_NOTES = {
    decoding.ANIMATED: "Images with several frames, of which the first is used",
    decoding.ROTATED: "Images with an EXIF rotation",
    decoding.TRANSPARENT: "Images with transparent pixels, whose colours are kept without the transparency",
    decoding.BANNER: "Images with a banner at their bottom, which is cut off",
}
_ROTATION = {
    "ignore": ", which is not applied (data.exif_rotation=apply does)",
    "apply": ", which is applied (data.exif_rotation=ignore leaves them as stored)",
}


@dataclass(frozen=True)
class _Decoded:
    """One item after a worker thread: its row, or the reason why there is none."""

    item: Item
    record: bytes
    row: NDArray[np.uint8] | None
    digest: bytes
    notes: frozenset[str]
    reason: str


class ImagePackBuilder(PackBuilder[Rows]):
    """Writes the files of one pack of images into an empty directory (see `PackBuilder`).

    Args:
        transform: from image to row.
    """

    contents_ending = IMAGES_ENDING
    libraries = ("pillow", "numpy", "datasets")

    def __init__(
        self,
        source: Source,
        directory: Path,
        transform: Transform,
        options: DataConfig,
        progress: Callable[[int, int], None],
        threads: int,
    ) -> None:
        super().__init__(source, directory, options, progress, threads)
        self.transform = transform

    def made(self) -> dict[str, Any]:
        """See `PackBuilder.made`."""
        return {"format": FORMAT, "transform": self.transform.to_json(), "options": build_options(self.options)}

    def transform_json(self) -> dict[str, Any]:
        """See `PackBuilder.transform_json`."""
        return self.transform.to_json()

    def write_split(self, split: str, items: ItemList) -> Rows:
        """See `PackBuilder.write_split`."""
        unwanted = self.unwanted(split)
        names: list[str] = []
        labels: list[int] = []
        digests: list[bytes] = []
        work = functools.partial(_decode_item, transform=self.transform, options=self.options)
        with (
            RowWriter(self.path(split, IMAGES_ENDING), self.transform.row_shape) as writer,
            contextlib.closing(ordered_map(work, items, self.threads)) as decoded,
        ):
            for one in decoded:
                self.content.add(split, one.record)
                self.tally.done += 1
                self.progress(self.tally.done, self.tally.total)
                if one.row is None:
                    self.tally.skipped.append({"split": split, "name": one.item.name, "reason": one.reason})
                    continue
                if one.digest in unwanted:
                    self.tally.dropped.append({"name": one.item.name, "also_in": unwanted[one.digest]})
                    continue
                for note in one.notes:
                    self.tally.notes.setdefault(note, []).append(one.item.name)
                writer.append(one.row)
                names.append(one.item.name)
                labels.append(-1 if one.item.label is None else one.item.label)
                digests.append(one.digest)
        return Rows(names, np.asarray(labels, np.int64), np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32))

    def take(self, rows: NDArray[np.int64], whole: Rows, contents: Path, split: str) -> Rows:
        """See `PackBuilder.take`."""
        copy_rows(contents, rows, self.path(split, IMAGES_ENDING))
        return whole.take(rows)

    def write_rest(self, split: str) -> dict[str, str]:
        """See `PackBuilder.write_rest`."""
        return {"images": IMAGES_ENDING}

    def notes(self) -> list[str]:
        """See `PackBuilder.notes`."""
        rotation, met = _ROTATION[self.options.exif_rotation], self.tally.notes
        return [
            f"{what}{rotation if note == decoding.ROTATED else ''}: "
            f"{len(met[note]):,} ({first_names(sorted(met[note]))})."
            for note, what in _NOTES.items()
            if note in met
        ]


def _decode_item(item: Item, transform: Transform, options: DataConfig) -> _Decoded:
    raw = read_item(item)
    record = item_record(item, raw)
    try:
        row, notes = decode(raw, transform, options, item.banner)
    except BrokenImage as error:
        return _Decoded(item, record, None, b"", frozenset(), str(error))
    return _Decoded(item, record, row, row_digest(row), notes, "")
