"""The pack of a source of images: decoded once, in threads, into rows on the disk.

Its contents are `<split>-images.npy`, [n, H, W, C] uint8, uint16 or float16. Where larger pictures are cut into tiles,
these are the tiles of all pictures one after the other, and `<split>-tiles.npy` ([n] int64) says how many each has.
What else a pack holds, `sdfast.data.pack_files` says.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sdfast.data.config import DIVIDING, KEEP, DataConfig, dividing
from sdfast.data.items import Item, Source, item_record, read_item
from sdfast.data.modality import IMAGES
from sdfast.data.pack_build import Converted, PackBuilder
from sdfast.data.pack_checks import Rows, are_many, as_digests, counted, first_names
from sdfast.data.pack_files import ENDINGS, Manifest, OpenPack, SplitFiles
from sdfast.data.parallel import ordered_map
from sdfast.data.rows import row_digest
from sdfast.durable import check_room, load_array
from sdfast.modalities.images import decode as decoding
from sdfast.modalities.images.bands import WHITE
from sdfast.modalities.images.decode import BrokenImage, ceiling, decode, samples
from sdfast.modalities.images.levels import EIGHT, NoRange, Range, of_pairs, range_from_json
from sdfast.modalities.images.near import Hashes, hashes, nearest
from sdfast.modalities.images.readers import BANDS_FIRST, BANDS_LAST, INVERTED
from sdfast.modalities.images.transform import Transform

_NOT_IN_PACK = {"source", "image_size", "channels", "limit", "limit_seed", "text_key", "max_length", "token_budget"}
_NOT_IN_PACK |= {"resize", "tile"}  # they are in the transform
_NOT_IN_PACK |= {"pixels", "normalise"}  # the transform has the one, and the other is for what reads a pack
_NOT_IN_PACK |= {"chunk", "chunk_stride", "chunk_votes", "pack_short", "labelled_limit", "unlabelled_key"}
_NOT_IN_PACK |= {"add_tokens", "vocabulary_multiple"}
# What these decide is in the digest of the source.
_NOT_IN_PACK |= {"split_key", "unseen", "encoding", "na_labels", "problem_type", "label_separator", "unlabelled"}
_LATER = {  # options, and the images that need them
    "background": {decoding.TRANSPARENT},
    "range": {decoding.GREY16, decoding.COLOUR16, decoding.BANDS16},
    "nan": {decoding.FILLED},
}
DEEP = "uint16"  # type of a pack of images of more than 8 bits
_PERCENTILES, _MOST_DRAWN, _FEWEST_DRAWN = (1.0, 99.0), 1 << 26, 16  # samples that are kept of a source, of an image
_FEW_BANDS, _ROWS = 8, 64  # in a sentence; of a pack, at a time
_STILL = 1e-12  # deviation of a channel that never changes, up to rounding
_LOOK = "look at some; data.background and data.range decide what is seen of transparent and of 16-bit images"
_NOTES = {
    decoding.ANIMATED: "Images with several frames or pages, of which the first is used",
    decoding.ROTATED: "Images with an EXIF rotation, which {rotation}",
    decoding.TRANSPARENT: "Images with transparent pixels, {background}",
    decoding.GREY16: "Grey images of more than 8 bits, whose samples {range}",
    decoding.COLOUR16: "Colour images of more than 8 bits a channel, whose samples {range}",
    decoding.BANDS16: "Images of other bands than one or three, of more than 8 bits, whose samples {range}",
    decoding.FILLED: "Images with pixels that are not a number, which become {nan} (data.nan)",
    BANDS_FIRST: "Arrays [bands, height, width]",
    BANDS_LAST: "Arrays [height, width, bands]",
    INVERTED: "DICOM images of MONOCHROME1, which are inverted",
    decoding.REPEATED: "Images of one band, which is repeated for each of the {channels} channels",
    decoding.CUT16: "Images of 16 bits a channel in CMYK or stored channel by channel, of which the upper 8 are used",
    decoding.CLIPPED: "Images with samples outside data.range, which are cut off",
    decoding.EXTRA_BANDS: "Images with more bands than red, green, blue and alpha, or one grey, which are not used "
    "(data.channels=N takes N bands)",
    decoding.MORE_BANDS: "Images of {bands} bands, of which the first {kept} used (data.channels={bands} takes all)",
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
        images: np.memmap, [n, H, W, C] uint8, uint16 or float16 (`Transform.pixels`), read-only; where pictures are cut
            into tiles, [P, H, W, C].
        tiles: [n] int64, tiles of each picture; they add up to P. None where none is cut.
        view: the tiles as rows, kept here (see `sdfast.modalities.images.tiles.rows_of_pictures`).
        labels: [n] int64, -1 where a row has no label; None when no row has one.
        digests: [n, 32] uint8, SHA-256 of the shape and bytes of the picture's row, or of its tiles together.
    """

    def __init__(self, directory: Path, files: dict[str, dict[str, Any]]) -> None:
        super().__init__(directory, files)
        self.images: NDArray[Any] = load_array(directory / files["images"]["file"], mmap_mode="r")
        self.tiles: NDArray[np.int64] | None = (
            load_array(directory / files["tiles"]["file"]) if "tiles" in files else None
        )
        self.view: Any = None


