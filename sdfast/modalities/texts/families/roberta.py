"""RoBERTa, and XLM-RoBERTa and CamemBERT, which are the same but for their words (BERTweet and PhoBERT are RoBERTa's).

Facts on names: transformers 4.57 and 5.23 (modeling_roberta.py, modeling_xlm_roberta.py, modeling_camembert.py).
"""

from __future__ import annotations

import re

from sdfast.modalities.texts.families.family import ENCODER, LEAVES, REFUSED, TextFamily, wanted
from sdfast.models.layout import Naming

_NAMING = Naming(
    prefix="roberta.",
    names={
        **ENCODER,
        "head.dense": ["lm_head.dense"],
        "head.norm": ["lm_head.layer_norm"],
        "head.bias": ["lm_head.bias"],
        "dense": ["classifier.dense"],
        "classifier": ["classifier.out_proj"],
    },
    ignored=re.compile(r"(roberta\.)?(pooler|classifier|lm_head)\.|(roberta\.)?embeddings\.position_ids$"),
    wanted=wanted("RoBERTa"),
    leaves=LEAVES,
)


def _family(name: str, words: int) -> TextFamily:
    defaults = {"vocab_size": words, "pad_token_id": 1}
    return TextFamily(name, _NAMING, REFUSED, defaults=defaults, head="lm_head.", decoder="lm_head.decoder")


FAMILIES = {
    "roberta": _family("Roberta", 50265),
    "xlm-roberta": _family("XLMRoberta", 30522),  # as its configuration class has it
    "camembert": _family("Camembert", 30522),
}
