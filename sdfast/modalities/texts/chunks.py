"""Long documents as several rows: a view of a split, derived from the lengths of its documents and stored nowhere.

What is beyond a row's greatest length is divided evenly: a document has as few chunks as hold it, and they differ by
one token at most, so that none is a stub. Each has the tokenizer's special tokens around it, as a document has.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.data.pack_checks import as_digests
from sdfast.errors import UserError
from sdfast.modalities.texts.pack import TextSplit, ids_digest
from sdfast.modalities.texts.tokenization import Tokenization

_HASHED = 1024  # rows whose ids are in memory together


class TextChunks:
    """The rows that the documents of a split become: a short one is a row, a long one several that follow each other.

    Attributes:
        documents: the split.
        document: [N] int64, ascending: which document each row is of.
        first, last: [N] int64, the tokens `first` to `last` - 1 of it, special ones not counted.
        lengths: [N] int64, tokens of each row, special ones included.
    """

    def __init__(self, documents: TextSplit, how: Tokenization, stride: int = 0) -> None:
        """Divide the documents.

        Args:
            documents: a split with the rests of its long documents.
            how: the tokenization of its pack.
            stride: tokens that neighbouring chunks of a document share.

        Raises:
            UserError: as many as a chunk has.
        """
        assert documents.rest is not None
        assert documents.rest_offsets is not None
        self.documents, self._how = documents, how
        self._rest, self._rest_offsets = documents.rest, documents.rest_offsets
        self._special = len(how.prefix) + len(how.suffix)
        room = how.max_length - self._special
        if stride >= room:
            raise UserError(
                f"data.chunk_stride={stride} is too much: a chunk has {room} tokens beside the special ones"
                f" (data.max_length={how.max_length}), and neighbours must share fewer."
            )
        self._kept = documents.lengths - self._special
        sizes = self._kept + np.diff(self._rest_offsets)
        counts = np.where(sizes > room, -(-(sizes - stride) // (room - stride)), 1)
        self.document = np.repeat(np.arange(len(documents)), counts)
        place = np.arange(len(self.document)) - np.repeat(np.cumsum(counts) - counts, counts)  # in its document
        each, larger = np.divmod(sizes + (counts - 1) * stride, counts)  # the first `larger` have one token more
        each, larger = each[self.document], larger[self.document]
        self.first = place * (each - stride) + np.minimum(place, larger)
        self.last = self.first + each + (place < larger)
        self.lengths = self.last - self.first + self._special

    def __len__(self) -> int:
        return len(self.document)

    @functools.cached_property
    def digests(self) -> NDArray[np.uint8]:
        """[N, 32] uint8: of the ids of each row (see `ids_digest`)."""
        found = self.documents.digests[self.document]
        for rows in torch.from_numpy(np.flatnonzero(self._in_chunks)).split(_HASHED):
            ids, lengths = self.tokens(rows)
            each = np.split(ids.numpy().astype(np.int32), np.cumsum(lengths.numpy())[:-1])
            found[rows.numpy()] = as_digests(ids_digest(row) for row in each)
        return found

    @property
    def _in_chunks(self) -> NDArray[np.bool_]:
        return np.diff(self._rest_offsets)[self.document] > 0

    def limited(self, limit: int | None, seed: int) -> NDArray[np.int64]:
        """The rows of `limit` documents (see `SplitFiles.limited`), int64 ascending; None gives all."""
        return np.flatnonzero(np.isin(self.document, self.documents.limited(limit, seed)))

    def tokens(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The ids of some rows, one after the other, without padding; see `TextSplit.tokens`."""
        chosen, how = rows.numpy(), self._how
        first, sizes = self.first[chosen], (self.last - self.first)[chosen]
        lengths = sizes + self._special
        begins = np.cumsum(lengths) - lengths
        ids = np.empty(lengths.sum(), np.int64)
        for number, special in enumerate(how.prefix):
            ids[begins + number] = special
        for number, special in enumerate(how.suffix):
            ids[begins + len(how.prefix) + sizes + number] = special

        def spread(values: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.repeat(values, sizes)

        place = np.arange(sizes.sum()) - spread(np.cumsum(sizes) - sizes)
        target = spread(begins + len(how.prefix)) + place
        document, token = spread(self.document[chosen]), spread(first) + place
        beyond = token - self._kept[document]  # among the rest of the document, where it is not negative
        kept, rest = np.flatnonzero(beyond < 0), np.flatnonzero(beyond >= 0)
        offsets = self.documents.offsets[document[kept]] + len(how.prefix)
        ids[target[kept]] = self.documents.ids[offsets + token[kept]]
        ids[target[rest]] = self._rest[self._rest_offsets[document[rest]] + beyond[rest]]
        return torch.from_numpy(ids), torch.from_numpy(lengths)

    @property
    def said(self) -> str:
        """How many rows there are of how many documents, for the log."""
        long = np.unique(self.document[self._in_chunks])
        return (
            f"{len(long):,} of {len(self.documents):,} documents of train are longer than {self._how.max_length} tokens"
            f" and become {int(self._in_chunks.sum()):,} rows of pretrain and distill, which have {len(self):,} in all;"
            f" fine-tuning sees their first {self._how.max_length} tokens"
        )


def rows_of_documents(documents: Any, how: Tokenization, chunk: bool | None, stride: int) -> Any:
    """What the stages that mask see of a split: its chunks, or the split itself where it has none.

    It is the same object whenever the split is, so that what is kept of a view (its digests) is kept.

    Args:
        documents: the split: a `TextSplit`, or drawn texts.
        how: the tokenization of its pack.
        chunk: whether long documents are divided; None where the pack has what is needed.
        stride: tokens that neighbouring chunks share.
    """
    if chunk is False or getattr(documents, "rest", None) is None:
        return documents
    known: dict[int, TextChunks] = documents.views
    if stride not in known:
        known[stride] = TextChunks(documents, how, stride)
    return known[stride]
