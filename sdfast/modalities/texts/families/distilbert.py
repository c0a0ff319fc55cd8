"""DistilBERT: no token types, no pooler; facts on names: transformers 4.57 and 5.23 (modeling_distilbert.py)."""

from __future__ import annotations

import re

from sdfast.modalities.texts.families.family import ENCODER, LEAVES, TIED, TextFamily, wanted
from sdfast.models.folder import COUNT, GELU_ONLY, SHARE, Field
from sdfast.models.layout import Naming, blocks

_EMBEDDINGS = ("encoder.word_embeddings", "encoder.position_embeddings", "encoder.norm")
_NAMING = Naming(
    prefix="distilbert.",
    names={
        **{ours: ENCODER[ours] for ours in _EMBEDDINGS},
        **blocks(
            "encoder.blocks",
            ["transformer.layer"],
            {
                "attn.qkv": ["attention.(q|k|v)_lin"],
                "attn.proj": ["attention.out_lin"],
                "norm1": ["sa_layer_norm"],
                "fc1": ["ffn.lin1"],
                "fc2": ["ffn.lin2"],
                "norm2": ["output_layer_norm"],
            },
        ),
        "head.dense": ["vocab_transform"],
        "head.norm": ["vocab_layer_norm"],
        "head.bias": ["vocab_projector.bias"],
        "dense": ["pre_classifier"],
        "classifier": ["classifier"],
    },
    ignored=re.compile(
        r"(pre_classifier|classifier|vocab_(transform|layer_norm|projector))\.|(distilbert\.)?embeddings\.position_ids$"
    ),
    wanted=wanted("DistilBERT"),
    leaves=LEAVES,
)
FAMILIES = {
    "distilbert": TextFamily(
        "DistilBert",
        _NAMING,
        {"activation": GELU_ONLY["hidden_act"]},
        stack=(
            Field("dim", "width", COUNT, 768),
            Field("n_layers", "depth", COUNT, 6),
            Field("n_heads", "heads", COUNT, 12),
            Field("hidden_dim", "mlp_width", COUNT, 3072),
        ),
        defaults={"vocab_size": 30522, "pad_token_id": 0},
        head="vocab_",
        shape=(Field("vocab_size", "vocabulary"), Field("max_position_embeddings", "positions", COUNT, 512)),
        fixed={"types": 0, "norm_eps": 1e-12},
        dropouts=(
            Field("dropout", "hidden", SHARE, 0.1),
            Field("attention_dropout", "attention", SHARE, 0.1),
            Field("seq_classif_dropout", "classifier", SHARE, 0.2),
        ),
        said={"activation": "gelu"},
        remarked={
            **TIED,
            "sinusoidal_pos_embds": (
                False,
                "not followed: sinusoidal_pos_embds={value} of config.json; the table of positions is trained as any"
                " other.",
            ),
        },
        decoder="vocab_projector",
    )
}
