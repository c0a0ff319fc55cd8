"""Texts as numbers for a linear classifier: the words in them, what they say without a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sdfast.modalities.texts.pack import TextSplit
from sdfast.modalities.texts.tokenization import Tokenizer

MOST_WORDS = 4096
_WORD = re.compile(r"\w+")


class TfIdf:
    """How often each word is in a text, a word of few texts counting more (G. Salton, C. Buckley, 1988).

    A word that is in a text tf times has (1 + ln tf) * idf there, and each text is scaled to length 1. Of N texts that
    are known, df of which have the word, idf is ln((1 + N) / (1 + df)) + 1: TfidfVectorizer(sublinear_tf=True) of
    scikit-learn, with words of one character too.

    Attributes:
        words: number of each; those in the most texts, at most `MOST_WORDS`, of equally many the first by the alphabet.
        idf: [V] float32.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """texts: from which the words are known."""
        found = Counter(word for text in texts for word in set(words_of(text)))
        known = sorted(sorted(found), key=lambda word: -found[word])[:MOST_WORDS]
        self.words = {word: number for number, word in enumerate(known)}
        counts = np.array([found[word] for word in known])
        self.idf = (np.log((1 + len(texts)) / (1 + counts)) + 1).astype(np.float32)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """[n, V] float32; 0 in the whole row of a text without a known word."""
        values = np.zeros((len(texts), len(self.words)), np.float32)
        for row, text in enumerate(texts):
            for word, count in Counter(words_of(text)).items():
                if (number := self.words.get(word)) is not None:
                    values[row, number] = 1 + np.log(count)
        values *= self.idf
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        return torch.from_numpy(values / np.where(lengths > 0, lengths, 1))


def words_of(text: str) -> list[str]:
    """Runs of letters, digits and underscores, in lower case."""
    return _WORD.findall(text.lower())


def readable(tokenizer: Tokenizer, special: Sequence[int], whole: bool) -> Callable[[TextSplit, Tensor], list[str]]:
    """What gives the texts of some rows, as their ids tell them.

    Args:
        tokenizer: of the pack.
        special: ids that are no part of a text.
        whole: with what follows in documents that are longer than a row, where it is kept.
    """
    dropped = frozenset(special)

    def texts(split: TextSplit, rows: Tensor) -> list[str]:
        found = []
        for row in rows.tolist():
            ids = split.ids[split.offsets[row] : split.offsets[row + 1]].tolist()
            if whole and split.rest is not None and split.rest_offsets is not None:
                ids += split.rest[split.rest_offsets[row] : split.rest_offsets[row + 1]].tolist()
            found.append(tokenizer.decode([each for each in ids if each not in dropped]))
        return found

    return texts
