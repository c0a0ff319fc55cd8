"""From documents to token ids, with a model's own fast tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
    """One document: its ids ([t] int32, special tokens included), and whether it was longer."""

    ids: NDArray[np.int32]
    truncated: bool


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

    def __call__(self, texts: Sequence[str]) -> list[Tokenized]:
        """Tokenise documents, in the library's own threads; as transformers does with truncation, without padding."""
        how = self.tokenization
        room = how.max_length - len(how.prefix) - len(how.suffix)
        found = []
        for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False):
            ids = encoding.ids
            found.append(Tokenized(np.array((*how.prefix, *ids[:room], *how.suffix), np.int32), len(ids) > room))
        return found

    def _special_ends(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        inner = self._backend.encode(_SAMPLE, add_special_tokens=False).ids
        whole = self._backend.encode(_SAMPLE).ids
        if not inner:
            raise UserError(f"the tokenizer has no ids for {_SAMPLE!r}; its vocabulary is not one of a language.")
        for start in range(len(whole) - len(inner) + 1):
            if whole[start : start + len(inner)] == inner:
                return tuple(whole[:start]), tuple(whole[start + len(inner) :])
        raise UserError("the tokenizer puts special tokens inside a document; only those around it are understood.")


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
    return Tokenizer(tokenizer, max_length)
