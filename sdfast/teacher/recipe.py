"""What a bank is made from: a teacher, the rows of a pack, and how pixels become features."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sdfast.data.transform import Transform
from sdfast.models.vit import ViTEncoder, ViTShape
from sdfast.teacher.features import Layer, Tokens
from sdfast.teacher.fingerprint import digest_keys, identity_of
from sdfast.teacher.live import LiveTeacher


@dataclass(frozen=True)
class Recipe:
    """A bank before it is built.

    Attributes:
        encoder: the teacher.
        shape: of its architecture.
        images: [m, H, W, C] uint8, all rows of the split (a memory map will do).
        digests: [m, 32] uint8, the content digest of each.
        rows: [n] int64, the rows that the bank shall hold; of equal contents one is kept.
        transform: how the images were made, and their normalisation.
        normalise: the same from uint8 [B, H, W, C] to the model's input, as training does it.
        tokens: which tokens are kept.
        dtype: that they are stored in.
        device: where the teacher runs.
        layer: after which block they are taken.
    """

    encoder: ViTEncoder
    shape: ViTShape
    images: NDArray[np.uint8]
    digests: NDArray[np.uint8]
    rows: NDArray[np.int64]
    transform: Transform
    normalise: nn.Module
    tokens: Tokens
    dtype: str
    device: torch.device
    layer: Layer = "last"

    @cached_property
    def identity(self) -> dict[str, Any]:
        """See `identity_of`."""
        wanted = self.digests[self.rows]
        return identity_of(
            self.encoder, self.shape, wanted, self.transform, self.tokens, self.layer, self.feature_shape, self.dtype
        )

    @cached_property
    def distinct_rows(self) -> NDArray[np.int64]:
        """[n'] int64: the first row of each content, in order."""
        _, first = np.unique(digest_keys(self.digests[self.rows]), return_index=True)
        return self.rows[np.sort(first)]

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one row of features."""
        width, patches = self.shape.encoder.width, self.shape.patches
        return {"cls": (width,), "patch": (patches, width), "all": (1 + patches, width)}[self.tokens]

    @cached_property
    def _teacher(self) -> tuple[LiveTeacher, nn.Module]:
        dtype = torch.float64 if self.dtype == "float64" else torch.float32
        teacher = LiveTeacher(self.encoder, self.tokens, self.layer).to(self.device, dtype)
        return teacher, copy.deepcopy(self.normalise).to(self.device, dtype)

    def features(self, images: NDArray[np.uint8]) -> Tensor:
        """[b, H, W, C] uint8 -> the teacher's features, on its device, in evaluation mode and full float32."""
        teacher, normalise = self._teacher
        with full_precision(self.device):
            return teacher(normalise(torch.from_numpy(images).to(self.device, non_blocking=True))).contiguous()


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast and no TF32 inside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
