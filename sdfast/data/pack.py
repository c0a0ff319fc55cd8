"""The pack of a source of images: decoded once into uint8 rows on the disk.

Its contents are `<split>-images.npy`, [n, H, W, C] uint8; what else a pack holds, `sdfast.data.pack_files` says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sdfast.data.config import DataConfig
from sdfast.data.decode import COLOUR16, GREY16, TRANSPARENT
from sdfast.data.levels import Range
from sdfast.data.modality import IMAGES
from sdfast.data.pack_files import ENDINGS, Manifest, OpenPack, SplitFiles
from sdfast.data.transform import Transform
from sdfast.durable import load_array

if TYPE_CHECKING:
    from sdfast.data.pack_build import PackBuilder


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

    format, modality, how, contents = 1, IMAGES, "transform", "images"
    endings: ClassVar[Mapping[str, str]] = {"images": "images.npy", **ENDINGS}
    split_kind = PackSplit

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

    @classmethod
    def _builder(cls) -> type[PackBuilder]:
        from sdfast.data.image_pack_build import ImagePackBuilder

        return ImagePackBuilder


open_pack, prepare_pack = Pack.open, Pack.prepare
