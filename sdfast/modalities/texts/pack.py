"""The pack of a source of texts: tokenised once, in blocks and in threads, into one ragged array of ids on the disk.

Its contents are `<split>-ids.npy`, [T] uint16 or int32, the ids of all documents one after the other, and
`<split>-offsets.npy`, [n + 1] int64, where each begins. Two digests belong to a document. `<split>-digests.npy` are of
its ids, what the model sees: they find duplicates and key the teacher's bank. `<split>-text-digests.npy` are of its
text: what is held out and what `data.limit` keeps goes by them, so that it is the same for every tokenizer and length.
What else a pack holds, `sdfast.data.pack_files` says.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.data.config import DataConfig
from sdfast.data.items import Item, Raw, item_record, read_item
from sdfast.data.lines import remedy
from sdfast.data.modality import TEXTS
from sdfast.data.pack_build import Converted, PackBuilder
from sdfast.data.pack_checks import Rows, counted
from sdfast.data.pack_files import ENDINGS, Manifest, OpenPack, SplitFiles
from sdfast.durable import load_array
from sdfast.modalities.texts.tokenization import LONGEST, Tokenization, Tokenized, Tokenizer

_IN_PACK = {"test_fraction", "split_seed", "max_broken", "duplicates", "text_key", "label_key"}
_BLOCK = 128  # documents tokenised at a time
_HELD = 1 << 20  # characters in memory, from which on a block has fewer
_TRUNCATED = "truncated"


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


class TextPackBuilder(PackBuilder):
    """Writes the files of one pack of texts into an empty directory (see `PackBuilder`); `how` is a `Tokenizer`."""

    libraries = ("numpy", "tokenizers", "transformers", "datasets")
    flood = 100_000

    @property
    def element(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type of an id."""
        return (), self.how.tokenization.dtype

    def blocks(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        """Documents in groups of bounded size, in their order."""
        return _blocks(items)

    def arrays(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Where the documents begin among the ids, and the digests of their texts."""
        assert rows.text_digests is not None
        return {"offsets": rows.offsets, "text_digests": rows.text_digests}

    def details(self, rows: Rows) -> dict[str, Any]:
        """How many tokens there are, in all and in the longest document, and how many documents were cut."""
        assert rows.lengths is not None
        truncated = set(self.tally.notes.get(_TRUNCATED, ()))
        return {
            "tokens": int(rows.lengths.sum()),
            "longest": int(rows.lengths.max(initial=0)),
            "truncated": sum(name in truncated for name in rows.names),
        }

    def notes(self) -> list[str]:
        """One sentence where documents were cut."""
        names, length = self.tally.notes.get(_TRUNCATED, []), self.how.tokenization.max_length
        if not names:
            return []
        return [
            f"Documents of more than {length} tokens, of which the first {length} are kept (data.max_length): "
            f"{counted(names)}."
        ]

    def convert(self, items: list[Item]) -> list[Converted]:
        """Read and tokenise the documents of a block together."""
        raws = [read_item(item) for item in items]
        texts = [read_text(raw) for raw in raws]
        tokenised = iter(self.how([text for text, _ in texts if text is not None]))
        return [
            self._document(item, raw, text, reason, None if text is None else next(tokenised))
            for item, raw, (text, reason) in zip(items, raws, texts, strict=True)
        ]

    def _document(
        self, item: Item, raw: Raw | OSError, text: str | None, reason: str, tokens: Tokenized | None
    ) -> Converted:
        known = (item.name, -1 if item.label is None else item.label, item_record(item, raw))
        if text is None:
            return Converted(*known, reason=reason, remedy="" if isinstance(raw, OSError) else remedy(raw))
        if tokens is None:
            return Converted(*known, reason=f"no text in its first {LONGEST:,} characters")
        how = self.how.tokenization
        if len(tokens.ids) == len(how.prefix) + len(how.suffix):
            return Converted(*known, reason="without any token")
        digests = ids_digest(tokens.ids), hashlib.sha256(text.encode()).digest()
        notes = frozenset((_TRUNCATED,) if tokens.truncated else ())
        return Converted(*known, tokens.ids.astype(how.dtype), *digests, notes)


def read_text(raw: Raw | OSError) -> tuple[str | None, str]:
    """The text of an item, without white space around it; or None and the reason why there is none.

    Args:
        raw: what reading the item gave.
    """
    if isinstance(raw, OSError):
        return None, f"cannot be read ({raw.strerror or raw})"
    content = bytes(raw).removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return None, f"not UTF-8 (line {line})" if line > 1 or b"\n" in content else "not UTF-8"
    return (text, "") if text else (None, "empty")


def _blocks(items: Iterable[Item]) -> Iterator[list[Item]]:
    block: list[Item] = []
    held = 0
    for item in items:
        block.append(item)
        held += item.held
        if len(block) == _BLOCK or held >= _HELD:
            yield block
            block, held = [], 0
    if block:
        yield block


def ids_digest(ids: NDArray[np.int32]) -> bytes:
    """SHA-256 (32 bytes) of a document's ids as little-endian int32, whatever type the pack stores them in."""
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i4").tobytes()).digest()


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
    split_kind, builder = TextSplit, TextPackBuilder

    def _take(self, manifest: Manifest) -> None:
        self.tokenization = Tokenization.from_json(manifest["tokenization"])

    @classmethod
    def made(cls, how: Tokenizer, options: DataConfig, met: Collection[str]) -> dict[str, Any]:
        """How a pack was made: the tokenisation, and the options that decide what is in it."""
        decide = options.model_dump(mode="json", include=_IN_PACK)
        return {"format": cls.format, "tokenization": how.tokenization.to_json(), "options": decide}
