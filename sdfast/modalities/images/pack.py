"""The pack of a source of images: decoded once, in threads, into uint8 rows on the disk.

Its contents are `<split>-images.npy`, [n, H, W, C] uint8. Where larger pictures are cut into tiles, these are the tiles
of all pictures one after the other, and `<split>-tiles.npy` ([n] int64) says how many each has.
What else a pack holds, `sdfast.data.pack_files` says.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sdfast.data.config import KEEP, DataConfig
from sdfast.data.items import Item, Source, item_record, read_item
from sdfast.data.modality import IMAGES
from sdfast.data.pack_build import Converted, PackBuilder
from sdfast.data.pack_checks import Rows, are_many, counted, first_names
from sdfast.data.pack_files import ENDINGS, Manifest, OpenPack, SplitFiles
from sdfast.data.parallel import ordered_map
from sdfast.data.rows import row_digest
from sdfast.durable import check_room, load_array
from sdfast.modalities.images import decode as decoding
from sdfast.modalities.images.decode import BrokenImage, ceiling, decode
from sdfast.modalities.images.levels import NoRange, Range
from sdfast.modalities.images.transform import Transform

_NOT_IN_PACK = {"source", "image_size", "channels", "limit", "limit_seed", "text_key", "max_length", "token_budget"}
_NOT_IN_PACK |= {"resize", "tile"}  # they are in the transform
_NOT_IN_PACK |= {"chunk", "chunk_stride", "chunk_votes", "pack_short", "labelled_limit", "unlabelled_key"}
# What these decide is in the digest of the source.
_NOT_IN_PACK |= {"split_key", "unseen", "encoding", "na_labels", "problem_type", "label_separator", "unlabelled"}
_LATER = {  # options, and the images that need them
    "background": {decoding.TRANSPARENT},
    "range": {decoding.GREY16, decoding.COLOUR16},
}
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
_OTHER_FROM = 1.5  # by how much the aspect of a picture differs from a row's, from which on it is counted
_OTHER_ASPECT = {
    "squash": "Images whose aspect changes by a factor of more than {from:g}, as they are squashed to {row}: {counted} "
    "of {all:,}, most {name}, of {size}, by {factor:.3g}; data.resize=pad or crop keeps it, and data.resize=squash "
    "says that it is meant",
    "crop": "Images of which data.resize=crop leaves out more than a third: {counted} of {all:,}, most of {name}, of "
    "{size}, of which {kept:.0%} is seen",
}
_ROTATION = {
    "ignore": "is not applied (data.exif_rotation=apply does)",
    "apply": "is applied (data.exif_rotation=ignore leaves them as stored)",
}


class ImageSplit(SplitFiles):
    """The pictures of one split.

    Attributes:
        images: np.memmap, [n, H, W, C] uint8, read-only; where pictures are cut into tiles, [P, H, W, C].
        tiles: [n] int64, tiles of each picture; they add up to P. None where none is cut.
        view: the tiles as rows, kept here (see `sdfast.modalities.images.tiles.rows_of_pictures`).
        labels: [n] int64, -1 where a row has no label; None when no row has one.
        digests: [n, 32] uint8, SHA-256 of the shape and bytes of the picture's row, or of its tiles together.
    """

    def __init__(self, directory: Path, files: dict[str, dict[str, Any]]) -> None:
        super().__init__(directory, files)
        self.images: NDArray[np.uint8] = load_array(directory / files["images"]["file"], mmap_mode="r")
        self.tiles: NDArray[np.int64] | None = (
            load_array(directory / files["tiles"]["file"]) if "tiles" in files else None
        )
        self.view: Any = None


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
    """The range from 0 to the least 2^k - 1 that holds every image of the source of more than 8 bits a channel."""
    top, largest, name = 0, -1, ""
    work = functools.partial(_ceiling_of_item, options=options)
    for items in source.splits.values():
        for at_least, sample, item in ordered_map(work, items, threads):
            top = max(top, at_least)
            if at_least and sample > largest:
                largest, name = sample, item
    return CommonRange((0.0, float(top)), largest, name)


@dataclass
class ImagePackBuilder(PackBuilder):
    """Writes the files of one pack of images into an empty directory (see `PackBuilder`); `how` is a `Transform`.

    Attributes:
        found: the range of the source, where `data.range` is `auto` and it has been looked for.
        sizes: width and height of the images whose aspect is far from a row's, by name.
        blank: tiles of one colour of the images that are cut into tiles, by name, where there are any.
    """

    found: CommonRange | None = None
    sizes: dict[str, tuple[int, int]] = field(init=False, default_factory=dict)
    blank: dict[str, int] = field(init=False, default_factory=dict)

    libraries = ("pillow", "numpy", "datasets")

    @property
    def levels(self) -> Range | None:
        """What becomes 0 and 255 of the images of more than 8 bits a channel, where that is known."""
        return self.options.range if self.options.range != "auto" else self.found.levels if self.found else None

    @property
    def element(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type of a row."""
        return self.how.row_shape, np.dtype(np.uint8)

    def build(self) -> list[str]:
        """Convert everything, then write the manifest (see `PackBuilder`); but first see whether the disk has room.

        Raises:
            RunError: it has not.
        """
        images = sum(map(len, self.source.splits.values()))
        size = images * math.prod(self.how.row_shape)
        check_room(self.directory, size, f"the pack of {images:,} images", "set a smaller data.image_size")
        with decoding.decoding(self.options):
            try:
                return super().build()
            except NoRange:  # rare, so that only such a source is read twice
                found = common_range(self.source, self.options, self.threads)
                return replace(self, found=found).build()

    def made(self) -> dict[str, Any]:
        """What the manifest says of how the rows were made; the range where an image needs one."""
        deep = {decoding.GREY16, decoding.COLOUR16}.intersection(self.tally.notes)
        return {**super().made(), **({"range": list(self.levels)} if deep and self.levels else {})}

    def convert(self, items: list[Item]) -> list[Converted]:
        """Decode the image of a block, which has one."""
        (item,) = items
        raw = read_item(item)
        known = (item.name, -1 if item.label is None else item.label, item_record(item, raw))
        try:
            levels = self.found.levels if self.found else None
            sizes: list[tuple[int, int]] = []
            row, notes = decode(raw, self.how, self.options, item.banner, levels, sizes)
        except BrokenImage as error:
            return [Converted(*known, reason=str(error))]
        if self.how.aspect_factor(sizes[0]) > _OTHER_FROM:
            self.sizes[item.name] = sizes[0]
            notes |= {decoding.OTHER_ASPECT}
        if self.how.tile is None:
            return [Converted(*known, row[None], row_digest(row), notes=notes)]
        if len(row) > 1:
            notes |= {decoding.TILED}
            if blank := sum(bool((tile == tile[0, 0]).all()) for tile in row):
                self.blank[item.name] = blank
        return [Converted(*known, row, row_digest(row), notes=notes)]

    def arrays(self, split: str, rows: Rows) -> dict[str, NDArray[Any]]:
        """The number of tiles of each picture, where they are cut."""
        return {} if self.how.tile is None or rows.lengths is None else {"tiles": rows.lengths}

    def details(self, rows: Rows) -> dict[str, Any]:
        """The tiles in all, where pictures are cut."""
        return {} if self.how.tile is None or rows.lengths is None else {"tiles": int(rows.lengths.sum())}

    def notes(self) -> list[str]:
        """One sentence for each kind of image that was met and that a person may not expect."""
        met, colour = self.tally.notes, self.options.background
        words = {
            "rotation": _ROTATION[self.options.exif_rotation],
            "background": f"which are put on {colour} (data.background)"
            if colour != KEEP
            else "of which the colours are kept without the transparency (data.background=white puts them on white)",
            "range": self._range_in_words(),
        }
        said = [
            f"{what.format(**words)}: {counted(sorted(met[note]))}." for note, what in _NOTES.items() if note in met
        ]
        return [*said, *self._aspects(met.get(decoding.OTHER_ASPECT, [])), *self._tiles(met.get(decoding.TILED, []))]

    def _aspects(self, names: list[str]) -> list[str]:
        """A sentence where many pictures are squashed that nobody asked for, or where any are cropped by much."""
        total = sum(len(rows.names) for rows in self.splits.values())
        sentence = _OTHER_ASPECT.get(self.how.resize)
        if sentence is None or not names or (self.how.resize == "squash" and self.options.resize is not None):
            return []
        if self.how.resize == "squash" and not are_many(len(names), total):
            return []
        factors = {name: self.how.aspect_factor(self.sizes[name]) for name in names}
        worst = max(sorted(names), key=factors.__getitem__)
        words = {
            **{"from": _OTHER_FROM, "row": f"{self.how.width} x {self.how.height}", "counted": f"{len(names):,}"},
            **{"all": total, "name": worst, "size": " x ".join(map(str, self.sizes[worst])), "factor": factors[worst]},
        }
        return [sentence.format(**words, kept=1 / factors[worst]) + "."]

    def _tiles(self, names: list[str]) -> list[str]:
        """How many pictures are cut into how many tiles, and how many tiles have one colour."""
        if self.how.tile is None:
            return []
        tiles = sum(int(rows.lengths.sum()) for rows in self.splits.values() if rows.lengths is not None)
        total, (height, width) = sum(len(rows.names) for rows in self.splits.values()), self.how.tile
        said = [
            f"Images larger than data.tile={height} x {width}, which are cut into tiles: {len(names):,} of {total:,}; "
            f"there are {tiles:,} tiles in all."
        ]
        if blank := sum(self.blank.get(name, 0) for name in names):
            some = sorted(name for name in names if name in self.blank)
            said.append(
                f"Tiles of one colour, from which nothing can be learnt: {blank:,} of {tiles:,}, in {len(some):,} "
                f"images ({first_names(some)})."
            )
        return said

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


