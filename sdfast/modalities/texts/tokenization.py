"""From documents to token ids, with a model's own fast tokenizer."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from sdfast.durable import sha256_json
from sdfast.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_UNBOUNDED = 1 << 24  # transformers writes a huge number where a tokenizer names no greatest length
_SAMPLE = "a b"
LONGEST = 1 << 20  # characters that are tokenised of one document
_FIRST = 32  # characters for each token of room that are tokenised at first; a token has 2 to 5
_GROWTH = 4
_WORD_END = re.compile(r"(?<=\S)[ \t\n\r]")
_PIECE = 1 << 16  # characters that are tokenised at a time of a document that is kept whole
_PIECE_END = re.compile(r"(?<=\S) ")

# What keeps a token from reaching over a blank, or a blank from changing what stands before it.
_LOCAL_NORMALIZERS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"}
_LOCAL_SPLITTERS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
# and beside the first, what treats the beginning of a text as the beginning of a word
_STEADY_SPLITTERS = _LOCAL_SPLITTERS | {"ByteLevel", "Digits", "Punctuation", "Split"}


@dataclass(frozen=True)
class Tokenization:
    """How every document of a pack became ids.

    Attributes:
        tokenizer: hexadecimal SHA-256 of the tokenizer's content: vocabulary, merges, normalisation, special tokens.
        vocabulary: ids lie in [0, vocabulary).
        max_length: most tokens of a document, special ones included; the rest is cut.
        prefix, suffix: ids before and after each document (`<s>` and `</s>`, [CLS] and [SEP]).
        special_ids: ids of all special tokens, ascending; they are never masked.
        mask_id, pad_id: of the mask and the padding token, if there are any.
    """

    tokenizer: str
    vocabulary: int
    max_length: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    special_ids: tuple[int, ...]
    mask_id: int | None
    pad_id: int | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored ids: uint16 where the vocabulary fits, else int32."""
        return np.dtype(np.uint16 if self.vocabulary <= 1 << 16 else np.int32)

    def to_json(self) -> dict[str, Any]:
        """The tokenization as a JSON value."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tokenization:
        """The tokenization that `to_json` described."""
        return cls(
            tokenizer=str(value["tokenizer"]),
            vocabulary=int(value["vocabulary"]),
            max_length=int(value["max_length"]),
            prefix=tuple(value["prefix"]),
            suffix=tuple(value["suffix"]),
            special_ids=tuple(value["special_ids"]),
            mask_id=value["mask_id"],
            pad_id=value["pad_id"],
        )


@dataclass(frozen=True)
class Tokenized:
    """One document.

    Attributes:
        ids: [t] int32, special tokens included.
        truncated: whether it was longer.
        rest: [r] int32, the ids that follow, without special tokens, where they were asked for.
        unread: whether its end was not tokenised either, though it was asked for.
    """

    ids: NDArray[np.int32]
    truncated: bool
    rest: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    unread: bool = False


class Tokenizer:
    """A fast tokenizer with a length. Threads may share it.

    Attributes:
        tokenization: what it does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int = 512) -> None:
        """max_length: lowered to the tokenizer's own greatest length.

        Raises:
            UserError: a tokenizer that is not a fast one, or one whose special tokens leave no room.
        """
        from tokenizers import Tokenizer as Backend

        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"{type(tokenizer).__name__} is no fast tokenizer; save it with a tokenizer.json beside the model."
            )
        fast = cast("PreTrainedTokenizerFast", tokenizer)
        # A copy: truncation and padding are the caller's settings on the original, and are not wanted here.
        self._backend = Backend.from_str(fast.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        if tokenizer.model_max_length < _UNBOUNDED:
            max_length = min(max_length, int(tokenizer.model_max_length))
        content = json.loads(self._backend.to_str())
        self._ends_words, self._begins_words = ends_words(content), begins_words(content)
        self._one_long = threading.RLock()  # a long document takes up to 1 GB while it is tokenised
        prefix, suffix = self._special_ends()
        if max_length <= len(prefix) + len(suffix):
            raise UserError(f"data.max_length={max_length} leaves no room beside the tokenizer's special tokens.")
        self.tokenization = Tokenization(
            tokenizer=tokenizer_digest(fast),
            vocabulary=max(self._backend.get_vocab(with_added_tokens=True).values()) + 1,
            max_length=max_length,
            prefix=prefix,
            suffix=suffix,
            special_ids=tuple(sorted(set(tokenizer.all_special_ids))),
            mask_id=tokenizer.mask_token_id,
            pad_id=tokenizer.pad_token_id,
        )

    def __call__(self, texts: Sequence[str], whole: bool = False) -> list[Tokenized | None]:
        """Tokenise documents, in the library's own threads; as transformers does with truncation, without padding.

        Of a long document a beginning that ends with a word is tokenised, and a longer one until it has more tokens
        than fit. None stands for a document of more than 1,048,576 characters whose beginning of that length is no
        text: it makes less tokens than fit, or has no blank.

        Args:
            texts: the documents.
            whole: also give the ids beyond the greatest length (`Tokenized.rest`).
        """
        size = _FIRST * self._room
        found: list[Tokenized | None] = []
        starts = [self._beginning(text, size) for text in texts]
        encodings = self._backend.encode_batch_fast([start or "" for start in starts], add_special_tokens=False)
        for text, start, encoding in zip(texts, starts, encodings, strict=True):
            if start is None or (len(start) < len(text) and len(encoding.ids) <= self._room):
                found.append(self._tokenise_long(text, _GROWTH * size, whole))
            else:
                found.append(self._tokenized(encoding.ids, text, start, whole))
        return found

    @property
    def _room(self) -> int:
        """Tokens of a document that are kept, without the special ones."""
        how = self.tokenization
        return how.max_length - len(how.prefix) - len(how.suffix)

    def _tokenized(self, ids: list[int], text: str, start: str, whole: bool) -> Tokenized:
        """A document of which the beginning `start` has these ids."""
        how, room = self.tokenization, self._room
        kept = np.array((*how.prefix, *ids[:room], *how.suffix), np.int32)
        if not whole or len(ids) <= room:
            return Tokenized(kept, len(ids) > room)
        if len(start) == len(text):
            return Tokenized(kept, True, np.array(ids[room:], np.int32))
        parts, read = [], 0
        with contextlib.nullcontext() if self._begins_words else self._one_long:
            for piece in self._pieces(text):
                (encoding,) = self._backend.encode_batch_fast([piece], add_special_tokens=False)
                parts.append(np.array(encoding.ids, np.int32))
                read += len(piece)
        return Tokenized(kept, True, np.concatenate(parts)[room:], read < len(text))

    def _pieces(self, text: str) -> Iterator[str]:
        """Consecutive parts of a long text, whose ids one after the other are those of the text.

        They end where words do. What comes after 1,048,576 characters in which no word ends is left out; so is, where
        the tokenizer does not allow to begin inside a text, all that comes after the first of so many.
        """
        if not self._begins_words:
            yield self._beginning(text, LONGEST) or ""
            return
        start, size = 0, _PIECE
        while len(text) - start > size:
            ends = [match.start() for match in _PIECE_END.finditer(text, start + 1, start + size + 1)]
            if ends:
                yield text[start : ends[-1]]
                start, size = ends[-1], _PIECE
            elif size >= LONGEST:
                return
            else:
                size *= _GROWTH
        yield text[start:]

    def _tokenise_long(self, text: str, size: int, whole: bool) -> Tokenized | None:
        with self._one_long:
            while True:
                size = min(size, LONGEST)
                start = self._beginning(text, size)
                if start is not None:
                    (encoding,) = self._backend.encode_batch_fast([start], add_special_tokens=False)
                    if len(start) == len(text) or len(encoding.ids) > self._room:
                        return self._tokenized(encoding.ids, text, start, whole)
                if size == LONGEST:
                    return None
                size *= _GROWTH

    def _beginning(self, text: str, size: int) -> str | None:
        """The text, or of a longer one a beginning of at most `size` characters whose tokens are those of the text.

        It ends before a blank that stands after something else. None where there is no such blank, or where a token of
        this tokenizer may reach over one.
        """
        if len(text) <= size:
            return text
        if not self._ends_words:
            return None
        ends = [match.start() for match in _WORD_END.finditer(text, 0, size + 1)]
        return text[: ends[-1]] if ends else None

    def _special_ends(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        inner = self._backend.encode(_SAMPLE, add_special_tokens=False).ids
        whole = self._backend.encode(_SAMPLE).ids
        if not inner:
            raise UserError(f"the tokenizer has no ids for {_SAMPLE!r}; its vocabulary is not one of a language.")
        for start in range(len(whole) - len(inner) + 1):
            if whole[start : start + len(inner)] == inner:
                return tuple(whole[:start]), tuple(whole[start + len(inner) :])
        raise UserError("the tokenizer puts special tokens inside a document; only those around it are understood.")


def ends_words(tokenizer: Mapping[str, Any]) -> bool:
    """Whether the tokens of a text up to a blank depend on what stands up to there alone.

    The content of a tokenizer.json says it. So it is where letters are normalised one by one, words are told apart by
    blanks before anything else (or by the pattern of GPT-2, in which a blank begins a word), and no token that was
    added has a blank inside. It is so for the tokenizers of BERT and RoBERTa.
    """
    normalizers = _parts(tokenizer.get("normalizer"), "normalizers")
    splitters = _parts(tokenizer.get("pre_tokenizer"), "pretokenizers")
    if not splitters or not all(part["type"] in _LOCAL_NORMALIZERS for part in normalizers):
        return False
    first = splitters[0]
    by_pattern = first["type"] == "ByteLevel" and first.get("use_regex", True)
    if not by_pattern and first["type"] not in _LOCAL_SPLITTERS:
        return False
    return not any(re.search(r"\s", token["content"]) for token in tokenizer.get("added_tokens") or ())


def begins_words(tokenizer: Mapping[str, Any]) -> bool:
    """Whether also the tokens of a text from a space on depend on what stands from there on alone (see `ends_words`).

    The space is one that follows a word. It is so unless what splits the words treats the first one of a text in a way
    of its own, or a token that was added takes the blanks after it.
    """
    splitters = _parts(tokenizer.get("pre_tokenizer"), "pretokenizers")
    if not ends_words(tokenizer) or not all(part["type"] in _STEADY_SPLITTERS for part in splitters):
        return False
    return not any(token.get("rstrip") for token in tokenizer.get("added_tokens") or ())


def _parts(step: Mapping[str, Any] | None, many: str) -> list[Mapping[str, Any]]:
    """The steps of a sequence of them, however deep; of one step, itself."""
    if step is None:
        return []
    return [part for each in step[many] for part in _parts(each, many)] if step["type"] == "Sequence" else [step]


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hexadecimal SHA-256 of what decides a fast tokenizer's ids; its path, name and length settings do not enter."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content.pop("truncation", None)
    content.pop("padding", None)
    return sha256_json(content)


def load_tokenizer(model: str | Path, max_length: int = 512) -> Tokenizer:
    """The tokenizer of a model, by its folder or hub id.

    Raises:
        UserError: there is none, it cannot be read, or it is no fast one.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model), use_fast=True)
    except Exception as error:  # transformers and tokenizers raise OSError, ValueError, their own, ... for such folders
        lines = str(error).splitlines()
        reason = lines[0].rstrip(".") if lines else type(error).__name__
        raise UserError(f"the tokenizer of {model} cannot be loaded: {reason}.") from error
    try:
        return Tokenizer(tokenizer, max_length)
    except UserError as error:
        raise UserError(f"{model}: {error}") from error
