"""Tokenise texts into the files of a pack, in blocks of documents and in threads."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.data.encoding import remedy
from sdfast.data.items import Item, Raw, item_record, read_item
from sdfast.data.pack_build import Converted, PackBuilder
from sdfast.data.pack_checks import Rows, first_names
from sdfast.data.text_pack import TextPack, ids_digest
from sdfast.data.tokenization import LONGEST, Tokenized

_BLOCK = 128  # documents tokenised at a time
_HELD = 1 << 20  # characters in memory, from which on a block has fewer
_TRUNCATED = "truncated"


class TextPackBuilder(PackBuilder):
    """Writes the files of one pack of texts into an empty directory (see `PackBuilder`); `how` is a `Tokenizer`."""

    pack = TextPack
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
            f"{len(names):,} ({first_names(names)})."
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
