"""Tiny tokenizers and texts for the tests of sdfast.data, made anew for every test."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = (
    *("the", "cell", "protein", "binds", "receptor", "kinase", "gene", "model", "parser", "grammar", "corpus"),
    *("translation", "sentence", "speech", "word", "image", "result", "method", "we", "show", "that", "this", "paper"),
    *("of", "in", "and", "to", "with", "for", "by"),
)


def sentence(number: int, words: int = 6) -> str:
    """A sentence of some words; other numbers, other sentences (up to 30 to the power of 3)."""
    count = len(WORDS)
    digits = (number % count, number // count % count, number // count**2 % count)
    return " ".join(WORDS[(digits[index % 3] + index // 3) % count] for index in range(words)).capitalize() + "."


def bert_tokenizer(texts: Iterable[str] = (), vocabulary: int = 120, **options: Any) -> PreTrainedTokenizerFast:
    """A small uncased WordPiece tokenizer with BERT's special tokens."""
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    backend.train_from_iterator([*texts, " ".join(WORDS)], trainer)
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **options)


def roberta_tokenizer(texts: Iterable[str] = (), vocabulary: int = 300, **options: Any) -> PreTrainedTokenizerFast:
    """A small cased byte-level BPE tokenizer with RoBERTa's special tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*texts, " ".join(WORDS)], trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="<s>", sep_token="</s>", **names, **options)


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """A file of one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def records(count: int, classes: int = 2, first: int = 0) -> list[dict[str, Any]]:
    """`count` distinct labelled documents with the fields of dont-stop-pretraining."""
    return [
        {"text": sentence(first + index), "label": f"class {index % classes}", "metadata": [index]}
        for index in range(count)
    ]


def write_splits(root: Path, train: int = 6, dev: int = 2, test: int = 2, classes: int = 2) -> Path:
    """A folder as dont-stop-pretraining has them: train.jsonl, dev.jsonl and test.jsonl, no document twice."""
    write_json_lines(root / "train.jsonl", records(train, classes))
    write_json_lines(root / "dev.jsonl", records(dev, classes, 10_000))
    write_json_lines(root / "test.jsonl", records(test, classes, 20_000))
    return root
