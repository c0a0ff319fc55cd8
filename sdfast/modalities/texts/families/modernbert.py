"""ModernBERT: gated MLPs, and blocks that see what is near between those that see all.

Facts on names and settings: transformers 4.57 and 5.23 (modeling_modernbert.py, configuration_modernbert.py).
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
from sdfast.models.folder import COUNT, EPSILON, SHARE, SWITCH, Field, Kind, Settings
from sdfast.models.layout import Naming, blocks

_FULL, _LOCAL = "full_attention", "sliding_attention"
_NAMING = Naming(
    prefix="model.",
    names={
        "encoder.word_embeddings": ["embeddings.tok_embeddings"],
        "encoder.norm_words": ["embeddings.norm"],
        **blocks(
            "encoder.blocks",
            ["layers"],
            {
                "norm1": ["attn_norm"],
                "attn.qkv": ["attn.Wqkv"],
                "attn.proj": ["attn.Wo"],
                "norm2": ["mlp_norm"],
                "fc1": ["mlp.Wi"],
                "fc2": ["mlp.Wo"],
            },
        ),
        "encoder.norm_last": ["final_norm"],
        "head.dense": ["head.dense"],
        "head.norm": ["head.norm"],
        "head.weight": ["decoder.weight"],
        "head.bias": ["decoder.bias"],
        "classifier": ["classifier"],
    },
    ignored=re.compile(r"(head|decoder|classifier)\."),
    wanted=wanted("ModernBERT"),
)
_STYLE = (
    Field("hidden_activation", "activation", ACTIVATION, "gelu"),
    Field("norm_bias", "norm_bias", SWITCH, False),
    Field("attention_bias", "proj_bias", SWITCH, False),
    Field("mlp_bias", "mlp_bias", SWITCH, False),
)
_MORE = (
    Field("attention_bias", "qkv_bias", SWITCH, False),
    Field("tie_word_embeddings", "tied", SWITCH, True),
    Field("decoder_bias", "word_bias", SWITCH, True),
    Field("classifier_bias", "dense_bias", SWITCH, False),
    Field("classifier_activation", "activation", ACTIVATION, "gelu"),
    Field("classifier_pooling", "pooling", pooling("cls", "mean"), "cls"),
)
_LAYERS = Kind(
    f"a list of {_FULL} and {_LOCAL}",
    lambda value: isinstance(value, list) and bool(value) and set(value) <= {_FULL, _LOCAL},
)


def _read(settings: Settings, depth: int) -> tuple[Style, PreNorm]:
    """The blocks and what is around them; layers and bases are given as transformers 4 or 5 write them."""
    if settings.values.get("layer_types") is None:
        every = settings.get("global_attn_every_n_layers", COUNT, 3)
        local = tuple(block % every > 0 for block in range(every))
    else:
        layers = settings.get("layer_types", _LAYERS)
        if len(layers) < depth:
            raise UserError(f"layer_types in {settings.path} names {len(layers)} layers, but there are {depth}.")
        local = _shortest(tuple(layer == _LOCAL for layer in layers[:depth]))
    base = base_of(settings, _FULL, "global_rope_theta", 160_000.0)
    near = base_of(settings, _LOCAL, "local_rope_theta", 10_000.0, otherwise=base)
    window = settings.get("local_attention", COUNT, 128) // 2
    more = settings.read(_MORE)
    return Style(gated=True, **settings.read(_STYLE)), PreNorm(base, near, window, local, **more)


def _shortest(local: tuple[bool, ...]) -> tuple[bool, ...]:
    """The shortest beginning that makes all of them when it is repeated."""
    depth = len(local)
    size = next(n for n in range(1, depth + 1) if all(local[i] == local[i % n] for i in range(depth)))
    return local[:size]


def _said(shape: TextShape) -> Mapping[str, Any]:
    """Those settings again, for transformers 4 and 5."""
    how, style, depth = shape.pre_norm, shape.encoder.style, shape.encoder.depth
    assert how is not None
    said: dict[str, Any] = {each.key: each.kind.theirs(getattr(style, each.place)) for each in _STYLE}
    said |= {each.key: each.kind.theirs(getattr(how, each.place)) for each in _MORE}
    said |= {
        "local_attention": max(1, 2 * how.window),
        "global_rope_theta": how.base,
        "local_rope_theta": how.local_base,
    }
    said["layer_types"] = [_LOCAL if how.is_local(block) else _FULL for block in range(depth)]
    said["rope_parameters"] = {
        name: {"rope_theta": base, "rope_type": "default"}
        for name, base in ((_FULL, how.base), (_LOCAL, how.local_base))
    }
    every = len(how.local)
    if how.local == tuple(block % every > 0 for block in range(every)):
        said["global_attn_every_n_layers"] = every
    return said


FAMILIES = {
    "modernbert": TextFamily(
        "ModernBert",
        _NAMING,
        {},
        stack=(
            Field("hidden_size", "width", COUNT, 768),
            Field("num_hidden_layers", "depth", COUNT, 22),
            Field("num_attention_heads", "heads", COUNT, 12),
            Field("intermediate_size", "mlp_width", COUNT, 1152),
        ),
        defaults={"vocab_size": 50368, "pad_token_id": 50283},
        head="decoder.",
        shape=(
            Field("vocab_size", "vocabulary"),
            Field("max_position_embeddings", "positions", COUNT, 8192),
            Field("norm_eps", "norm_eps", EPSILON, 1e-5),
        ),
        fixed={"types": 0},
        dropouts=(
            Field("mlp_dropout", "hidden", SHARE, 0.0),
            Field("attention_dropout", "attention", SHARE, 0.0),
            Field("classifier_dropout", "classifier", SHARE, 0.0),
            Field("embedding_dropout", "embeddings", SHARE, 0.0),
        ),
        said={},
        remarked={},
        words="embeddings.tok_embeddings.weight",
        decoder="decoder",
        pre_norm=(_read, _said),
    )
}