@dataclass(frozen=True)
class CommonRange:
    """The range of a source that was looked for.

    Attributes:
        levels: what becomes black and white.
        found: how it was found, for a sentence.
    """

    levels: Range
    found: str


def common_range(source: Source, options: DataConfig, transform: Transform, threads: int) -> CommonRange:
    """The range of the images of a source of more than 8 bits a channel, as `data.range` says."""
    look = percentile_range if options.range == "percentile" else least_range
    return look(source, options, transform, threads)


def percentile_range(source: Source, options: DataConfig, transform: Transform, threads: int) -> CommonRange:
    """For each band the range from the 1st to the 99th percentile of its samples in all images of all splits.

    Of a source of many images the percentiles are those of an equal number of pixels of each, drawn by a fixed seed.
    """
    images = sum(map(len, source.splits.values()))
    work = functools.partial(_samples_of_item, options=options, transform=transform, images=images)
    every = (one for items in source.splits.values() for one in ordered_map(work, items, threads))
    drawn = [one for one in every if one is not None]
    bands = max((len(one) for one in drawn), default=0)  # an image of fewer has no range then, and is broken
    drawn = [one for one in drawn if len(one) == bands]
    pairs = []
    for band in range(bands):
        values = np.concatenate([one[band] for one in drawn])
        low, high = np.percentile(values[np.isfinite(values)], _PERCENTILES).tolist() if len(values) else (0.0, 1.0)
        pairs.append((low, high if high > low else low + 1))
    return CommonRange(tuple(pairs) or (0.0, 1.0), "the 1st and 99th percentile of all samples")


def least_range(source: Source, options: DataConfig, transform: Transform, threads: int) -> CommonRange:
    """The range from 0 to the least 2^k - 1 that holds every image of the source of more than 8 bits a channel."""
    top, largest, name = 0, -1, ""
    work = functools.partial(_ceiling_of_item, options=options, transform=transform)
    for items in source.splits.values():
        for at_least, sample, item in ordered_map(work, items, threads):
            top = max(top, at_least)
            if at_least and sample > largest:
                largest, name = sample, item
    return CommonRange((0.0, float(top)), f"the largest of the source is {largest:,}, in {name}")


