"""The pack of a source of images: decoded once into uint8 rows on the disk.

Its contents are `<split>-images.npy`, [n, H, W, C] uint8; what else a pack holds, `sdfast.data.pack_files` says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sdfast.data.config import DataConfig
from sdfast.data.decode import COLOUR16, GREY16, TRANSPARENT, decoding
from sdfast.data.levels import NoRange, Range
from sdfast.data.pack_files import ENDINGS, Manifest, OpenPack, SplitFiles, conversions_of
from sdfast.data.parallel import available_threads
from sdfast.data.transform import Transform
from sdfast.durable import load_array

_NOT_IN_PACK = {"source", "image_size", "channels", "limit", "limit_seed", "text_key", "max_length", "token_budget"}
_NOT_IN_PACK |= {"split_key", "unseen", "encoding"}  # what they decide is in the digest of the source
_LATER = {"background": {TRANSPARENT}, "range": {GREY16, COLOUR16}}  # options, and the images that need them


class PackSplit(SplitFiles):
    """The rows of one split.

    Attributes:
        images: np.memmap, [n, H, W, C] uint8, read-only.
        labels: [n] int64, -1 where a row has no label; None when no row has one.
        digests: [n, 32] uint8, SHA-256 of the row's shape and bytes.
    """

    def __init__(self, directory: Path, files: dict[str, dict[str, Any]]) -> None:
        super().__init__(directory, files)
        self.images: NDArray[np.uint8] = load_array(directory / files["images"]["file"], mmap_mode="r")


class Pack(OpenPack[PackSplit]):
    """An open pack of images (see `OpenPack`).

    Attributes:
        transform: how the rows were made.
        levels: what became 0 and 255 of the images of more than 8 bits a channel; None when there were none.
    """

    format, how, contents = 1, "transform", "images"
    endings: ClassVar[Mapping[str, str]] = {"images": "images.npy", **ENDINGS}
    split_kind = PackSplit

    def _take(self, manifest: Manifest) -> None:
        self.transform = Transform.from_json(manifest["transform"])
        low, high = manifest.get("range") or (None, None)
        self.levels: Range | None = None if low is None or high is None else (float(low), float(high))


open_pack = Pack.open


def prepare_pack(
    source_spec: str,
    directory: Path,
    transform: Transform,
    options: DataConfig,
    notify: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> Pack:
    """The pack of a source of images, as it is or built anew (see `OpenPack.prepare`).

    Args:
        source_spec: what `open_source` takes.
        directory: of the pack.
        transform: from image to row.
        options: the `data` section; `source`, `image_size`, `channels`, `limit`, `limit_seed` and those of texts do
            not matter here.
        notify: called with each sentence that a person should read, while a pack is built.
        progress: called with (images done, images in all).
        threads: that read and decode; by default, those that the process may use, at most 16.

    Raises:
        UserError: see `open_source`; too many broken files, no usable image in a split, images that train shares with
            test, or a `directory` that holds something else.
        RunError: the pack cannot be written.
    """
    from sdfast.data.image_pack_build import ImagePackBuilder, common_range
    from sdfast.data.sources import open_source

    directory, threads = Path(directory), threads or available_threads()
    source = open_source(source_spec, options)

    def build(staging: Path) -> list[str]:
        parts = (source, staging, transform, options, progress, threads)
        with decoding(options):
            try:
                return ImagePackBuilder(*parts).build()
            except NoRange:  # rare, so that only such a source is read twice
                return ImagePackBuilder(*parts, common_range(source, options, threads)).build()

    made = made_of(transform, options, conversions_of(directory))
    return Pack.prepare(directory, made, source, threads, build, notify)


def made_of(transform: Transform, options: DataConfig, met: Collection[str]) -> dict[str, Any]:
    """The entries of the manifest that say how a pack was made; of the options, those that decide what is in it.

    Those that came later are left out at their defaults where no image needs them, so that older packs stay valid.

    Args:
        transform: from image to row.
        options: the `data` section.
        met: the kinds of images in the pack, by the notes of `sdfast.data.decode`.
    """
    defaults = DataConfig()
    idle = {
        key
        for key, kinds in _LATER.items()
        if getattr(options, key) == getattr(defaults, key) and not kinds.intersection(met)
    }
    decide = options.model_dump(mode="json", exclude=_NOT_IN_PACK | idle)
    return {"format": Pack.format, "transform": transform.to_json(), "options": decide}
