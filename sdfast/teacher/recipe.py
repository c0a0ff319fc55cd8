"""What a bank is made from: a teacher, the rows of a pack, and how their contents become features."""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sdfast.data.augment import Augmentation, content_keys
from sdfast.data.rows import row_digest
from sdfast.data.transform import Transform
from sdfast.errors import UserError
from sdfast.models.vit import ViTEncoder, ViTShape
from sdfast.teacher.bank import Bank
from sdfast.teacher.features import Layer, Tokens
from sdfast.teacher.fingerprint import digest_keys, identity_of, view_digests
from sdfast.teacher.live import LiveTeacher


@dataclass(frozen=True, kw_only=True)
class BankRecipe(ABC):
    """A bank before it is built.

    Attributes:
        many: what the rows are called.
        digests: [m, 32] uint8, the content digest of every row of the split.
        rows: [n] int64, the rows that the bank shall hold; of equal contents one is kept.
        tokens: which tokens are kept.
        dtype: that they are stored in.
        device: where the teacher runs.
        layer: after which block they are taken.
    """

    many: ClassVar[str]
    digests: NDArray[np.uint8]
    rows: NDArray[np.int64]
    tokens: Tokens
    dtype: str
    device: torch.device
    layer: Layer = "last"

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything that decides the features, as a JSON value; see `identity_of`."""

    @property
    @abstractmethod
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one row of features."""

    @abstractmethod
    def read(self, rows: NDArray[np.int64]) -> Any:
        """The contents of some rows of the split, in memory."""

    @abstractmethod
    def check(self, contents: Any, rows: NDArray[np.int64]) -> None:
        """Compare contents with the rows' digests; any thread may.

        Raises:
            UserError: a row that differs.
        """

    @abstractmethod
    def features(self, contents: Any, entries: NDArray[np.int64]) -> Tensor:
        """The teacher's features, on its device, in evaluation mode and full float32.

        Args:
            contents: of b rows, as `read` gives them.
            entries: [b] int64, which rows of the bank they become.
        """

    @property
    def views(self) -> int:
        """Rows of the bank for each row of the split."""
        return 1

    @cached_property
    def distinct_rows(self) -> NDArray[np.int64]:
        """[n'] int64: the first row of each content, in order."""
        _, first = np.unique(digest_keys(self.digests[self.rows]), return_index=True)
        return self.rows[np.sort(first)]

    @cached_property
    def entry_digests(self) -> NDArray[np.uint8]:
        """[n' * K, 32] uint8: what names each row of the bank, in the order in which they are built."""
        return view_digests(self.digests[self.distinct_rows], self.views)

    def rows_of_entries(self, entries: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the bank as they are built -> rows of the split."""
        return self.distinct_rows[entries // self.views]

    def bank_rows(self, bank: Bank) -> Tensor:
        """[K, m] int64: for each view and row of the split its row of a bank, -1 where it has none."""
        rows = bank.rows_of(view_digests(self.digests, self.views))
        return torch.from_numpy(np.ascontiguousarray(rows.reshape(-1, self.views).T))


def refuse_changed_row(row: int) -> UserError:
    """What `check` raises."""
    return UserError(f"row {row} of the pack differs from its digest; delete the pack to build it anew.")


@dataclass(frozen=True, kw_only=True)
class Recipe(BankRecipe):
    """A bank of the features of images.

    Attributes:
        encoder: the teacher.
        shape: of its architecture.
        images: [m, H, W, C] uint8, all rows of the split (a memory map will do).
        transform: how the images were made, and their normalisation.
        normalise: the same from uint8 [B, H, W, C] to the model's input, as training does it.
        augment: K views of each image, in the place of the image; None for the image as it is.
    """

    many = "images"
    encoder: ViTEncoder
    shape: ViTShape
    images: NDArray[np.uint8]
    transform: Transform
    normalise: nn.Module
    augment: Augmentation | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """See `identity_of`."""
        return identity_of(
            self.encoder,
            self.shape,
            self.entry_digests,
            self.transform,
            self.tokens,
            self.layer,
            self.feature_shape,
            self.dtype,
            self.augment,
        )

    @property
    def views(self) -> int:
        """Rows of the bank for each image: K, or 1."""
        return 1 if self.augment is None else self.augment.views

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """See `BankRecipe.read`: [b, H, W, C] uint8."""
        return np.ascontiguousarray(self.images[rows])

    def check(self, contents: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        """See `BankRecipe.check`."""
        for place in np.unique(rows, return_index=True)[1]:
            if row_digest(contents[place]) != self.digests[rows[place]].tobytes():
                raise refuse_changed_row(rows[place])

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

    def features(self, contents: NDArray[np.uint8], entries: NDArray[np.int64]) -> Tensor:
        """See `BankRecipe.features`; contents are [b, H, W, C] uint8."""
        with full_precision(self.device):
            return self._teacher[0](self.pixels(contents, entries)).contiguous()

    def pixels(self, images: NDArray[np.uint8], entries: NDArray[np.int64]) -> Tensor:
        """What the teacher sees for the arguments of `features`: [b, C, H, W]."""
        pixels = self._teacher[1](torch.from_numpy(images).to(self.device, non_blocking=True))
        if self.augment is None:
            return pixels
        keys = content_keys(self.digests[self.rows_of_entries(entries)])
        return self.augment.place(pixels, keys, torch.from_numpy(entries % self.views))


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
