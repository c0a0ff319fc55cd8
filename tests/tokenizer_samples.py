"""Tiny tokenizers of the kinds that are more than a tokenizer.json: sentencepiece's, and those of Python alone."""

from __future__ import annotations

import collections
import io
import itertools
import json
from pathlib import Path

CLASSES = {"xlm-roberta": "XLMRobertaTokenizer", "camembert": "CamembertTokenizer"}
WORDS = (
    *(
        "the",
        "cell",
        "protein",
        "binds",
        "receptor",
        "kinase",
        "gene",
        "model",
        "parser",
        "grammar",
        "corpus",
        "speech",
    ),
    *(
        "translation",
        "sentence",
        "word",
        "image",
        "result",
        "method",
        "we",
        "show",
        "that",
        "this",
        "paper",
        "of",
        "in",
    ),
)
SENTENCES = [
    " ".join(WORDS[(number * 7 + place**2) % len(WORDS)] for place in range(12)).capitalize() + "."
    for number in range(120)
]


def write_sentencepiece(folder: Path, kind: str = "xlm-roberta", rule: str = "nmt_nfkc") -> Path:
    """A folder with the sentencepiece model of XLM-R or CamemBERT, and nothing else of the tokenizer."""
    import sentencepiece

    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=content,
        vocab_size=80,
        model_type="unigram",
        normalization_rule_name=rule,
        minloglevel=3,
    )
    folder.mkdir(parents=True)
    (folder / "sentencepiece.bpe.model").write_bytes(content.getvalue())
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta", "tokenizer_class": CLASSES[kind]}))
    return folder


def write_python(folder: Path, name: str = "PhobertTokenizer") -> Path:
    """A folder with the two files of PhoBERT's or BERTweet's tokenizer: pieces, and the merges that make them."""
    merges, sequences = list[tuple[str, str]](), {word: (*word[:-1], f"{word[-1]}</w>") for word in WORDS}
    for _ in range(40):
        pairs = collections.Counter(pair for word in sequences.values() for pair in itertools.pairwise(word))
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        sequences = {word: _merged(parts, merges[-1]) for word, parts in sequences.items()}
    letters = "abcdefghijklmnopqrstuvwxyzTWK.,!"
    symbols = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    pieces = dict.fromkeys(each[:-4] if each.endswith("</w>") else f"{each}@@" for each in symbols)
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("".join(f"{piece} 1\n" for piece in pieces))
    (folder / "bpe.codes").write_text("".join(f"{a} {b} 1\n" for a, b in merges))
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta", "tokenizer_class": name}))
    return folder


def _merged(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    found = list[str]()
    for part in parts:
        if found and (found[-1], part) == pair:
            found[-1] += part
        else:
            found.append(part)
    return tuple(found)
