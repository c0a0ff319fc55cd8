"""The pack of a source of texts: tokenised once, in blocks and in threads, into one ragged array of ids on the disk.

Its contents are `<split>-ids.npy`, [T] uint16 or int32, the ids of all documents one after the other, and
`<split>-offsets.npy`, [n + 1] int64, where each begins. Of a document that is longer than a row these are the first
ones; what follows of those of train is in `train-rest.npy`, unless it is not wanted (`data.chunk=false`), and
`sdfast.modalities.texts.chunks` makes further rows of it. Two digests belong to a document. `<split>-digests.npy` are
of its ids, what the classifier sees: they find duplicates and key the teacher's bank. `<split>-text-digests.npy` are of
its text: what is held out and what `data.limit` keeps goes by them, so that it is the same for every tokenizer and
length. What else a pack holds, `sdfast.data.pack_files` says.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.data.config import DataConfig, dividing
from sdfast.data.items import Item, Raw, item_record, read_item
from sdfast.data.lines import latin_text, remedy
from sdfast.data.modality import TEXTS
from sdfast.data.pack_build import Converted, PackBuilder
from sdfast.data.pack_checks import Rows, as_digests, counted
from sdfast.data.pack_files import ENDINGS, Manifest, OpenPack, SplitFiles
from sdfast.data.rows import RowWriter
from sdfast.durable import load_array, sha256_array, sha256_file
from sdfast.modalities.texts.near import ALIKE, Sketches, nearest, sketches
from sdfast.modalities.texts.tokenization import LONGEST, Tokenization, Tokenized, Tokenizer

_IN_PACK = {"test_fraction", "split_seed", "max_broken", "duplicates", "text_key", "label_key"}
_BLOCK = 128  # documents tokenised at a time
_HELD = 1 << 20  # characters in memory, from which on a block has fewer
_TRUNCATED, _UNREAD, _LATIN = "truncated", "unread", "cp1252"  # documents, by what they are
_WITH_RESTS = {"rests": True}  # in the manifest of a pack with documents that are longer than its rows
_FOR_VOTES = {"rests": True, "all_rests": True}  # the same of one that keeps those of every split


class TextSplit(SplitFiles):
    """The documents of one split.

    Attributes:
        ids: np.memmap, [T] uint16 or int32, read-only; special tokens included.
        offsets: [n + 1] int64; document i is `ids[offsets[i] : offsets[i + 1]]`.
        lengths: [n] int64, tokens of each document.
        labels: [n] int64, -1 where a document has no label; None when none has one.
        digests: [n, 32] uint8, SHA-256 of the ids (see `ids_digest`).
        text_digests: [n, 32] uint8, SHA-256 of the text in UTF-8.
        rest: np.memmap, [R] of the type of `ids`, read-only: what follows in the documents that are longer than a row,
            without special tokens; None where there is nothing, or it was not kept.
        rest_offsets: [n + 1] int64; of document i that is `rest[rest_offsets[i] : rest_offsets[i + 1]]`; or None.
        views: its chunks (`sdfast.modalities.texts.chunks`) by how they are made, when first wanted.
    """

    def __init__(self, directory: Path, files: dict[str, dict[str, Any]]) -> None:
        super().__init__(directory, files)
        self.ids: NDArray[Any] = load_array(directory / files["ids"]["file"], mmap_mode="r")
        self.offsets: NDArray[np.int64] = load_array(directory / files["offsets"]["file"])
        self.text_digests: NDArray[np.uint8] = load_array(directory / files["text_digests"]["file"])
        self.lengths: NDArray[np.int64] = np.diff(self.offsets)
        self.rest: NDArray[Any] | None = None
        self.rest_offsets: NDArray[np.int64] | None = None
        if "rest" in files:
            self.rest = load_array(directory / files["rest"]["file"], mmap_mode="r")
            self.rest_offsets = load_array(directory / files["rest_offsets"]["file"])
        self.views: dict[Any, Any] = {}

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
    near = f"at least {100 * ALIKE:.0f} % of the runs of three tokens of either are in both"
    flood = 100_000

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole = False  # whether the split that is converted keeps the rests of its long documents
        self._rest_lengths: dict[str, NDArray[np.int64]] = {}  # of the documents of each split that keeps them

    @property
    def element(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type of an id."""
        return (), self.how.tokenization.dtype

    def blocks(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        """Documents in groups of bounded size, in their order."""
        return _blocks(items)

    def made(self) -> dict[str, Any]:
        """What `TextPack.made` says, and that the rests of long documents are there."""
        rests = _FOR_VOTES if self.options.chunk_votes else _WITH_RESTS if self._keeps_rests("train") else {}
        return {**super().made(), **(rests if _TRUNCATED in self.tally.notes else {})}

    def _keeps_rests(self, split: str) -> bool:
        return self.options.chunk_votes or (split == "train" and self.options.chunk is not False)

    @contextlib.contextmanager
    def converting(self, split: str) -> Iterator[None]:
        """Whether the rests of long documents are kept."""
        self._whole = self._keeps_rests(split)
        yield

    def held(self, converted: Sequence[Converted]) -> TextSplit:
        """Documents in memory, with their rests where chunks vote."""
        split = TextSplit.in_memory(as_digests([one.digest for one in converted]))
        contents = [one.contents for one in converted if one.contents is not None]
        split.ids, split.text_digests = np.concatenate(contents), as_digests([one.text_digest for one in converted])
        split.lengths = np.asarray([len(each) for each in contents], np.int64)
        split.offsets, split.rest, split.rest_offsets, split.views = begins(split.lengths), None, None, {}
        if self._whole:
            rests = [split.ids[:0] if one.rest is None else one.rest for one in converted]
            split.rest, split.rest_offsets = np.concatenate(rests), begins(np.asarray(list(map(len, rests)), np.int64))
        return split

    def said(self, notes: Mapping[str, Sequence[str]]) -> list[str]:
        """Sentences; nothing of long documents whose chunks vote."""
        told = (_TRUNCATED,) if self.options.chunk_votes else ()
        return super().said({note: names for note, names in notes.items() if note not in told})

    @property
    def tokenization(self) -> Tokenization:
        """How the ids are made, as an open pack says it."""
        return self.how.tokenization

    @contextlib.contextmanager
    def beside(self, split: str, onto: bool = False) -> Iterator[Callable[[Converted], None]]:
        """Writes the rests of the long documents of train, or where chunks vote of every split."""
        self._whole = self._keeps_rests(split)
        if not self._whole:
            yield lambda one: None
            return
        lengths: list[int] = []
        path = self._path(split, "rest")
        there = self._rest_lengths[split] if onto and split in self._rest_lengths else np.zeros(0, np.int64)
        with RowWriter(path, *self.element, onto=int(there.sum()) if there.any() else None) as writer:

            def write(one: Converted) -> None:
                lengths.append(0 if one.rest is None else len(one.rest))
                if one.rest is not None:
                    writer.extend(one.rest)

            yield write
        self._rest_lengths[split] = np.concatenate((there, np.asarray(lengths, np.int64)))
        if not writer.rows:
            path.unlink()

    def keep_beside(self, kept: NDArray[np.int64]) -> None:
        """The rests of these documents of train stay there; those of the others go to test, where they are kept."""
        lengths = self._rest_lengths.get("train")
        if lengths is None or not lengths.any():
            return
        whole = self._path("train", "rest").rename(self.directory / "whole-rest.npy")
        contents, offsets = load_array(whole, mmap_mode="r"), begins(lengths)
        held_out = np.setdiff1d(np.arange(len(lengths)), kept)
        for split, rows in (("train", kept), ("test", held_out)):
            if not self._keeps_rests(split):
                continue
            self._rest_lengths[split] = lengths[rows]
            if lengths[rows].any():
                with RowWriter(self._path(split, "rest"), *self.element) as writer:
                    for row in rows:
                        writer.extend(contents[offsets[row] : offsets[row + 1]])
        whole.unlink()

    def arrays(self, split: str, rows: Rows) -> dict[str, NDArray[Any]]:
        """Where the documents begin among the ids, and the digests of their texts; where rests begin."""
        assert rows.text_digests is not None
        found: dict[str, NDArray[Any]] = {"offsets": rows.offsets, "text_digests": rows.text_digests}
        return found | ({"rest_offsets": begins(self._rest_lengths[split])} if self._has_rests(split) else {})

    def decides(self, split: str) -> list[str]:
        """Digests of the rests, where there are any."""
        if not self._has_rests(split):
            return []
        return [sha256_file(self._path(split, "rest")), sha256_array(self._rest_lengths[split])]

    def _has_rests(self, split: str) -> bool:
        return split in self._rest_lengths and bool(self._rest_lengths[split].any())

    def details(self, rows: Rows) -> dict[str, Any]:
        """How many tokens there are, in all and in the longest document, and how many documents were cut."""
        assert rows.lengths is not None
        truncated = set(self.tally.notes.get(_TRUNCATED, ()))
        return {
            "tokens": int(rows.lengths.sum()),
            "longest": int(rows.lengths.max(initial=0)),
            "truncated": sum(name in truncated for name in rows.names),
        }

    def sketches(self, split: str) -> Sketches:
        """The sketches of the documents of a split, as far as their rows go."""
        how, ids = self.how.tokenization, load_array(self._path(split, self.pack.contents), mmap_mode="r")
        return sketches(ids, self.splits[split].offsets, len(how.prefix), len(how.suffix))

    def nearest(self, one: Sketches, other: Sketches) -> list[tuple[int, int]]:
        """The documents that nearly equal another (see `sdfast.modalities.texts.near`)."""
        return nearest(one, other)

    def notes(self) -> list[str]:
        """A sentence each where documents were read as cp1252, and where some were cut."""
        latin = self.tally.notes.get(_LATIN, [])
        said = [
            "Documents that are not UTF-8 and are read as cp1252 (if that is wrong, name the right encoding by "
            f"data.encoding): {counted(latin)}."
        ]
        return [*(said if latin else []), *self._cut()]

    def _cut(self) -> list[str]:
        """One sentence where documents were cut."""
        names, length = self.tally.notes.get(_TRUNCATED, []), self.how.tokenization.max_length
        if not names:
            return []
        if not any(map(self._has_rests, self.splits)):
            return [
                f"Documents of more than {length} tokens, of which the first {length} are kept (data.max_length): "
                f"{counted(names)}."
            ]
        chunks = "pretrain and distill (data.chunk)"
        others = f"fine-tuning and evaluation see the first {length} tokens"
        if self.options.chunk_votes:
            others = "their chunks vote in evaluation (data.chunk_votes)"
            chunks = "fine-tuning" if self.options.chunk is False else "pretrain, distill and fine-tuning"
        said = [
            f"Documents of more than {length} tokens (data.max_length): {counted(names)}; those of train become several"
            f" rows of {chunks}, and {others}."
        ]
        if unread := self.tally.notes.get(_UNREAD, []):
            said.append(f"Documents of which the end is not read, as no word ends in it for long: {counted(unread)}.")
        return said

    def convert(self, items: list[Item]) -> list[Converted]:
        """Read and tokenise the documents of a block together."""
        raws = [read_item(item) for item in items]
        texts = [read_text(raw) for raw in raws]
        tokenised = iter(self.how([text for text, _, _ in texts if text is not None], self._whole))
        return [
            self._document(item, raw, text, reason, latin, None if text is None else next(tokenised))
            for item, raw, (text, reason, latin) in zip(items, raws, texts, strict=True)
        ]

    def _document(
        self, item: Item, raw: Raw | OSError, text: str | None, reason: str, latin: bool, tokens: Tokenized | None
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
        kinds = ((_TRUNCATED, tokens.truncated), (_UNREAD, tokens.unread), (_LATIN, latin))
        notes = frozenset(note for note, met in kinds if met)
        rest = tokens.rest.astype(how.dtype) if len(tokens.rest) else None
        return Converted(*known, tokens.ids.astype(how.dtype), *digests, rest, notes)


def read_text(raw: Raw | OSError) -> tuple[str | None, str, bool]:
    """The text of an item, without white space around it; or None and the reason why there is none.

    Args:
        raw: what reading the item gave.

    Returns:
        text, reason, and whether the text was read as cp1252 because it is not UTF-8.
    """
    if isinstance(raw, OSError):
        return None, f"cannot be read ({raw.strerror or raw})", False
    content, latin = bytes(raw).removeprefix(codecs.BOM_UTF8), False
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        if (other := latin_text(bytes(raw))) is None:
            line = content.count(b"\n", 0, error.start) + 1
            return None, f"not UTF-8 (line {line})" if line > 1 or b"\n" in content else "not UTF-8", False
        text, latin = other.strip(), True
    return (text, "", latin) if text else (None, "empty", False)


def begins(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n + 1] int64: where each of some sequences begins that lie one after the other, and where the last one ends."""
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))


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
        **{"rest": "rest.npy", "rest_offsets": "rest-offsets.npy"},
        **ENDINGS,
    }
    split_kind, builder = TextSplit, TextPackBuilder

    def _take(self, manifest: Manifest) -> None:
        self.tokenization = Tokenization.from_json(manifest["tokenization"])

    @classmethod
    def made(cls, how: Tokenizer, options: DataConfig, met: Collection[str]) -> dict[str, Any]:
        """How a pack was made: the tokenisation, and the options that decide what is in it.

        Rests of long documents have to be there where chunks are asked for, of all splits where they vote; else a pack
        is as good with as without.
        """
        decide = options.model_dump(mode="json", include=_IN_PACK) | dividing(options)
        asked = _FOR_VOTES if options.chunk_votes else _WITH_RESTS if options.chunk else {}
        rests = asked if _TRUNCATED in met else {}
        return {"format": cls.format, "tokenization": how.tokenization.to_json(), "options": decide, **rests}
