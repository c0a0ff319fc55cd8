"""The families of text models: Hugging Face's BERT and RoBERTa.

Facts on names: transformers 4.57 and 5.23 (modeling_bert.py, modeling_roberta.py). The last matrix of the language
model head is that of the word embeddings and is not stored, as transformers does it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdfast.errors import UserError
from sdfast.models.blocks import TransformerShape
from sdfast.models.family import COUNT, EPSILON, GELU_ONLY, SHARE, TEXTS_TAKEN, Family, Field, Kind, Settings
from sdfast.models.layout import Naming, Target
from sdfast.models.text import Dropouts, TextShape

_EMBEDDINGS = {
    "embeddings.word_embeddings": "encoder.word_embeddings",
    "embeddings.position_embeddings": "encoder.position_embeddings",
    "embeddings.token_type_embeddings": "encoder.type_embeddings",
    "embeddings.LayerNorm": "encoder.norm",
}
_COMMON: dict[str, Any] = {
    "block_lists": (("encoder.layer", "encoder.blocks"),),
    "block_parts": {
        "attention.self.query": Target("attn.qkv", 0),
        "attention.self.key": Target("attn.qkv", 1),
        "attention.self.value": Target("attn.qkv", 2),
        "attention.output.dense": Target("attn.proj"),
        "attention.output.LayerNorm": Target("norm1"),
        "intermediate.dense": Target("fc1"),
        "output.dense": Target("fc2"),
        "output.LayerNorm": Target("norm2"),
    },
    # BERT's first release has LayerNorms with gamma and beta.
    "leaves": {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"},
    "wanted": "a plain BERT or RoBERTa (no adapters, other heads or other blocks)",
}
_ROBERTA = Naming(
    prefix="roberta.",
    plain={
        **_EMBEDDINGS,
        "lm_head.dense": "head.dense",
        "lm_head.layer_norm": "head.norm",
        "classifier.dense": "dense",
        "classifier.out_proj": "classifier",
    },
    parameters={"lm_head.bias": "head.bias"},
    ignored=re.compile(r"(roberta\.)?(pooler|classifier|lm_head)\.|(roberta\.)?embeddings\.position_ids$"),
    **_COMMON,
)
_BERT = Naming(
    prefix="bert.",
    plain={
        **_EMBEDDINGS,
        "cls.predictions.transform.dense": "head.dense",
        "cls.predictions.transform.LayerNorm": "head.norm",
        "bert.pooler.dense": "dense",
        "pooler.dense": "dense",  # what is looked up, without the prefix
        "classifier": "classifier",
    },
    parameters={"cls.predictions.bias": "head.bias"},
    ignored=re.compile(r"(bert\.)?(pooler|classifier|cls)\.|(bert\.)?embeddings\.position_ids$"),
    **_COMMON,
)
_REFUSED: Mapping[str, tuple[Any, str]] = {
    **GELU_ONLY,
    "position_embedding_type": ("absolute", "asks for {value} positions: sdfast has absolute ones only"),
    "is_decoder": (False, "describes a decoder, which sees no later words: give an encoder"),
}
FAMILIES: Mapping[str, Family] = {
    "bert": Family(
        "Bert", _BERT, defaults={"vocab_size": 30522, "pad_token_id": 0}, refused=_REFUSED, head="cls.predictions."
    ),
    "roberta": Family(
        "Roberta", _ROBERTA, defaults={"vocab_size": 50265, "pad_token_id": 1}, refused=_REFUSED, head="lm_head."
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


def describe(config: Mapping[str, Any], folder: Path) -> tuple[TextShape, Dropouts]:
    """Sizes and dropouts of the checkpoint in `folder`.

    Raises:
        UserError: the architecture is none that sdfast takes, or a field is missing or makes no sense.
    """
    settings = Settings(config, folder / "config.json")
    family = settings.family(FAMILIES, TEXTS_TAKEN)
    full = Settings({**family.defaults, **config}, settings.path)
    encoder, sizes = TransformerShape(**full.read(family.stack)), full.read(SHAPE)
    words = sizes["vocabulary"]
    word = Kind(
        f"one of the {words} words or null",
        lambda value: value is None or (type(value) is int and 0 <= value < words),
    )
    pad_id = full.get("pad_token_id", word)
    shape = TextShape(kind=config["model_type"], pad_id=pad_id, encoder=encoder, **sizes)
    settings.check_heads(encoder)
    if shape.longest < 1:
        raise UserError(f"{settings.path} is inconsistent: {shape.positions} positions leave none for a token.")
    return shape, Dropouts(**settings.read(DROPOUTS))
