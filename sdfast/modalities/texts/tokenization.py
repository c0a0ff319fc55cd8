"""From documents to token ids, with a model's own tokenizer."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdfast.errors import UserError
from sdfast.modalities.texts.backends import PythonBackend, backend_of
from sdfast.models.hub import SENTENCEPIECE_FILES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNBOUNDED = 1 << 24  # transformers writes a huge number where a tokenizer names no greatest length
_SAMPLE = "a b"
LONGEST = 1 << 20  # characters that are tokenised of one document
_FIRST = 32  # characters for each token of room that are tokenised at first; a token has 2 to 5
_GROWTH = 4
_PIECE = 1 << 16  # characters that are tokenised at a time of a document that is kept whole
_SENTENCEPIECE = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}  # modules, and what installs them


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
    """A tokenizer with a length. Threads may share it.

    Attributes:
        tokenization: what it does.
        in_python: whether it is a class of Python, as there is none in the library tokenizers.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int = 512) -> None:
        """max_length: lowered to the tokenizer's own greatest length.

        Raises:
            UserError: a tokenizer of another library, or one whose special tokens leave no room.
        """
        self._backend = backend_of(tokenizer)
        self.in_python = isinstance(self._backend, PythonBackend)
        if tokenizer.model_max_length < UNBOUNDED:
            max_length = min(max_length, int(tokenizer.model_max_length))
        self._ends, self._begins = self._backend.ends, self._backend.begins
        self._one_long = threading.RLock()  # a long document takes up to 1 GB while it is tokenised
        prefix, suffix = self._special_ends()
        self.tokenization = Tokenization(
            tokenizer=self._backend.digest,
            vocabulary=max(self._backend.vocabulary.values()) + 1,
            max_length=max_length,
            prefix=prefix,
            suffix=suffix,
            special_ids=tuple(sorted(set(tokenizer.all_special_ids))),
            mask_id=tokenizer.mask_token_id,
            pad_id=tokenizer.pad_token_id,
        )
        self._check_room()

    def limited(self, max_length: int) -> Tokenizer:
        """The same with at most so many tokens of a document.

        Raises:
            UserError: its special tokens leave no room.
        """
        limited = copy.copy(self)
        limited.tokenization = replace(self.tokenization, max_length=min(max_length, self.tokenization.max_length))
        limited._check_room()
        return limited

    def __call__(self, texts: Sequence[str], whole: bool = False) -> list[Tokenized | None]:
        """Tokenise documents, as transformers does with truncation, without padding; a fast one in threads of its own.

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
        encoded = self._backend.encode([start or "" for start in starts])
        for text, start, ids in zip(texts, starts, encoded, strict=True):
            if start is None or (len(start) < len(text) and len(ids) <= self._room):
                found.append(self._tokenise_long(text, _GROWTH * size, whole))
            else:
                found.append(self._tokenized(ids, text, start, whole))
        return found

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Ids by token, those that were added too."""
        return self._backend.vocabulary

    @property
    def own_words(self) -> int:
        """Ids of the vocabulary itself lie in [0, own_words); those beyond are of tokens that were added."""
        own = (number for token, number in self.vocabulary.items() if token not in self._backend.added)
        return max(own, default=-1) + 1

    def has_word(self, word: str) -> bool:
        """Whether a word is one token already, at the beginning of a text or after a space."""
        special = self.tokenization.special_ids
        encoded = self._backend.encode([word, f" {word}"])
        return word in self.vocabulary or any(len(ids) == 1 and ids[0] not in special for ids in encoded)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens too; as near to the document as its ids tell."""
        return self._backend.decode(ids)

    def word_table(self) -> NDArray[np.bool_] | None:
        """[V, 2] bool, by id: whether a token continues the word of the one before, and whether the next one does.

        None where the tokenizer does not tell where words begin.
        """
        return self._backend.word_table()

    def _check_room(self) -> None:
        if self._room <= 0:
            length = self.tokenization.max_length
            raise UserError(f"data.max_length={length} leaves no room beside the tokenizer's special tokens.")

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
        with contextlib.nullcontext() if self._begins else self._one_long:
            for piece in self._pieces(text):
                parts.append(np.array(self._backend.encode([piece])[0], np.int32))
                read += len(piece)
        return Tokenized(kept, True, np.concatenate(parts)[room:], read < len(text))

    def _pieces(self, text: str) -> Iterator[str]:
        """Consecutive parts of a long text, whose ids one after the other are those of the text.

        They end where words do. What comes after 1,048,576 characters in which no word ends is left out; so is, where
        the tokenizer does not allow to begin inside a text, all that comes after the first of so many.
        """
        if self._begins is None:
            yield self._beginning(text, LONGEST) or ""
            return
        start, size = 0, _PIECE
        while len(text) - start > size:
            ends = [match.start() for match in self._begins.finditer(text, start + 1, start + size + 1)]
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
                    (ids,) = self._backend.encode([start])
                    if len(start) == len(text) or len(ids) > self._room:
                        return self._tokenized(ids, text, start, whole)
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
        if self._ends is None:
            return None
        ends = [match.start() for match in self._ends.finditer(text, 0, size + 1)]
        return text[: ends[-1]] if ends else None

    def _special_ends(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        (inner,), whole = self._backend.encode([_SAMPLE]), self._backend.encode_whole(_SAMPLE)
        if not inner:
            raise UserError(f"the tokenizer has no ids for {_SAMPLE!r}; its vocabulary is not one of a language.")
        for start in range(len(whole) - len(inner) + 1):
            if whole[start : start + len(inner)] == inner:
                return tuple(whole[:start]), tuple(whole[start + len(inner) :])
        raise UserError("the tokenizer puts special tokens inside a document; only those around it are understood.")


def load_tokenizer(model: str | Path, max_length: int = 512) -> Tokenizer:
    """The tokenizer of a model, by its folder or hub id.

    Raises:
        UserError: there is none, it cannot be read, or what reads it is not installed.
    """
    from transformers import AutoTokenizer

    _check_sentencepiece(Path(model))
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model), use_fast=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise OSError, ValueError, their own, ... for such folders
        lines = str(error).splitlines()
        reason = lines[0].rstrip(".") if lines else type(error).__name__
        raise UserError(f"the tokenizer of {model} cannot be loaded: {reason}.") from error
    try:
        return Tokenizer(tokenizer, max_length)
    except UserError as error:
        raise UserError(f"{model}: {error}") from error


def _check_sentencepiece(folder: Path) -> None:
    """Whether what reads a model of sentencepiece is installed, where a folder has nothing else.

    Raises:
        UserError: it is not.
    """
    found = [name for name in SENTENCEPIECE_FILES if (folder / name).is_file()]
    if not found or (folder / "tokenizer.json").is_file():
        return
    if lacking := [package for module, package in _SENTENCEPIECE.items() if not _is_installed(module)]:
        raise UserError(
            f"the tokenizer of {folder} is a model of sentencepiece ({found[0]}), and reading it needs "
            f"`pip install {' '.join(lacking)}`."
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False
