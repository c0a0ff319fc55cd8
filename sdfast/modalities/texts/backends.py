"""What a tokenizer of transformers runs in: the library tokenizers, or Python where a model has nothing faster."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from sdfast.durable import sha256_json
from sdfast.errors import UserError
from sdfast.modalities.texts.word_ends import word_begins, word_ends, word_ends_in_python
from sdfast.modalities.texts.word_table import Sign, sign_in, sign_of, word_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


class Backend(Protocol):
    """A tokenizer that neither cuts nor pads. Threads may share it.

    Attributes:
        ends, begins: see `sdfast.modalities.texts.word_ends`.
        digest: hexadecimal SHA-256 of what decides the ids; paths, names and length settings do not enter.
        vocabulary: ids by token, those that were added too.
        added: tokens that were added to the vocabulary, or are marked in it.
    """

    ends: re.Pattern[str] | None
    begins: re.Pattern[str] | None
    digest: str
    vocabulary: Mapping[str, int]
    added: Collection[str]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of some texts, without special tokens around them."""
        ...

    def encode_whole(self, text: str) -> list[int]:
        """The ids of a text with special tokens around them."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens too."""
        ...

    def word_table(self) -> NDArray[np.bool_] | None:
        """[V, 2] bool, see `sdfast.modalities.texts.word_table`; None where the tokenizer shows no words."""
        ...


class FastBackend:
    """A `Backend` in the library tokenizers, with its own threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        from tokenizers import Tokenizer as Tokenizers

        # A copy: truncation and padding are the caller's settings on the original, and are not wanted here.
        text = tokenizer.backend_tokenizer.to_str()
        self.copy = Tokenizers.from_str(text)
        self.copy.no_truncation()
        self.copy.no_padding()
        content = json.loads(text)
        self.digest = _content_digest(content)
        self.added: Collection[str] = {token["content"] for token in content["added_tokens"]}
        self.ends, self.begins, self._sign = word_ends(content), word_begins(content), sign_of(content)
        self.vocabulary: Mapping[str, int] = self.copy.get_vocab(with_added_tokens=True)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """As `Backend.encode`."""
        return [found.ids for found in self.copy.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_whole(self, text: str) -> list[int]:
        """As `Backend.encode_whole`."""
        return self.copy.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """As `Backend.decode`."""
        return self.copy.decode(list(ids), skip_special_tokens=False)

    def word_table(self) -> NDArray[np.bool_] | None:
        """As `Backend.word_table`."""
        return _table(self._sign, self.vocabulary, self.added)


class PythonBackend:
    """A `Backend` that is a class of Python (PhoBERT's, BERTweet's), one text after the other."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._one = cast(Any, tokenizer), threading.Lock()  # it keeps words that it has seen
        self.added: Collection[str] = set(self._tokenizer.get_added_vocab())
        normalises = bool(getattr(tokenizer, "normalization", False))
        self.ends = self.begins = word_ends_in_python(type(tokenizer).__name__, normalises, self.added)
        self.digest = tokenizer_digest(tokenizer)
        self.vocabulary: Mapping[str, int] = self._tokenizer.get_vocab()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """As `Backend.encode`."""
        with self._one:
            return [self._tokenizer.convert_tokens_to_ids(self._tokenizer.tokenize(text)) for text in texts]

    def encode_whole(self, text: str) -> list[int]:
        """As `Backend.encode_whole`."""
        return self._tokenizer.build_inputs_with_special_tokens(self.encode([text])[0])

    def decode(self, ids: Sequence[int]) -> str:
        """As `Backend.decode`."""
        tokens = [str(each) for each in self._tokenizer.convert_ids_to_tokens(list(ids))]
        return str(self._tokenizer.convert_tokens_to_string(tokens))

    def word_table(self) -> NDArray[np.bool_] | None:
        """As `Backend.word_table`."""
        return _table(sign_in(self.vocabulary), self.vocabulary, self.added)


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Backend:
    """What a tokenizer runs in.

    Raises:
        UserError: it is none of transformers.
    """
    if getattr(tokenizer, "is_fast", False):
        return FastBackend(cast("PreTrainedTokenizerFast", tokenizer))
    if not hasattr(tokenizer, "build_inputs_with_special_tokens"):
        raise UserError(f"{type(tokenizer).__name__} is no tokenizer of transformers; save one beside the model.")
    return PythonBackend(tokenizer)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hexadecimal SHA-256 of what decides a tokenizer's ids; its path, name and length settings do not enter.

    Of one in Python that are its class, the bytes of its files, its vocabulary with what was added, and its settings.
    """
    if getattr(tokenizer, "is_fast", False):
        return _content_digest(json.loads(cast("PreTrainedTokenizerFast", tokenizer).backend_tokenizer.to_str()))
    slow = cast(Any, tokenizer)
    known = [name for name in inspect.signature(type(slow).__init__).parameters if name in slow.init_kwargs]
    emoji = getattr(slow, "normalization", False) and getattr(slow, "demojizer", None)  # a package that may be missing
    files = {name: getattr(slow, name, None) for name in slow.vocab_files_names}
    return sha256_json(
        {
            "class": type(slow).__name__,
            "files": {
                name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in files.items() if path
            },
            "vocabulary": slow.get_vocab(),
            "added": {str(number): _flags(token) for number, token in slow.added_tokens_decoder.items()},
            "special": {name: str(token) for name, token in slow.special_tokens_map.items()},
            "settings": {name: str(slow.init_kwargs[name]) for name in known if name not in files},
            "emoji": bool(emoji),
        }
    )


def _content_digest(content: Mapping[str, Any]) -> str:
    return sha256_json({key: value for key, value in content.items() if key not in ("truncation", "padding")})


def _flags(token: Any) -> dict[str, Any]:
    return {key: getattr(token, key) for key in ("content", "single_word", "lstrip", "rstrip", "normalized")}


def _table(sign: Sign | None, vocabulary: Mapping[str, int], whole: Collection[str]) -> NDArray[np.bool_] | None:
    return None if sign is None else word_table(sign, vocabulary, whole)
