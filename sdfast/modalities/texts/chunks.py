"""Long documents as several rows, and short ones joined: a view of a split, derived from lengths and stored nowhere.

What is beyond a row's greatest length is divided evenly: a document has as few chunks as hold it, and they differ by
one token at most, so that none is a stub. Each has the tokenizer's special tokens around it, as a document has. Joined
documents follow each other as they do in the source, as many as fit in a row: the special tokens of a beginning stand
before the first of them, those of an end after each.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.data.config import DataConfig
from sdfast.data.pack_checks import as_digests
from sdfast.data.problem import Labels
from sdfast.errors import UserError
from sdfast.modalities.texts.pack import TextSplit, begins, ids_digest
from sdfast.modalities.texts.tokenization import Tokenization

_HASHED = 1024  # rows whose ids are in memory together


class TextChunks:
    """The rows that the documents of a split become, each of one part of a document or of several documents.

    Attributes:
        documents: the split.
        document: [P] int64: which document each part is of; a long document's follow each other.
        first, last: [P] int64, the tokens `first` to `last` - 1 of it, special ones not counted.
        parts: [N + 1] int64; row i is of the parts `parts[i]` to `parts[i + 1]` - 1.
        lengths: [N] int64, tokens of each row, special ones included.
        adds_content: True, as the digest of a document is of its first chunk.
    """

    adds_content = True

    def __init__(self, documents: TextSplit, how: Tokenization, stride: int | None = 0, joined: Any = None) -> None:
        """Divide the documents, and join them.

        Args:
            documents: a split.
            how: the tokenization of its pack.
            stride: tokens that neighbouring chunks of a document share; None leaves long documents cut.
            joined: [k] int64, ascending: documents of which the short ones are joined; none when not given.

        Raises:
            UserError: they share as many as a chunk has.
        """
        self.documents, self._how = documents, how
        self._special = len(how.prefix) + len(how.suffix)
        room = how.max_length - self._special
        if stride is not None and stride >= room:
            raise UserError(
                f"data.chunk_stride={stride} is too much: a chunk has {room} tokens beside the special ones"
                f" (data.max_length={how.max_length}), and neighbours must share fewer."
            )
        self._kept = sizes = documents.lengths - self._special
        if stride is None or documents.rest is None or documents.rest_offsets is None:
            stride, self._rest, self._rest_offsets = 0, documents.ids[:0], np.zeros(len(documents) + 1, np.int64)
        else:
            self._rest, self._rest_offsets = documents.rest, documents.rest_offsets
            sizes = sizes + np.diff(self._rest_offsets)
        counts = np.where(sizes > room, -(-(sizes - stride) // (room - stride)), 1)
        self.document = np.repeat(np.arange(len(documents)), counts)
        place = np.arange(len(self.document)) - np.repeat(np.cumsum(counts) - counts, counts)  # in its document
        each, larger = np.divmod(sizes + (counts - 1) * stride, counts)  # the first `larger` have one token more
        each, larger = each[self.document], larger[self.document]
        self.first = place * (each - stride) + np.minimum(place, larger)
        self.last = self.first + each + (place < larger)
        if joined is None:
            self.parts = np.arange(len(self.document) + 1)
        else:
            self._join(np.isin(self.document, joined) & (counts[self.document] == 1))
        some = np.add.reduceat(self.last - self.first, self.parts[:-1]) if len(self) else np.zeros(0, np.int64)
        self.lengths = len(how.prefix) + some + len(how.suffix) * np.diff(self.parts)

    def _join(self, short: NDArray[np.bool_]) -> None:
        """Put parts into the row of the one before that is short too, while there is room."""
        row_of, rows = np.empty(len(short), np.int64), 0
        open_row, free, end = -1, 0, len(self._how.suffix)
        for part, (size, joins) in enumerate(zip((self.last - self.first).tolist(), short.tolist(), strict=True)):
            if joins and size + end <= free:
                row_of[part], free = open_row, free - size - end
                continue
            row_of[part] = rows
            if joins:
                open_row, free = rows, self._how.max_length - self._special - size
            rows += 1
        order = np.argsort(row_of, kind="stable")
        self.document, self.first, self.last = (each[order] for each in (self.document, self.first, self.last))
        self.parts = begins(np.bincount(row_of, minlength=rows))

    def __len__(self) -> int:
        return len(self.parts) - 1

    @functools.cached_property
    def digests(self) -> NDArray[np.uint8]:
        """[N, 32] uint8: of the ids of each row (see `ids_digest`)."""
        found = self.documents.digests[self.item_of]
        made = (np.diff(self.parts) > 1) | self._in_chunks
        for rows in torch.from_numpy(np.flatnonzero(made)).split(_HASHED):
            ids, lengths = self.tokens(rows)
            each = np.split(ids.numpy().astype(np.int32), np.cumsum(lengths.numpy())[:-1])
            found[rows.numpy()] = as_digests(ids_digest(row) for row in each)
        return found

    @property
    def item_of(self) -> NDArray[np.int64]:
        """[N] int64, ascending: the document of each row, of which it is a part; of joined ones the first."""
        return self.document[self.parts[:-1]]

    @property
    def labels(self) -> Labels | None:
        """That of each row's document, as `sdfast.data.problem` says, for N rows; None when none has one."""
        labels = self.documents.labels
        return None if labels is None else labels[self.item_of]

    @property
    def _in_chunks(self) -> NDArray[np.bool_]:
        """[N]: whether a row is a part of a longer document."""
        return np.diff(self._rest_offsets)[self.item_of] > 0

    def limited(self, limit: int | None, seed: int) -> NDArray[np.int64]:
        """The rows of `limit` documents (see `SplitFiles.limited`), int64 ascending; None gives all."""
        return np.flatnonzero(np.isin(self.item_of, self.documents.limited(limit, seed)))

    def tokens(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The ids of some rows, one after the other, without padding; see `TextSplit.tokens`."""
        chosen, how = rows.numpy(), self._how
        counts = np.diff(self.parts)[chosen]
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of each part in its row
        part = np.repeat(self.parts[chosen], counts) + number
        first, sizes = self.first[part], (self.last - self.first)[part]
        before = np.where(number == 0, len(how.prefix), 0)
        whole = before + sizes + len(how.suffix)
        start = np.cumsum(whole) - whole
        ids = np.empty(whole.sum(), np.int64)
        for place, special in enumerate(how.prefix):
            ids[start[number == 0] + place] = special
        for place, special in enumerate(how.suffix):
            ids[start + before + sizes + place] = special

        def spread(values: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.repeat(values, sizes)

        inside = np.arange(sizes.sum()) - spread(np.cumsum(sizes) - sizes)
        target, document, token = spread(start + before) + inside, spread(self.document[part]), spread(first) + inside
        beyond = token - self._kept[document]  # among the rest of the document, where it is not negative
        kept, rest = np.flatnonzero(beyond < 0), np.flatnonzero(beyond >= 0)
        offsets = self.documents.offsets[document[kept]] + len(how.prefix)
        ids[target[kept]] = self.documents.ids[offsets + token[kept]]
        ids[target[rest]] = self._rest[self._rest_offsets[document[rest]] + beyond[rest]]
        return torch.from_numpy(ids), torch.from_numpy(self.lengths[chosen])

    def said(self, votes: bool = False) -> str:
        """How many rows there are of how many documents, for the log; whether fine-tuning has them as well."""
        length, chunks = self._how.max_length, int(self._in_chunks.sum())
        long = len(np.unique(self.item_of[self._in_chunks]))
        several = np.diff(self.parts)
        several = several[several > 1]
        parts = []
        if chunks:
            parts.append(f"{long:,} are longer than {length} tokens and become {chunks:,} rows")
        if len(several):
            parts.append(f"{several.sum():,} short ones share {len(several):,}")
        what = ", ".join(parts) or "none is joined"
        finetune = "of which fine-tuning has those of its" if votes else "fine-tuning has one a document, its"
        ends = "labelled documents (data.chunk_votes)" if votes else f"first {length} tokens"
        return (
            f"of {len(self.documents):,} documents of train {what}; pretrain and distill have {len(self):,} rows in"
            f" all, {finetune} {ends}"
        )


def rows_of_documents(documents: Any, how: Tokenization, data: DataConfig) -> Any:
    """What the stages that mask see of a split: its chunks, or the split itself where each document is a row.

    It is the same object whenever the split is, so that what is kept of a view (its digests) is kept.

    Args:
        documents: the split: a `TextSplit`, or drawn texts, which stay as they are.
        how: the tokenization of its pack.
        data: the section of the configuration; without a value of `chunk` there are chunks where the pack has what is
            needed.
    """
    if not isinstance(documents, TextSplit):
        return documents
    divided = data.chunk is not False and documents.rest is not None
    if not divided and not data.pack_short:
        return documents
    stride = data.chunk_stride if divided else None
    limit = (data.limit, data.limit_seed) if data.pack_short else None  # documents beyond it are joined to none
    if (view := documents.views.get((stride, limit))) is None:
        joined = None if limit is None else documents.limited(*limit)
        view = documents.views[stride, limit] = TextChunks(documents, how, stride, joined)
    return view


def voting_chunks(documents: Any, how: Tokenization, data: DataConfig) -> TextChunks | None:
    """The chunks of a split that vote for its documents (`data.chunk_votes`); None where each document is one row.

    Args:
        documents: the split: a `TextSplit`, or drawn texts.
        how: the tokenization of its pack.
        data: the section of the configuration.
    """
    if not data.chunk_votes or not isinstance(documents, TextSplit) or documents.rest is None:
        return None
    key = data.chunk_stride, None
    if (view := documents.views.get(key)) is None:
        view = documents.views[key] = TextChunks(documents, how, data.chunk_stride)
    return view
