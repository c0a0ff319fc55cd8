"""Small models of text and small labelled texts, written by sdfast's own parts."""

from __future__ import annotations

import json
from pathlib import Path

from pre_norm_shapes import pre_norm_shape
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sdfast.modalities.texts.checkpoint import Companions, fresh_mlm, save_mlm
from sdfast.modalities.texts.families import FAMILIES
from sdfast.modalities.texts.kinds import TRAITS
from sdfast.modalities.texts.model import Dropouts, TextShape
from sdfast.models.blocks import TransformerShape
from sdfast.models.hub import TOKENIZER_FILES
from sdfast.rng import derive_seed

WORDS = [f"word{number}" for number in range(40)]
SPECIAL = {
    "roberta": {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"},
    "bert": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
}
FEW_STEPS = (
    "pretrain.steps=6",
    "distill.steps=6",
    "finetune.steps=6",
    "pretrain.batch_size=8",
    "distill.batch_size=8",
    "finetune.batch_size=8",
)


def write_tokenizer(folder: Path, kind: str = "roberta") -> int:
    """A tokenizer of whole words; how many there are."""
    special = _special(kind)
    vocabulary = {word: number for number, word in enumerate((*special.values(), *WORDS))}
    backend = Backend(models.WordLevel(vocabulary, unk_token=special["unk"]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    cls, sep = ((special[name], vocabulary[special[name]]) for name in ("cls", "sep"))
    backend.post_processor = processors.BertProcessing(sep, cls)
    names = {f"{name}_token": token for name, token in special.items()}
    PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=40, **names).save_pretrained(folder)
    return len(vocabulary)


def _special(kind: str) -> dict[str, str]:
    return SPECIAL["roberta" if TRAITS[kind].behind_padding else "bert"]


def write_text_model(folder: Path, kind: str = "roberta", dropout: float = 0.1, words: int | None = None) -> Path:
    """A small model of a kind with its tokenizer; with so many words, or as many as that has."""
    folder.mkdir(parents=True)
    count = max(write_tokenizer(folder, kind), words or 0)
    pad = list(_special(kind)).index("pad")
    fixed = {"types": 1 if TRAITS[kind].behind_padding else 2, "norm_eps": 1e-5, **FAMILIES[kind].fixed}
    fixed |= {"embedding": 24} if kind == "electra" else {}
    encoder = TransformerShape(32, 2, 2, 48)
    shape = TextShape(kind, count, 43, pad_id=pad, encoder=encoder, **fixed)
    if FAMILIES[kind].pre_norm is not None:
        shape = pre_norm_shape(kind, count, 43, pad, encoder)
    tokenizer = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    dropouts = Dropouts(dropout, dropout)
    save_mlm(fresh_mlm(shape, 0, dropouts), folder, Companions({}, tokenizer), dropouts)
    return folder


def text(number: int, label: int) -> str:
    """3 to 60 words, half of them of the class."""
    count = 3 + derive_seed(number, "length") % 58
    words = [derive_seed(number, "word", place) for place in range(count)]
    return " ".join(WORDS[(word % 8 + 8 * label) if word % 2 else word % 40] for word in words)


def write_texts(folder: Path, train: int = 24, test: int = 12, classes: int = 2, dev: int = 0) -> Path:
    """`train.jsonl` and `test.jsonl`, and `dev.jsonl` where it shall have texts."""
    folder.mkdir(parents=True)
    for split, count, first in (("train", train, 0), ("test", test, 10_000), ("dev", dev, 20_000)):
        if not count:
            continue
        rows = [
            {"text": text(first + number, number % classes), "label": f"class{number % classes}"}
            for number in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
