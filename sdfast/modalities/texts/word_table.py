"""Which tokens are one word, as a table over the vocabulary: what whole-word masking goes by.

The signs are those of the tokenizers: WordPiece's `##` before what continues a word, the space that byte-level BPE and
sentencepiece have in what begins one, and `@@` or the lack of `</w>` at the end of what is continued. So a word of
WordPiece ends at a punctuation mark, and one of the others at a blank, as in Google's BERT and in fairseq.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.modalities.texts.word_ends import parts_of

Sign = Callable[[str], tuple[bool, bool]]
"""Whether a token continues the word of the one before it, and whether the next one continues its word."""
_BLANK_BYTES = ("\u0120", "\u010a", "\u0109", "\u010d")  # space, line feed, tab, carriage return in byte-level BPE


def word_table(sign: Sign, vocabulary: Mapping[str, int], whole: Collection[str]) -> NDArray[np.bool_]:
    """[V, 2] bool, by id: the two of `Sign`.

    Args:
        sign: of the tokenizer.
        vocabulary: ids by token.
        whole: tokens that are words of their own, whatever they look like: those that were added.
    """
    table = np.zeros((max(vocabulary.values()) + 1, 2), np.bool_)
    for token, number in vocabulary.items():
        if token not in whole:
            table[number] = sign(token)
    return table


def sign_of(tokenizer: Mapping[str, Any]) -> Sign | None:
    """The sign of a tokenizer by the content of its tokenizer.json; None where it has none."""
    model = tokenizer["model"]
    splitters = parts_of(tokenizer.get("pre_tokenizer"), "pretokenizers")
    kinds = {part["type"]: part for part in (*splitters, *parts_of(tokenizer.get("normalizer"), "normalizers"))}
    if model["type"] == "WordLevel":
        return lambda token: (False, False)
    if "ByteLevel" in kinds:
        return lambda token: (not token.startswith(_BLANK_BYTES), False)
    if "Metaspace" in kinds:
        return _begun_by(kinds["Metaspace"].get("replacement", "\u2581"))
    if prefix := model.get("continuing_subword_prefix"):
        return _continued_by(prefix)
    if suffix := model.get("end_of_word_suffix"):
        return lambda token: (False, not token.endswith(suffix))
    return None


def sign_in(vocabulary: Collection[str]) -> Sign | None:
    """The sign of a tokenizer that is a class of Python, by what its tokens look like; None where they show none."""
    if any(re.search(r".@@$", token) for token in vocabulary):
        return lambda token: (False, token.endswith("@@"))
    if any(token.startswith("##") for token in vocabulary):
        return _continued_by("##")
    return _begun_by("\u2581") if any(token.startswith("\u2581") for token in vocabulary) else None


def _begun_by(sign: str) -> Sign:
    return lambda token: (not token.startswith(sign), False)


def _continued_by(prefix: str) -> Sign:
    return lambda token: (token.startswith(prefix) and token != prefix, False)
