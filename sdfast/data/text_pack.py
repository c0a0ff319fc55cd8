"""The pack of a source of texts: tokenised once into one ragged array of ids on the disk.

Its contents are `<split>-ids.npy`, [T] uint16 or int32, the ids of all documents one after the other, and
`<split>-offsets.npy`, [n + 1] int64, where each begins. Two digests belong to a document. `<split>-digests.npy` are of
its ids, what the model sees: they find duplicates and key the teacher's bank. `<split>-text-digests.npy` are of its
text: what is held out and what `data.limit` keeps goes by them, so that it is the same for every tokenizer and length.
What else a pack holds, `sdfast.data.pack_files` says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.data.config import DataConfig
from sdfast.data.modality import TEXTS
from sdfast.data.pack_files import ENDINGS, Manifest, OpenPack, SplitFiles
from sdfast.data.parallel import available_threads
from sdfast.data.tokenization import Tokenization, Tokenizer
from sdfast.durable import load_array

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

    format, how, contents = "text 1", "tokenization", "ids"
    endings: ClassVar[Mapping[str, str]] = {
        **{"ids": "ids.npy", "offsets": "offsets.npy", "text_digests": "text-digests.npy"},
        **ENDINGS,
    }
    split_kind = TextSplit

    def _take(self, manifest: Manifest) -> None:
        self.tokenization = Tokenization.from_json(manifest["tokenization"])


open_text_pack = TextPack.open


def prepare_text_pack(
    source_spec: str,
    directory: Path,
    tokenizer: Tokenizer,
    options: DataConfig,
    notify: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> TextPack:
    """The pack of a source of texts, as it is or built anew (see `OpenPack.prepare`).

    Args:
        source_spec: what `open_source` takes for texts.
        directory: of the pack.
        tokenizer: from text to ids, with the greatest length; its content decides, not its name.
        options: the `data` section; `source`, `max_length` (the tokenizer has it), `limit`, `limit_seed`,
            `token_budget` and those of images do not matter here.
        notify: called with each sentence that a person should read, while a pack is built.
        progress: called with (documents done, documents in all).
        threads: that read and tokenise; by default, those that the process may use, at most 16.

    Raises:
        UserError: see `open_source`; too many empty or unreadable documents, no usable one in a split, documents that
            train shares with test, or a `directory` that holds something else.
        RunError: the pack cannot be written.
    """
    from sdfast.data.sources import open_source
    from sdfast.data.text_pack_build import TextPackBuilder

    directory, threads = Path(directory), threads or available_threads()
    source = open_source(source_spec, options, TEXTS)

    def build(staging: Path) -> list[str]:
        return TextPackBuilder(source, staging, tokenizer, options, progress, threads).build()

    made = made_of(tokenizer.tokenization, options)
    return TextPack.prepare(directory, made, source, threads, build, notify)


def made_of(tokenization: Tokenization, options: DataConfig) -> dict[str, Any]:
    """The entries of the manifest that say how a pack of texts was made, with the options that decide what is in it."""
    decide = options.model_dump(mode="json", include=_IN_PACK)
    return {"format": TextPack.format, "tokenization": tokenization.to_json(), "options": decide}


def ids_digest(ids: NDArray[np.int32]) -> bytes:
    """SHA-256 (32 bytes) of a document's ids as little-endian int32, whatever type the pack stores them in."""
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i4").tobytes()).digest()
