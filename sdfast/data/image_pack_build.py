"""Decode images into the files of a pack, in threads."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.data import decode as decoding
from sdfast.data.config import KEEP, DataConfig
from sdfast.data.decode import BrokenImage, ceiling, decode
from sdfast.data.items import Item, ItemList, Source, item_record, read_item
from sdfast.data.levels import Range
from sdfast.data.pack import FORMAT, IMAGES_ENDING, build_options
from sdfast.data.pack_build import PackBuilder
from sdfast.data.pack_checks import Rows, first_names
from sdfast.data.parallel import ordered_map
from sdfast.data.rows import RowWriter, copy_rows, row_digest
from sdfast.data.transform import Transform
from sdfast.durable import check_room

_LOOK = "look at some; data.background and data.range decide what is seen of transparent and of 16-bit images"
_NOTES = {
    decoding.ANIMATED: "Images with several frames or pages, of which the first is used",
    decoding.ROTATED: "Images with an EXIF rotation, which {rotation}",
    decoding.TRANSPARENT: "Images with transparent pixels, {background}",
    decoding.GREY16: "Grey images of more than 8 bits, whose samples {range}",
    decoding.COLOUR16: "Colour images of more than 8 bits a channel, whose samples {range}",
    decoding.CUT16: "Images of 16 bits a channel in CMYK or stored channel by channel, of which the upper 8 are used",
    decoding.CLIPPED: "Images with samples outside data.range, which are cut off",
    decoding.EXTRA_BANDS: "Images with more bands than red, green, blue and alpha, or one grey, which are not used",
    decoding.CMYK: "CMYK images, converted to RGB without their colour profile",
    decoding.PROFILE: "Images with a colour profile that does not call itself sRGB, which is not applied",
    decoding.BANNER: "Images with a banner at their bottom, which is cut off",
    decoding.BLANK: f"Images of one colour, from which nothing can be learnt ({_LOOK})",
    decoding.FAINT: f"Images of nearly one colour, with a standard deviation below {decoding.FAINT_BELOW:g} of 255 in "
    f"every channel ({_LOOK})",
}
_ROTATION = {
    "ignore": "is not applied (data.exif_rotation=apply does)",
    "apply": "is applied (data.exif_rotation=ignore leaves them as stored)",
}


@dataclass(frozen=True)
class CommonRange:
    """The range of a source that `data.range=auto` found.

    Attributes:
        levels: what becomes 0 and 255.
        largest: the largest sample of all.
        name: of the first item that has it.
    """

    levels: Range
    largest: int
    name: str


def common_range(source: Source, options: DataConfig, threads: int) -> CommonRange:
    """From 0 to the least 2^k - 1 that holds every image of the source that has more than 8 bits a channel."""
    top, largest, name = 0, -1, ""
    work = functools.partial(_ceiling_of_item, options=options)
    for items in source.splits.values():
        for at_least, sample, item in ordered_map(work, items, threads):
            top = max(top, at_least)
            if at_least and sample > largest:
                largest, name = sample, item
    return CommonRange((0.0, float(top)), largest, name)


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
        found: the range of the source, where `data.range` is `auto` and it has been looked for.
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
        found: CommonRange | None = None,
    ) -> None:
        super().__init__(source, directory, options, progress, threads)
        self.transform = transform
        self.found = found
        self.levels: Range | None = options.range if options.range != "auto" else found.levels if found else None

    def build(self) -> list[str]:
        """See `PackBuilder.build`; but first whether the disk has room for it."""
        images = sum(map(len, self.source.splits.values()))
        size = images * math.prod(self.transform.row_shape)
        check_room(self.directory, size, f"the pack of {images:,} images", "set a smaller data.image_size")
        return super().build()

    def made(self) -> dict[str, Any]:
        """See `PackBuilder.made`."""
        options = build_options(self.options, self.tally.notes)
        deep = {decoding.GREY16, decoding.COLOUR16}.intersection(self.tally.notes)
        levels = {"range": list(self.levels)} if deep and self.levels else {}
        return {"format": FORMAT, "transform": self.transform.to_json(), "options": options, **levels}

    def transform_json(self) -> dict[str, Any]:
        """See `PackBuilder.transform_json`."""
        return self.transform.to_json()

    def write_split(self, split: str, items: ItemList) -> Rows:
        """See `PackBuilder.write_split`."""
        unwanted = self.unwanted(split)
        names: list[str] = []
        labels: list[int] = []
        digests: list[bytes] = []
        work = functools.partial(
            _decode_item,
            transform=self.transform,
            options=self.options,
            levels=self.found.levels if self.found else None,
        )
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
        met, colour = self.tally.notes, self.options.background
        words = {
            "rotation": _ROTATION[self.options.exif_rotation],
            "background": f"which are put on {colour} (data.background)"
            if colour != KEEP
            else "of which the colours are kept without the transparency (data.background=white puts them on white)",
            "range": self._range_in_words(),
        }
        return [
            f"{what.format(**words)}: {len(met[note]):,} ({first_names(sorted(met[note]))})."
            for note, what in _NOTES.items()
            if note in met
        ]

    def _range_in_words(self) -> str:
        if self.levels is None:  # no image needs it
            return ""
        low, high = self.levels
        words = f"from {low:,g} to {high:,g} become 0 to 255 (data.range"
        if self.found is None:
            return f"{words})"
        return f"{words}=auto: the largest of the source is {self.found.largest:,}, in {self.found.name})"


def _ceiling_of_item(item: Item, options: DataConfig) -> tuple[int, int, str]:
    return *ceiling(read_item(item), options), item.name


def _decode_item(item: Item, transform: Transform, options: DataConfig, levels: Range | None) -> _Decoded:
    raw = read_item(item)
    record = item_record(item, raw)
    try:
        row, notes = decode(raw, transform, options, item.banner, levels)
    except BrokenImage as error:
        return _Decoded(item, record, None, b"", frozenset(), str(error))
    return _Decoded(item, record, row, row_digest(row), notes, "")
