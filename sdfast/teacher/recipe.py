"""What a bank is made from: a teacher, the rows of a pack, and how their contents become features."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.errors import UserError
from sdfast.models.base import Encoder, Layer, Tokens
from sdfast.models.weights import described, weights_digest
from sdfast.teacher.bank import Bank
from sdfast.teacher.fingerprint import digest_keys, rows_digest, view_digests
from sdfast.teacher.live import LiveTeacher


class Described(Protocol):
    """Something that decides features."""

    def to_json(self) -> dict[str, Any]:
        """All that does, as a JSON value."""


class Views(Described, Protocol):
    """What makes views of rows; so many of each."""

    @property
    def views(self) -> int:
        """K."""


@dataclass(frozen=True, kw_only=True)
class BankRecipe(ABC):
    """A bank before it is built.

    Attributes:
        plural: what the rows are called, in a sentence.
        encoder: the teacher.
        shape: of its architecture.
        transform: how the contents were made.
        digests: [m, 32] uint8, the content digest of every row of the split.
        rows: [n] int64, the rows that the bank shall hold; of equal contents one is kept.
        tokens: which tokens are kept.
        dtype: that they are stored in.
        device: where the teacher runs.
        layer: after which block they are taken.
        augment: K views of each row, in the place of the row; None for the row as it is.
    """

    plural: ClassVar[str]
    encoder: Encoder
    shape: Any
    transform: Described
    digests: NDArray[np.uint8]
    rows: NDArray[np.int64]
    tokens: Tokens
    dtype: str
    device: torch.device
    layer: Layer = "last"
    augment: Views | None = None

    @property
    @abstractmethod
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one row of features."""

    @abstractmethod
    def read(self, rows: NDArray[np.int64]) -> Any:
        """The contents of some rows of the split, in memory."""

    @abstractmethod
    def each(self, contents: Any) -> Any:
        """The rows of contents, a sequence."""

    @abstractmethod
    def digest(self, row: Any) -> bytes:
        """The content digest of one of them."""

    @abstractmethod
    def seen(self, contents: Any, entries: NDArray[np.int64]) -> Any:
        """What the teacher sees on its device for the arguments of `features`."""

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the features, as a JSON value; of the architecture the decoder does not matter."""
        architecture = {name: value for name, value in described(self.shape).items() if name != "decoder"}
        return {
            "teacher": {"weights": weights_digest(self.encoder.state_dict()), "config": architecture},
            "rows": rows_digest(self.entry_digests),
            "transform": self.transform.to_json(),
            "augment": {"kind": "none"} if self.augment is None else self.augment.to_json(),
            "features": {
                "tokens": self.tokens,
                "layer": self.layer,
                "norm": self.layer == "last",
                "shape": list(self.feature_shape),
            },
            "dtype": self.dtype,
        }

    def check(self, contents: Any, rows: NDArray[np.int64]) -> None:
        """Compare contents with the rows' digests; any thread may.

        Raises:
            UserError: a row that differs.
        """
        parts = self.each(contents)
        for place in np.sort(np.unique(rows, return_index=True)[1]):  # the views of a row have one content
            if self.digest(parts[place]) != self.digests[rows[place]].tobytes():
                raise UserError(
                    f"row {rows[place]} of the pack differs from its digest; delete the pack to build it anew."
                )

    @cached_property
    def _teacher(self) -> LiveTeacher:
        dtype = torch.float64 if self.dtype == "float64" else torch.float32
        return LiveTeacher(self.encoder, self.tokens, self.layer).to(self.device, dtype)

    def features(self, contents: Any, entries: NDArray[np.int64]) -> Tensor:
        """The teacher's features, on its device, in evaluation mode and full float32.

        Args:
            contents: of b rows, as `read` gives them.
            entries: [b] int64, which rows of the bank they become.
        """
        with full_precision(self.device):
            return self._teacher(self.seen(contents, entries)).contiguous()

    @property
    def views(self) -> int:
        """Rows of the bank for each row of the split: K, or 1."""
        return 1 if self.augment is None else self.augment.views

    @cached_property
    def distinct_rows(self) -> NDArray[np.int64]:
        """[n'] int64: the first row of each content, in the order in which they are built."""
        _, first = np.unique(digest_keys(self.digests[self.rows]), return_index=True)
        return self.build_order(self.rows[np.sort(first)])

    def build_order(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of distinct contents in the order in which they are built."""
        return rows

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
