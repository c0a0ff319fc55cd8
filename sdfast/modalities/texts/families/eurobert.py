"""EuroBERT: the blocks of Llama, without its causal mask.

Facts on names and settings: transformers 5.23 (modeling_eurobert.py, configuration_eurobert.py). The published models
come with code of their own, which is of the same module and is not carried along.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdfast.errors import UserError
from sdfast.modalities.texts.families.family import TextFamily, wanted
from sdfast.modalities.texts.families.rotary import ACTIVATION, base_of, pooling
from sdfast.modalities.texts.model import TextShape
from sdfast.modalities.texts.prenorm import PreNorm
from sdfast.models.blocks import Style
from sdfast.models.folder import COUNT, EPSILON, SHARE, STACK, SWITCH, Field, Kind, Settings
from sdfast.models.layout import Naming, blocks

_NAMING = Naming(
    prefix="model.",
    names={
        "encoder.word_embeddings": ["embed_tokens"],
        **blocks(
            "encoder.blocks",
            ["layers"],
            {
                "norm1": ["input_layernorm"],
                "attn.qkv": ["self_attn.(q_proj|k_proj|v_proj)"],
                "attn.proj": ["self_attn.o_proj"],
                "norm2": ["post_attention_layernorm"],
                "fc1": ["mlp.(gate_proj|up_proj)"],
                "fc2": ["mlp.down_proj"],
            },
        ),
        "encoder.norm_last": ["norm"],
        "head.weight": ["lm_head.weight"],
        "head.bias": ["lm_head.bias"],
        "head.dense": ["dense"],
        "classifier": ["classifier"],
    },
    ignored=re.compile(r"(lm_head|dense|classifier)\.|(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq$"),
    wanted=wanted("EuroBERT"),
)
_POOLINGS = {"bos": "cls", "mean": "mean", "late": "late"}
_THEIRS = {ours: theirs for theirs, ours in _POOLINGS.items()}
_POOLING = Kind(
    pooling(*_POOLINGS).words, pooling(*_POOLINGS).holds, _POOLINGS.__getitem__, lambda value: _THEIRS[value]
)
_STYLE = (
    Field("hidden_act", "activation", ACTIVATION, "silu"),
    Field("attention_bias", "proj_bias", SWITCH, False),
    Field("mlp_bias", "mlp_bias", SWITCH, False),
)
_MORE = (
    Field("attention_bias", "qkv_bias", SWITCH, False),
    Field("tie_word_embeddings", "tied", SWITCH, False),
    Field("mlp_bias", "word_bias", SWITCH, False),
    Field("classifier_pooling", "pooling", _POOLING, "late"),
)
_DENSE: Mapping[str, Any] = {"dense_bias": True, "activation": "gelu"}  # of the classifier


def _read(settings: Settings, depth: int) -> tuple[Style, PreNorm]:
    heads, width = settings.get("num_attention_heads", COUNT, 12), settings.get("hidden_size", COUNT, 768)
    shared = settings.values.get("num_key_value_heads")
    kv_heads = heads if shared is None else settings.get("num_key_value_heads")
    if heads % kv_heads:
        raise UserError(
            f"{settings.path} is inconsistent: its {kv_heads} heads of keys do not divide its {heads} heads."
        )
    dim = settings.values.get("head_dim")
    if dim is not None and dim != width // heads:
        raise UserError(f"{settings.path} asks for heads of {dim}: sdfast has heads that share the width evenly.")
    style = Style(gated=True, norm="rms", kv_heads=None if kv_heads == heads else kv_heads, **settings.read(_STYLE))
    base = base_of(settings, None, "rope_theta", 10_000.0)
    return style, PreNorm(base, base, **_DENSE, **settings.read(_MORE))


def _said(shape: TextShape) -> Mapping[str, Any]:
    how, style, stack = shape.pre_norm, shape.encoder.style, shape.encoder
    assert how is not None
    said: dict[str, Any] = {each.key: each.kind.theirs(getattr(style, each.place)) for each in _STYLE}
    said |= {each.key: each.kind.theirs(getattr(how, each.place)) for each in _MORE}
    said["num_key_value_heads"], said["head_dim"] = style.kv_heads or stack.heads, stack.width // stack.heads
    said["rope_theta"] = how.base
    said["rope_parameters"] = {"rope_theta": how.base, "rope_type": "default"}
    return said


FAMILIES = {
    "eurobert": TextFamily(
        "EuroBert",
        _NAMING,
        {},
        stack=STACK,
        defaults={"vocab_size": 128256, "pad_token_id": 128001},
        head="lm_head.",
        shape=(
            Field("vocab_size", "vocabulary"),
            Field("max_position_embeddings", "positions", COUNT, 8192),
            Field("rms_norm_eps", "norm_eps", EPSILON, 1e-5),
        ),
        fixed={"types": 0},
        dropouts=(Field("attention_dropout", "attention", SHARE, 0.0),),
        said={},
        remarked={},
        words="embed_tokens.weight",
        decoder="lm_head",
        pre_norm=(_read, _said),
    )
}
