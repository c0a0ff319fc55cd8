"""The teacher of texts: which of its features are matched, and what a bank of them is made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.config import Config
from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.checkpoint import PretrainedMLM
from sdfast.modalities.texts.chunks import TextChunks, rows_of_documents
from sdfast.modalities.texts.model import TextEncoder, TextShape
from sdfast.modalities.texts.pack import TextPack, TextSplit, ids_digest
from sdfast.teacher.recipe import BankRecipe


@dataclass(frozen=True, kw_only=True)
class TextRecipe(BankRecipe):
    """A bank of the features of the first token of texts.

    The teacher sees them without padding, and its batches hold texts of similar lengths; what is kept of a text
    depends on neither but by rounding.

    Attributes:
        split: the texts, or their chunks.
    """

    plural = "texts"
    encoder: TextEncoder
    shape: TextShape
    split: TextSplit | TextChunks

    def build_order(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The longest texts first."""
        return rows[np.argsort(-self.split.lengths[rows], kind="stable")]

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one row of features."""
        return (self.shape.encoder.width,)

    def read(self, rows: NDArray[np.int64]) -> TokenBatch:
        """The texts of some rows, on the CPU."""
        return TokenBatch(*self.split.tokens(torch.from_numpy(rows)))

    def each(self, contents: TokenBatch) -> tuple[Tensor, ...]:
        """The ids of each text."""
        return contents.ids.split(contents.lengths.tolist())

    def digest(self, row: Tensor) -> bytes:
        """The content digest of a text, that of its ids."""
        return ids_digest(row.numpy().astype(np.int32))

    def seen(self, contents: TokenBatch, entries: NDArray[np.int64]) -> TokenBatch:
        """The texts on the device, as the teacher sees them."""
        return contents.to(self.device)


def recipe_of(teacher: PretrainedMLM, pack: TextPack, config: Config, device: torch.device) -> TextRecipe:
    """What a teacher's bank for a run is made from."""
    train = rows_of_documents(pack.split("train"), pack.tokenization, config.data)
    return TextRecipe(
        encoder=teacher.module.encoder,
        shape=teacher.shape,
        split=train,
        digests=train.digests,
        rows=train.limited(config.data.limit, config.data.limit_seed),
        transform=pack.tokenization,
        tokens="cls",
        dtype=config.teacher.dtype,
        device=device,
        layer=config.distill.layer,
    )
