"""The pack of a source of texts: tokenised once into one ragged array of ids on the disk.

Its contents are `<split>-ids.npy`, [T] uint16 or int32, the ids of all documents one after the other, and
`<split>-offsets.npy`, [n + 1] int64, where each begins. Two digests belong to a document. `<split>-digests.npy` are of
its ids, what the model sees: they find duplicates and key the teacher's bank. `<split>-text-digests.npy` are of its
text: what is held out and what `data.limit` keeps goes by them, so that it is the same for every tokenizer and length.
What else a pack holds, `sdfast.data.pack_files` says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.data.config import DataConfig
from sdfast.data.modality import TEXTS
from sdfast.data.pack_files import ENDINGS, Manifest, OpenPack, SplitFiles
from sdfast.data.tokenization import Tokenization, Tokenizer
from sdfast.durable import load_array

if TYPE_CHECKING:
    from sdfast.data.pack_build import PackBuilder

_IN_PACK = {"test_fraction", "split_seed", "max_broken", "duplicates", "text_key", "label_key"}


class TextSplit(SplitFiles):
    """The documents of one split.

    Attributes:
        ids: np.memmap, [T] uint16 or int32, read-only; special tokens included.
        offsets: [n + 1] int64; document i is `ids[offsets[i] : offsets[i + 1]]`.
        lengths: [n] int64, tokens of each document.
        labels: [n] int64, -1 where a document has no label; None when none has one.
        digests: [n, 32] uint8, SHA-256 of the ids (see `ids_digest`).
        text_digests: [n, 32] uint8, SHA-256 of the text in UTF-8.
    """

    def __init__(self, directory: Path, files: dict[str, dict[str, Any]]) -> None:
        super().__init__(directory, files)
        self.ids: NDArray[Any] = load_array(directory / files["ids"]["file"], mmap_mode="r")
        self.offsets: NDArray[np.int64] = load_array(directory / files["offsets"]["file"])
        self.text_digests: NDArray[np.uint8] = load_array(directory / files["text_digests"]["file"])
        self.lengths: NDArray[np.int64] = np.diff(self.offsets)

    @property
    def choice_digests(self) -> NDArray[np.uint8]:
        """[n, 32] uint8: what the choice of rows goes by."""
        return self.text_digests

    def tokens(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The ids of some documents, one after the other, without padding.

        Args:
            rows: [B] int64, on the CPU; in any order, also repeated.

        Returns:
            ids: [T] int64.
            lengths: [B] int64, their sum is T.
        """
        chosen = rows.numpy()
        lengths = self.lengths[chosen]
        ends = np.cumsum(lengths)
        shift = self.offsets[chosen] - (ends - lengths)
        position = np.arange(ends[-1] if len(ends) else 0) + np.repeat(shift, lengths)
        return torch.from_numpy(self.ids[position].astype(np.int64)), torch.from_numpy(lengths)


class TextPack(OpenPack[TextSplit]):
    """An open pack of texts (see `OpenPack`).

    Attributes:
        tokenization: how the ids were made.
    """

    format, modality, how, contents = "text 1", TEXTS, "tokenization", "ids"
    endings: ClassVar[Mapping[str, str]] = {
        **{"ids": "ids.npy", "offsets": "offsets.npy", "text_digests": "text-digests.npy"},
        **ENDINGS,
    }
    split_kind = TextSplit

    def _take(self, manifest: Manifest) -> None:
        self.tokenization = Tokenization.from_json(manifest["tokenization"])

    @classmethod
    def made(cls, how: Tokenizer, options: DataConfig, met: Collection[str]) -> dict[str, Any]:
        """How a pack was made: the tokenisation, and the options that decide what is in it."""
        decide = options.model_dump(mode="json", include=_IN_PACK)
        return {"format": cls.format, "tokenization": how.tokenization.to_json(), "options": decide}

    @classmethod
    def _builder(cls) -> type[PackBuilder]:
        from sdfast.data.text_pack_build import TextPackBuilder

        return TextPackBuilder


open_text_pack, prepare_text_pack = TextPack.open, TextPack.prepare


def ids_digest(ids: NDArray[np.int32]) -> bytes:
    """SHA-256 (32 bytes) of a document's ids as little-endian int32, whatever type the pack stores them in."""
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i4").tobytes()).digest()
