"""ELECTRA, generator and discriminator: embeddings of a width of their own, which the language-model head has, too.

Facts on names: transformers 4.57 and 5.23 (modeling_electra.py).
"""

from __future__ import annotations

import re

from sdfast.modalities.texts.families.family import ENCODER, LEAVES, REFUSED, SHAPE, TextFamily, wanted
from sdfast.models.folder import COUNT, Field
from sdfast.models.layout import Naming

_NAMING = Naming(
    prefix="electra.",
    names={
        **ENCODER,
        "encoder.project": ["embeddings_project"],
        "head.dense": ["generator_predictions.dense"],
        "head.norm": ["generator_predictions.LayerNorm"],
        "head.bias": ["generator_lm_head.bias"],
        "dense": ["classifier.dense"],
        "classifier": ["classifier.out_proj"],
    },
    ignored=re.compile(
        r"(classifier|generator_predictions|generator_lm_head|discriminator_predictions)\."
        r"|(electra\.)?embeddings\.position_ids$"
    ),
    wanted=wanted("ELECTRA"),
    leaves=LEAVES,
)
FAMILIES = {
    "electra": TextFamily(
        "Electra",
        _NAMING,
        REFUSED,
        defaults={
            "vocab_size": 30522,
            "pad_token_id": 0,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        },
        head="generator_",
        shape=(*SHAPE, Field("embedding_size", "embedding", COUNT, 128)),
        decoder="generator_lm_head",
    )
}
