"""BERT; facts on names: transformers 4.57 and 5.23 (modeling_bert.py)."""

from __future__ import annotations

import re

from sdfast.modalities.texts.families.family import ENCODER, LEAVES, REFUSED, TextFamily, wanted
from sdfast.models.layout import Naming

_NAMING = Naming(
    prefix="bert.",
    names={
        **ENCODER,
        "head.dense": ["cls.predictions.transform.dense"],
        "head.norm": ["cls.predictions.transform.LayerNorm"],
        "head.bias": ["cls.predictions.bias"],
        "dense": ["bert.pooler.dense", "pooler.dense"],  # the second is what is looked up, without the prefix
        "classifier": ["classifier"],
    },
    ignored=re.compile(r"(bert\.)?(pooler|classifier|cls)\.|(bert\.)?embeddings\.position_ids$"),
    wanted=wanted("BERT"),
    leaves=LEAVES,
)
FAMILIES = {
    "bert": TextFamily(
        "Bert",
        _NAMING,
        REFUSED,
        defaults={"vocab_size": 30522, "pad_token_id": 0},
        head="cls.predictions.",
        decoder="cls.predictions.decoder",
    )
}
