"""The teacher of images: which of its features are matched, and what a bank of them is made from."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sdfast.config import Config
from sdfast.data.rows import row_digest
from sdfast.modalities.images.augment import Augmentation, content_keys
from sdfast.modalities.images.checkpoint import PretrainedMAE
from sdfast.modalities.images.model import ViTEncoder, ViTShape
from sdfast.modalities.images.pack import ImagePack
from sdfast.modalities.images.reader import Normalise
from sdfast.modalities.images.tiles import rows_of_pictures
from sdfast.rng import derive_seed
from sdfast.teacher.recipe import BankRecipe


@dataclass(frozen=True, kw_only=True)
class ImageRecipe(BankRecipe):
    """A bank of the features of images.

    Attributes:
        images: [m, H, W, C] in the pack's type, all rows of the split (a memory map will do).
        normalise: from [B, H, W, C] to the model's input, as training does it.
    """

    plural = "images"
    encoder: ViTEncoder
    shape: ViTShape
    images: NDArray[Any]
    normalise: nn.Module
    augment: Augmentation | None = None

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one row of features."""
        width, patches = self.shape.encoder.width, self.shape.patches
        return {"cls": (width,), "patch": (patches, width), "all": (self.shape.prefix + patches, width)}[self.tokens]

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The images of some rows: [b, H, W, C]."""
        return np.ascontiguousarray(self.images[rows])

    def each(self, contents: NDArray[Any]) -> NDArray[Any]:
        """The images one by one."""
        return contents

    def digest(self, row: NDArray[Any]) -> bytes:
        """The content digest of an image."""
        return row_digest(row)

    @cached_property
    def _normalise(self) -> nn.Module:
        dtype = torch.float64 if self.dtype == "float64" else torch.float32
        return copy.deepcopy(self.normalise).to(self.device, dtype)

    def seen(self, contents: NDArray[Any], entries: NDArray[np.int64]) -> Tensor:
        """[b, C, H, W]: the images normalised, or their views."""
        pixels = self._normalise(torch.from_numpy(contents).to(self.device, non_blocking=True))
        if self.augment is None:
            return pixels
        keys = content_keys(self.digests[self.rows_of_entries(entries)])
        return self.augment.place(pixels, keys, torch.from_numpy(entries % self.views))


def recipe_of(teacher: PretrainedMAE, pack: ImagePack, config: Config, device: torch.device) -> ImageRecipe:
    """What a teacher's bank for a run is made from."""
    train, transform = rows_of_pictures(pack.split("train")), pack.transform
    if config.data.normalise == "dataset":
        mean, std = pack.statistics
        transform = replace(transform, mean=mean, std=std)
    return ImageRecipe(
        encoder=teacher.module.encoder,
        shape=teacher.shape,
        images=train.images,
        digests=train.digests,
        rows=train.limited(config.data.limit, config.data.limit_seed),
        transform=transform,
        normalise=Normalise(transform.mean, transform.std).to(device),
        tokens=config.distill.tokens,
        dtype=config.teacher.dtype,
        device=device,
        layer=config.distill.layer,
        augment=augmentation(config, train.digests) if config.teacher.views else None,
    )


def augmentation(config: Config, digests: NDArray[np.uint8], seed: int | None = None) -> Augmentation | None:
    """The training transform of a stage; None for images as they are.

    Args:
        config: of the run.
        digests: [m, 32] uint8, of the split's images.
        seed: of draws that are new in every epoch; without one, the views that a bank keeps (`teacher.views`).
    """
    kind, views = config.pretrain.augment, config.teacher.views
    if kind == "none":
        return None
    if seed is not None:
        return Augmentation(kind, seed)
    return Augmentation(kind, derive_seed(config.seed, "views"), views, content_keys(digests))
