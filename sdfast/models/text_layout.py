"""Names of tensors in Hugging Face's BERT and RoBERTa, and ours (`sdfast.models.text`).

Facts on names: transformers 4.57 and 5.23 (modeling_bert.py, modeling_roberta.py). The last matrix of the language
model head is that of the word embeddings and is not stored, as transformers does it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdfast.models.layout import Naming, Target
from sdfast.models.weights import Weights

_BLOCKS = {
    "attention.self.query": Target("attn.qkv", 0),
    "attention.self.key": Target("attn.qkv", 1),
    "attention.self.value": Target("attn.qkv", 2),
    "attention.output.dense": Target("attn.proj"),
    "attention.output.LayerNorm": Target("norm1"),
    "intermediate.dense": Target("fc1"),
    "output.dense": Target("fc2"),
    "output.LayerNorm": Target("norm2"),
}
_EMBEDDINGS = {
    "embeddings.word_embeddings": "encoder.word_embeddings",
    "embeddings.position_embeddings": "encoder.position_embeddings",
    "embeddings.token_type_embeddings": "encoder.type_embeddings",
    "embeddings.LayerNorm": "encoder.norm",
}
_COMMON: dict[str, Any] = {
    "block_lists": (("encoder.layer", "encoder.blocks"),),
    "block_parts": _BLOCKS,
    "wanted": "a plain BERT or RoBERTa (no adapters, other heads or other blocks)",
}
ROBERTA = Naming(
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
BERT = Naming(
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
NAMINGS: Mapping[str, Naming] = {"bert": BERT, "roberta": ROBERTA}
HEADS = {"bert": "cls.predictions.", "roberta": "lm_head."}


def with_new_names(weights: Weights) -> Weights:
    """The same tensors, LayerNorms that were stored as `gamma` and `beta` (BERT's first release) renamed."""
    old = {"gamma": "weight", "beta": "bias"}

    def renamed(name: str) -> str:
        stem, _, leaf = name.rpartition(".")
        return f"{stem}.{old[leaf]}" if leaf in old and stem.endswith("LayerNorm") else name

    tensors = {renamed(name): tensor for name, tensor in weights.tensors.items()}
    return replace(weights, tensors=tensors, files={renamed(name): path for name, path in weights.files.items()})