@dataclass
class ImagePackBuilder(PackBuilder):
    """Writes the files of one pack of images into an empty directory (see `PackBuilder`); `how` is a `Transform`.

    Attributes:
        found: the range of the source, where `data.range` is none and it has been looked for.
        chosen: whether an image of more than 8 bits was met, and the type of the pack is chosen for the sake of such.
        sizes: width and height of the images whose aspect is far from a row's, by name.
        blank: tiles of one colour of the images that are cut into tiles, by name, where there are any.
    """

    found: CommonRange | None = None
    chosen: bool = False
    sizes: dict[str, tuple[int, int]] = field(init=False, default_factory=dict)
    blank: dict[str, int] = field(init=False, default_factory=dict)

    libraries = ("pillow", "numpy", "datasets")
    near = "nearly the same picture, but for size, compression, brightness or contrast"

    @property
    def levels(self) -> Range | None:
        """What becomes black and white of the images of more than 8 bits a channel, where that is known."""
        if not isinstance(self.options.range, str):
            return self.options.range
        return self.found.levels if self.found else None

    @property
    def element(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type of a row."""
        return self.how.row_shape, np.dtype(self.how.pixels)

    def build(self) -> list[str]:
        """Convert everything, then write the manifest (see `PackBuilder`); but first see whether the disk has room.

        Raises:
            RunError: it has not.
        """
        images = sum(map(len, self.source.splits.values()))
        shape, dtype = self.element
        size = images * math.prod(shape) * dtype.itemsize
        check_room(self.directory, size, f"the pack of {images:,} images", "set a smaller data.image_size")
        with self.converting("train"):
            try:
                return super().build()
            except NoRange:  # rare, so that only such a source is read twice
                return self.looked().build()

    @contextlib.contextmanager
    def converting(self, split: str) -> Iterator[None]:
        """Pillow is told how large an image may be."""
        with decoding.decoding(self.options):
            yield

    def looked(self) -> ImagePackBuilder:
        """Knows the range of the source, and the type of the pixels."""
        with self.converting("train"):
            found = self.found
            if isinstance(self.options.range, str) and found is None:
                found = common_range(self.source, self.options, self.how, self.threads)
        deep = may_choose(self.how, self.options) and (found is None or found.levels != EIGHT)
        how = replace(self.how, pixels=DEEP) if deep else self.how
        return replace(self, found=found, how=how, chosen=True)

    @property
    def identity(self) -> list[Any]:
        """With the range that was looked for."""
        return [*super().identity, self.found and list(self.found.levels)]

    def said(self, notes: Mapping[str, Sequence[str]]) -> list[str]:
        """Sentences; nothing of aspects and tiles, as of all images sizes are not kept."""
        told = (decoding.OTHER_ASPECT, decoding.TILED)
        return super().said({note: names for note, names in notes.items() if note not in told})

    def held(self, converted: Sequence[Converted]) -> ImageSplit:
        """Images in memory; their tiles where some are cut."""
        split = ImageSplit.in_memory(as_digests([one.digest for one in converted]))
        contents = [one.contents for one in converted if one.contents is not None]
        split.images, split.view = np.concatenate(contents), None
        self.sizes.clear()
        self.blank.clear()
        split.tiles = None if self.how.tile is None else np.asarray([len(each) for each in contents], np.int64)
        return split

    def made(self) -> dict[str, Any]:
        """What the manifest says of how the rows were made; the range where an image needs one."""
        deep = _LATER["range"].intersection(self.tally.notes)
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
        if not self.chosen and may_choose(self.how, self.options) and _LATER["range"].intersection(notes):
            raise NoRange  # it has one, and the type of the pack is chosen where that is looked for
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

    def sketches(self, split: str) -> Hashes:
        """The perceptual hashes of the images of a split."""
        found = hashes(load_array(self._path(split, self.pack.contents), mmap_mode="r"), self.threads)
        lengths = self.splits[split].lengths
        if self.how.tile is None or lengths is None:
            return found
        return replace(found, items=np.repeat(np.arange(len(lengths)), lengths))

    def nearest(self, one: Hashes, other: Hashes) -> list[tuple[int, int]]:
        """The images that nearly equal another (see `sdfast.modalities.images.near`), also in a tile alone."""
        return nearest(one, other)

    def notes(self) -> list[str]:
        """One sentence for each kind of image that was met and that a person may not expect."""
        met, colour = self.tally.notes, self.options.background
        words = {
            "rotation": _ROTATION[self.options.exif_rotation],
            "background": f"which are put on {colour} (data.background)"
            if colour != KEEP
            else "of which the colours are kept without the transparency (data.background=white puts them on white)",
            "range": self._range_in_words(),
            "nan": f"{self.options.nan:g}" if self.options.nan is not None else "",
            "channels": str(self.how.channels),
            "kept": f"{self.how.channels} are" if self.how.channels > 1 else "one is",
        }
        said = [
            f"{_NOTES[kind].format(**words, bands=note.removeprefix(kind))}: {counted(sorted(met[note]))}."
            for kind in _NOTES
            for note in sorted(met)
            if note == kind or (kind == decoding.MORE_BANDS and note.startswith(kind))
        ]
        if self.options.range != DataConfig().range and not _LATER["range"].intersection(met):
            said.append("data.range is for images of more than 8 bits, and there are none: 8 bits stay as they are.")
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
        pairs, white = of_pairs(self.levels), WHITE[self.how.pixels]
        if pairs is None:
            words = f"from {self.levels[0]:,g} to {self.levels[1]:,g}"
        else:
            each = [f"from {low:,g} to {high:,g} of band {band}" for band, (low, high) in enumerate(pairs, 1)]
            more = f", and those of {len(each) - _FEW_BANDS} more" if len(each) > _FEW_BANDS else ""
            words = ", ".join(each[:_FEW_BANDS]) + more
        found = f"={self.options.range}: {self.found.found}" if self.found else ""
        loses = self.how.pixels == "uint8" and self.levels != EIGHT
        keeps = "; data.pixels=uint16 keeps what 8 bits lose" if loses else ""
        return f"{words} become 0 to {white:,} (data.range{found}{keeps})"


def may_choose(how: Transform, options: DataConfig) -> bool:
    """Whether the type of a pack's pixels is for the source to say: none is asked for."""
    return options.pixels is None and how.pixels == "uint8"


def _ceiling_of_item(item: Item, options: DataConfig, transform: Transform) -> tuple[int, int, str]:
    return *ceiling(read_item(item), options, transform), item.name


def _samples_of_item(
    item: Item, options: DataConfig, transform: Transform, images: int
) -> NDArray[np.float32] | NDArray[np.float64] | None:
    """[bands, pixels] of an image of a source of so many: all of them, or some."""
    found = samples(read_item(item), options, transform)
    if found is None:
        return None
    bands = np.atleast_3d(found)
    bands = bands.reshape(-1, bands.shape[2]).T
    most = max(_MOST_DRAWN // (images * len(bands)), _FEWEST_DRAWN)
    if bands.shape[1] > most:
        bands = bands[:, np.random.default_rng(0).integers(0, bands.shape[1], most)]
    return bands.astype(np.float32 if bands.dtype.itemsize <= 2 or bands.dtype.kind == "f" else np.float64)


class ImagePack(OpenPack[ImageSplit]):
    """An open pack of images (see `OpenPack`).

    Attributes:
        transform: how the rows were made.
        levels: what became black and white of the images of more than 8 bits a channel; None when there were none.
    """

    format, modality, how, contents = 1, IMAGES, "transform", "images"
    endings: ClassVar[Mapping[str, str]] = {"images": "images.npy", "tiles": "tiles.npy", **ENDINGS}
    split_kind, builder = ImageSplit, ImagePackBuilder

    @classmethod
    def as_stored(cls, how: Transform, options: DataConfig, manifest: Manifest) -> Transform:
        """With the type of pixels of the pack that is there, where none is asked for."""
        there = manifest.get("transform")
        deep = isinstance(there, dict) and there.get("pixels") == DEEP
        return replace(how, pixels=DEEP) if deep and may_choose(how, options) else how

    def _take(self, manifest: Manifest) -> None:
        self.transform = Transform.from_json(manifest["transform"])
        self.levels: Range | None = range_from_json(manifest["range"]) if manifest.get("range") else None

    @functools.cached_property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over all pixels of the train split, from 0 to 1, in float64.

        A channel that never changes has a deviation of 1.
        """
        images = self.split("train").images
        white, count = WHITE[self.transform.pixels], math.prod(images.shape[:3])
        total, squares = np.zeros(images.shape[3]), np.zeros(images.shape[3])
        for first in range(0, len(images), _ROWS):
            pixels = images[first : first + _ROWS].astype(np.float64) / white
            total += pixels.sum(axis=(0, 1, 2))
        mean = total / count
        for first in range(0, len(images), _ROWS):  # again, as the difference of two large numbers says little
            pixels = images[first : first + _ROWS].astype(np.float64) / white - mean
            squares += np.square(pixels).sum(axis=(0, 1, 2))
        std = np.sqrt(squares / count)
        return tuple(mean.tolist()), tuple(np.where(std > _STILL, std, 1.0).tolist())

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
        decide = options.model_dump(mode="json", exclude=_NOT_IN_PACK | DIVIDING | idle) | dividing(options)
        return {"format": cls.format, "transform": how.to_json(), "options": decide}
