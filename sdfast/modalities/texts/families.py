"""The families of text models: Hugging Face's BERT and RoBERTa.

Facts on names: transformers 4.57 and 5.23 (modeling_bert.py, modeling_roberta.py). The last matrix of the language
model head is that of the word embeddings and is not stored, as transformers does it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdfast.errors import UserError
from sdfast.modalities.texts.model import Dropouts, TextShape
from sdfast.models.blocks import TransformerShape
from sdfast.models.folder import COUNT, EPSILON, GELU_ONLY, SHARE, TEXTS_TAKEN, Family, Field, Kind, Settings, Source
from sdfast.models.initialise import STD
from sdfast.models.layout import Names, Naming, blocks
from sdfast.models.weights import read_config, read_weights

_ENCODER: Names = {
    "encoder.word_embeddings": ["embeddings.word_embeddings"],
    "encoder.position_embeddings": ["embeddings.position_embeddings"],
    "encoder.type_embeddings": ["embeddings.token_type_embeddings"],
    "encoder.norm": ["embeddings.LayerNorm"],
    **blocks(
        "encoder.blocks",
        ["encoder.layer"],
        {
            "attn.qkv": ["attention.self.(query|key|value)"],
            "attn.proj": ["attention.output.dense"],
            "norm1": ["attention.output.LayerNorm"],
            "fc1": ["intermediate.dense"],
            "fc2": ["output.dense"],
            "norm2": ["output.LayerNorm"],
        },
    ),
}
_WANTED = "a plain BERT or RoBERTa (no adapters, other heads or other blocks)"
_LEAVES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}  # the last two: BERT's first release
_ROBERTA = Naming(
    prefix="roberta.",
    names={
        **_ENCODER,
        "head.dense": ["lm_head.dense"],
        "head.norm": ["lm_head.layer_norm"],
        "head.bias": ["lm_head.bias"],
        "dense": ["classifier.dense"],
        "classifier": ["classifier.out_proj"],
    },
    ignored=re.compile(r"(roberta\.)?(pooler|classifier|lm_head)\.|(roberta\.)?embeddings\.position_ids$"),
    wanted=_WANTED,
    leaves=_LEAVES,
)
_BERT = Naming(
    prefix="bert.",
    names={
        **_ENCODER,
        "head.dense": ["cls.predictions.transform.dense"],
        "head.norm": ["cls.predictions.transform.LayerNorm"],
        "head.bias": ["cls.predictions.bias"],
        "dense": ["bert.pooler.dense", "pooler.dense"],  # the second is what is looked up, without the prefix
        "classifier": ["classifier"],
    },
    ignored=re.compile(r"(bert\.)?(pooler|classifier|cls)\.|(bert\.)?embeddings\.position_ids$"),
    wanted=_WANTED,
    leaves=_LEAVES,
)
_REFUSED: Mapping[str, tuple[Any, str]] = {
    **GELU_ONLY,
    "position_embedding_type": ("absolute", "asks for {value} positions: sdfast has absolute ones only"),
    "is_decoder": (False, "describes a decoder, which sees no later words: give an encoder"),
}
FAMILIES: Mapping[str, Family] = {
    "bert": Family("Bert", _BERT, _REFUSED, defaults={"vocab_size": 30522, "pad_token_id": 0}, head="cls.predictions."),
    "roberta": Family(
        "Roberta", _ROBERTA, _REFUSED, defaults={"vocab_size": 50265, "pad_token_id": 1}, head="lm_head."
    ),
}
SHAPE = (
    Field("vocab_size", "vocabulary"),
    Field("max_position_embeddings", "positions", COUNT, 512),
    Field("type_vocab_size", "types", COUNT, 2),
    Field("layer_norm_eps", "norm_eps", EPSILON, 1e-12),
)
DROPOUTS = (
    Field("hidden_dropout_prob", "hidden", SHARE, 0.1),
    Field("attention_probs_dropout_prob", "attention", SHARE, 0.1),
    Field(
        "classifier_dropout",
        "classifier",
        Kind(
            SHARE.words,
            lambda value: value is None or SHARE.holds(value),
            lambda value: None if value is None else float(value),
        ),
    ),
)


@dataclass(frozen=True)
class TextSource(Source):
    """A text model's folder."""

    dropouts: Dropouts


def describe(folder: Path) -> TextSource:
    """Sizes, naming and dropouts of the checkpoint in a folder.

    Raises:
        UserError: the architecture is none that sdfast takes, or a field is missing or makes no sense, or a file cannot
            be read.
    """
    settings = Settings(read_config(folder), folder / "config.json")
    family = settings.family(FAMILIES, TEXTS_TAKEN)
    full = Settings({**family.defaults, **settings.values}, settings.path)
    encoder, sizes = TransformerShape(**full.read(family.stack)), full.read(SHAPE)
    words = sizes["vocabulary"]
    word = Kind(
        f"one of the {words} words or null",
        lambda value: value is None or (type(value) is int and 0 <= value < words),
    )
    kind, pad_id = settings.values["model_type"], full.get("pad_token_id", word)
    shape = TextShape(kind=kind, pad_id=pad_id, encoder=encoder, **sizes)
    settings.check_heads(encoder)
    if shape.longest < 1:
        raise UserError(f"{settings.path} is inconsistent: {shape.positions} positions leave none for a token.")
    dropouts, weights = Dropouts(**settings.read(DROPOUTS)), read_weights(folder)
    settings.check_budget(shape.parameters, encoder.depth, weights)
    notes = settings.unheeded({"initializer_range": STD})
    if settings.values.get("tie_word_embeddings") is False:
        notes.append("not followed: tie_word_embeddings=False of config.json; the head shares the embeddings' matrix.")
    return TextSource(settings, weights, family, shape, notes, dropouts)
