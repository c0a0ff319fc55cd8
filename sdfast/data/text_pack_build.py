"""Tokenise texts into the files of a pack, in blocks of documents and in threads."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.data.config import DataConfig
from sdfast.data.items import Item, ItemList, Raw, Source, item_record, read_item
from sdfast.data.lines import remedy
from sdfast.data.pack_build import PackBuilder
from sdfast.data.pack_checks import Rows, check_broken, first_names
from sdfast.data.parallel import ordered_map
from sdfast.data.rows import RowWriter
from sdfast.data.text_pack import CONTENT_ENDINGS, FORMAT, ids_digest, text_build_options
from sdfast.data.tokenization import LONGEST, Tokenized, Tokenizer
from sdfast.durable import load_array

_BLOCK = 128  # documents tokenised at a time
_HELD = 1 << 20  # characters in memory, from which on a block has fewer
_TOO_MANY = 100_000  # documents that cannot be used, beyond those allowed, at which the rest is not looked at
_TRUNCATED = "truncated"


@dataclass(frozen=True)
class TextRows(Rows):
    """The rows of one split beside their ids.

    Attributes:
        lengths: [n] int64, tokens.
        text_digests: [n, 32] uint8.
    """

    lengths: NDArray[np.int64]
    text_digests: NDArray[np.uint8]

    @property
    def choice_digests(self) -> NDArray[np.uint8]:
        """[n, 32] uint8: the text's digest; of documents that have the same ids, one text's for all of them.

        So equal documents stay together where rows are held out, and the choice depends on the tokenizer only where it
        makes texts equal that are not.
        """
        first: dict[bytes, bytes] = {}
        pairs = [(ids.tobytes(), text.tobytes()) for ids, text in zip(self.digests, self.text_digests, strict=True)]
        for ids, text in pairs:
            first[ids] = min(text, first.get(ids, text))
        return np.frombuffer(b"".join(first[ids] for ids, _ in pairs), np.uint8).reshape(-1, 32)

    def take(self, rows: NDArray[np.int64]) -> TextRows:
        """These rows only."""
        part = super().take(rows)
        return TextRows(part.names, part.labels, part.digests, self.lengths[rows], self.text_digests[rows])


@dataclass(frozen=True)
class _Document:
    """One item after a worker thread: its ids, or the reason why there are none."""

    name: str
    label: int
    record: bytes
    reason: str
    ids: NDArray[np.int32] | None = None
    digest: bytes = b""
    text_digest: bytes = b""
    truncated: bool = False
    remedy: str = ""


class TextPackBuilder(PackBuilder[TextRows]):
    """Writes the files of one pack of texts into an empty directory (see `PackBuilder`).

    Args:
        tokenizer: from text to ids.
    """

    contents_ending = CONTENT_ENDINGS["ids"]
    libraries = ("numpy", "tokenizers", "transformers", "datasets")

    def __init__(
        self,
        source: Source,
        directory: Path,
        tokenizer: Tokenizer,
        options: DataConfig,
        progress: Callable[[int, int], None],
        threads: int,
    ) -> None:
        super().__init__(source, directory, options, progress, threads)
        self.tokenizer = tokenizer

    def made(self) -> dict[str, Any]:
        """See `PackBuilder.made`."""
        return {"format": FORMAT, "tokenization": self.transform_json(), "options": text_build_options(self.options)}

    def transform_json(self) -> dict[str, Any]:
        """See `PackBuilder.transform_json`."""
        return self.tokenizer.tokenization.to_json()

    def write_split(self, split: str, items: ItemList) -> TextRows:
        """See `PackBuilder.write_split`."""
        unwanted = self.unwanted(split)
        names: list[str] = []
        labels: list[int] = []
        lengths: list[int] = []
        digests: list[bytes] = []
        text_digests: list[bytes] = []
        with (
            self._ids_writer(split) as writer,
            contextlib.closing(ordered_map(self._tokenise, _blocks(items), self.threads)) as blocks,
        ):
            for block in blocks:
                for one in block:
                    self.content.add(split, one.record)
                    if one.ids is None:
                        self.tally.skipped.append({"split": split, "name": one.name, "reason": one.reason})
                        self.tally.remedy = self.tally.remedy or one.remedy
                        continue
                    if one.digest in unwanted:
                        self.tally.dropped.append({"name": one.name, "also_in": unwanted[one.digest]})
                        continue
                    if one.truncated:
                        self.tally.notes.setdefault(_TRUNCATED, []).append(one.name)
                    writer.extend(one.ids.astype(self.tokenizer.tokenization.dtype))
                    names.append(one.name)
                    labels.append(one.label)
                    lengths.append(len(one.ids))
                    digests.append(one.digest)
                    text_digests.append(one.text_digest)
                if len(self.tally.skipped) > self.options.max_broken * self.tally.total + _TOO_MANY:
                    check_broken(self.source, self.splits, self.tally, self.options)
                self.tally.done += len(block)
                self.progress(self.tally.done, self.tally.total)
        return TextRows(
            names,
            np.asarray(labels, np.int64),
            _digests(digests),
            np.asarray(lengths, np.int64),
            _digests(text_digests),
        )

    def take(self, rows: NDArray[np.int64], whole: TextRows, contents: Path, split: str) -> TextRows:
        """See `PackBuilder.take`."""
        ids = load_array(contents, mmap_mode="r")
        offsets = _offsets(whole.lengths)
        with self._ids_writer(split) as writer:
            for row in rows:
                writer.extend(ids[offsets[row] : offsets[row + 1]])
        return whole.take(rows)

    def write_rest(self, split: str) -> dict[str, str]:
        """See `PackBuilder.write_rest`."""
        rows = self.splits[split]
        np.save(self.path(split, CONTENT_ENDINGS["offsets"]), _offsets(rows.lengths))
        np.save(self.path(split, CONTENT_ENDINGS["text_digests"]), rows.text_digests)
        return dict(CONTENT_ENDINGS)

    def split_details(self, split: str) -> dict[str, Any]:
        """See `PackBuilder.split_details`."""
        lengths = self.splits[split].lengths
        truncated = set(self.tally.notes.get(_TRUNCATED, ()))
        return {
            "tokens": int(lengths.sum()),
            "longest": int(lengths.max(initial=0)),
            "truncated": sum(name in truncated for name in self.splits[split].names),
        }

    def row_digests(self, rows: TextRows) -> list[NDArray[Any]]:
        """See `PackBuilder.row_digests`."""
        return [rows.digests, rows.text_digests]

    def notes(self) -> list[str]:
        """See `PackBuilder.notes`."""
        names, length = self.tally.notes.get(_TRUNCATED, []), self.tokenizer.tokenization.max_length
        if not names:
            return []
        return [
            f"Documents of more than {length} tokens, of which the first {length} are kept (data.max_length): "
            f"{len(names):,} ({first_names(names)})."
        ]

    def _ids_writer(self, split: str) -> RowWriter:
        return RowWriter(self.path(split, CONTENT_ENDINGS["ids"]), (), self.tokenizer.tokenization.dtype)

    def _tokenise(self, items: list[Item]) -> list[_Document]:
        raws = [read_item(item) for item in items]
        texts = [read_text(raw) for raw in raws]
        tokenised = iter(self.tokenizer([text for text, _ in texts if text is not None]))
        return [
            self._document(item, raw, text, reason, None if text is None else next(tokenised))
            for item, raw, (text, reason) in zip(items, raws, texts, strict=True)
        ]

    def _document(
        self, item: Item, raw: Raw | OSError, text: str | None, reason: str, tokens: Tokenized | None
    ) -> _Document:
        label, record = -1 if item.label is None else item.label, item_record(item, raw)
        if text is None:
            return _Document(item.name, label, record, reason, remedy="" if isinstance(raw, OSError) else remedy(raw))
        if tokens is None:
            return _Document(item.name, label, record, f"no text in its first {LONGEST:,} characters")
        how = self.tokenizer.tokenization
        if len(tokens.ids) == len(how.prefix) + len(how.suffix):
            return _Document(item.name, label, record, "without any token")
        text_digest = hashlib.sha256(text.encode()).digest()
        return _Document(
            item.name, label, record, "", tokens.ids, ids_digest(tokens.ids), text_digest, tokens.truncated
        )


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


def _digests(digests: Iterable[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
