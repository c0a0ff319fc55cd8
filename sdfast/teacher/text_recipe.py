"""What a bank of the features of texts is made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.data.text_batch import TokenBatch
from sdfast.data.text_pack import TextSplit, ids_digest
from sdfast.data.tokenization import Tokenization
from sdfast.models.text import TextEncoder, TextShape
from sdfast.models.weights import weights_digest
from sdfast.teacher.fingerprint import digest_keys, rows_digest
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.recipe import BankRecipe, full_precision, refuse_changed_row


@dataclass(frozen=True, kw_only=True)
class TextRecipe(BankRecipe):
    """A bank of the features of the first token of texts.

    The teacher sees them without padding, and its batches hold texts of similar lengths; what is kept of a text
    depends on neither but by rounding.

    Attributes:
        encoder: the teacher.
        shape: of its architecture.
        split: the texts.
        tokenization: how they became ids.
    """

    many = "texts"
    encoder: TextEncoder
    shape: TextShape
    split: TextSplit
    tokenization: Tokenization

    @cached_property
    def identity(self) -> dict[str, Any]:
        """See `BankRecipe.identity`."""
        return {
            "teacher": {"weights": weights_digest(self.encoder.state_dict()), "config": asdict(self.shape)},
            "rows": rows_digest(self.entry_digests),
            "transform": self.tokenization.to_json(),
            "augment": {"kind": "none"},
            "features": {
                "tokens": self.tokens,
                "layer": self.layer,
                "norm": self.layer == "last",
                "shape": list(self.feature_shape),
            },
            "dtype": self.dtype,
        }

    @cached_property
    def distinct_rows(self) -> NDArray[np.int64]:
        """[n'] int64: the first row of each content, the longest texts first."""
        _, first = np.unique(digest_keys(self.digests[self.rows]), return_index=True)
        rows = self.rows[np.sort(first)]
        return rows[np.argsort(-self.split.lengths[rows], kind="stable")]

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """See `BankRecipe.feature_shape`."""
        return (self.shape.encoder.width,)

    def read(self, rows: NDArray[np.int64]) -> TokenBatch:
        """See `BankRecipe.read`."""
        return TokenBatch(*self.split.tokens(torch.from_numpy(rows)))

    def check(self, contents: TokenBatch, rows: NDArray[np.int64]) -> None:
        """See `BankRecipe.check`."""
        for ids, row in zip(contents.ids.split(contents.lengths.tolist()), rows, strict=True):
            if ids_digest(ids.numpy().astype(np.int32)) != self.digests[row].tobytes():
                raise refuse_changed_row(row)

    @cached_property
    def _teacher(self) -> LiveTeacher:
        dtype = torch.float64 if self.dtype == "float64" else torch.float32
        return LiveTeacher(self.encoder, "cls", self.layer).to(self.device, dtype)

    def features(self, contents: TokenBatch, entries: NDArray[np.int64]) -> Tensor:
        """See `BankRecipe.features`; contents are texts on the CPU."""
        with full_precision(self.device):
            return self._teacher(contents.to(self.device)).contiguous()