class ImagePack(OpenPack[ImageSplit]):
    """An open pack of images (see `OpenPack`).

    Attributes:
        transform: how the rows were made.
        levels: what became 0 and 255 of the images of more than 8 bits a channel; None when there were none.
    """

    format, modality, how, contents = 1, IMAGES, "transform", "images"
    endings: ClassVar[Mapping[str, str]] = {"images": "images.npy", "tiles": "tiles.npy", **ENDINGS}
    split_kind, builder = ImageSplit, ImagePackBuilder

    def _take(self, manifest: Manifest) -> None:
        self.transform = Transform.from_json(manifest["transform"])
        low, high = manifest.get("range") or (None, None)
        self.levels: Range | None = None if low is None or high is None else (float(low), float(high))

    @classmethod
    def made(cls, how: Transform, options: DataConfig, met: Collection[str]) -> dict[str, Any]:
        """How a pack was made: the transform, and the options that decide what is in it.

        Those that came later are left out at their defaults where no image needs them, so that older packs stay valid.
        """
        defaults = DataConfig()
        idle = {
            key
            for key, kinds in _LATER.items()
            if getattr(options, key) == getattr(defaults, key) and not kinds.intersection(met)
        }
        decide = options.model_dump(mode="json", exclude=_NOT_IN_PACK | idle)
        return {"format": cls.format, "transform": how.to_json(), "options": decide}
