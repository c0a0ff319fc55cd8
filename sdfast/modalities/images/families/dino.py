"""Hugging Face's DINOv2, with registers or a SwiGLU MLP or without, and DINOv3's ViT.

Facts on names and settings: transformers 4.57 and 5.23 (modeling_dinov2.py, modeling_dinov2_with_registers.py,
modeling_dinov3_vit.py and conversion_mapping.py). LayerScale is folded, and written as ones; the mask token, which
nothing here has, is written as zeros. A DINOv2 that is a plain ViT is written as one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sdfast.errors import UserError
from sdfast.modalities.images.families.family import (
    DECODER_NAMES,
    HF_AROUND,
    HF_BLOCK,
    HF_LISTS,
    SHAPE,
    WANTED,
    ImageFamily,
)
from sdfast.modalities.images.families.vit import PLAIN_BLOCK
from sdfast.modalities.images.model import ViTShape
from sdfast.models.blocks import PLAIN, Activation, Style
from sdfast.models.folder import GELU_ONLY, POSITIVE, STACK, SWITCH, Field, Kind, Settings, config_of, is_number
from sdfast.models.layout import Names, Naming, blocks

_SCALES: Names = {"scale1": ("layer_scale1",), "scale2": ("layer_scale2",)}
_BLOCK = {**HF_BLOCK, **PLAIN_BLOCK, **_SCALES}
_GATED_BLOCK = {
    **_BLOCK,
    "fc1": ("mlp.weights_in", "mlp.(gate_proj|up_proj)"),
    "fc2": ("mlp.weights_out", "mlp.down_proj"),
}
DINOV2 = Naming(
    prefix="dinov2.",
    names={**HF_AROUND, **blocks("encoder.blocks", HF_LISTS, _BLOCK)},
    ignored=re.compile(r"classifier\.|(dinov2\.)?embeddings\.mask_token$"),
    wanted=WANTED,
    leaves={"lambda1": "vector"},
    always_scaled=True,
)
_REGISTERS = "embeddings.register_tokens"
_OTHERS = re.compile(r"(\w+\.)?embeddings\.(mask_token|register_tokens)$|classifier\.|decoder\.")
_DINOV2_IN_MEMORY = (
    (r"attention\.attention\.([qkv])\w+$", r"attention.\1_proj"),
    (r"attention\.output\.dense$", "attention.o_proj"),
    (r"mlp\.weights_in$", "mlp.(gate_proj|up_proj)"),
    (r"mlp\.weights_out$", "mlp.down_proj"),
)
_DINOV3_IN_MEMORY = ((r"^layer\.", "model.layer."),)
_NONE_OR_MORE = Kind("a whole number, 0 or more", lambda value: type(value) is int and value >= 0)
_ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "silu": "silu"}
_ACTIVATION = Kind(" or ".join(_ACTIVATIONS), lambda value: value in _ACTIVATIONS, lambda value: _ACTIVATIONS[value])
_MOST_RATIO = 64


def _dinov2_naming(kind: str, gated: bool = False, registers: int = 1) -> Naming:
    """Names of a DINOv2 that is written as what it is."""
    block = _GATED_BLOCK if gated else _BLOCK
    names = {
        **HF_AROUND,
        **({"encoder.registers": [_REGISTERS]} if registers else {}),
        **blocks("encoder.blocks", HF_LISTS, block),
        **DECODER_NAMES,
        "classifier": ["classifier"],
    }
    prefix = f"{kind}."
    return Naming(names, _OTHERS, WANTED, prefix, DINOV2.leaves, always_scaled=True, in_memory=_DINOV2_IN_MEMORY)


def dinov2_mlp(width: int, ratio: float, gated: bool) -> int:
    """The MLP's width of a DINOv2; where it is gated, two thirds, as a multiple of 8."""
    hidden = int(width * ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden


def dinov2_ratio(shape: ViTShape) -> int | None:
    """The `mlp_ratio` of a DINOv2 of this shape, which transformers takes as a whole number; None if there is none."""
    width, gated = shape.encoder.width, shape.encoder.style.gated
    fits = (n for n in range(1, _MOST_RATIO) if dinov2_mlp(width, n, gated) == shape.encoder.mlp_width)
    return next(fits, None)


def _dinov2_sizes(settings: Settings, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
    width = sizes["width"]
    ratio = Kind("a positive number", lambda value: is_number(value) and 0 < width * value < float("inf"))
    gated = settings.get("use_swiglu_ffn", SWITCH, False)
    mlp_width = dinov2_mlp(width, settings.get("mlp_ratio", ratio, 4), gated)
    return {"mlp_width": mlp_width, **({"style": Style("silu", gated=True)} if gated else {})}


def _dinov2_config(shape: ViTShape) -> Mapping[str, Any]:
    return {
        **config_of(shape, *SHAPE),
        **dict.fromkeys(("attention_probs_dropout_prob", "drop_path_rate", "hidden_dropout_prob"), 0.0),
        "hidden_act": "gelu",
        "layerscale_value": 1.0,
        "mlp_ratio": dinov2_ratio(shape),
        "use_swiglu_ffn": shape.encoder.style.gated,
        **({"num_register_tokens": shape.registers} if shape.kind == "dinov2_with_registers" else {}),
    }


def _dinov2_names(shape: ViTShape) -> Naming:
    return DINOV2 if shape.kind == "vit" else _dinov2_naming(shape.kind, shape.encoder.style.gated, shape.registers)


def _dinov3_naming(style: Style = PLAIN, registers: int = 1) -> Naming:
    block: dict[str, Sequence[str]] = {
        "attn.qkv": ("attention.(q|k|v)_proj",),
        "attn.proj": ("attention.o_proj",),
        "fc1": ("mlp.(gate_proj|up_proj)" if style.gated else "mlp.up_proj",),
        "fc2": ("mlp.down_proj",),
        "norm1": ("norm1",),
        "norm2": ("norm2",),
        **_SCALES,
    }
    if not style.key_bias:
        block["attn.qkv.bias"] = ("attention.(q|v)_proj.bias",)
    names = {
        "encoder.patch_embed": ["embeddings.patch_embeddings"],
        "encoder.norm": ["norm"],
        "encoder.cls_token": ["embeddings.cls_token"],
        **({"encoder.registers": [_REGISTERS]} if registers else {}),
        **blocks("encoder.blocks", ("layer", "model.layer"), block),
        **DECODER_NAMES,
        "classifier": ["classifier"],
    }
    return Naming(names, _OTHERS, WANTED, leaves=DINOV2.leaves, always_scaled=True, in_memory=_DINOV3_IN_MEMORY)


def _dinov3_sizes(settings: Settings, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
    if not sizes["width"] % sizes["heads"] and sizes["width"] // sizes["heads"] % 4:
        raise UserError(
            f"{settings.path} is inconsistent: {sizes['width'] // sizes['heads']} features a head are no multiple of 4,"
            " which rotary positions in two directions take."
        )
    switches = {name: settings.get(name, SWITCH, True) for name in ("proj_bias", "mlp_bias")}
    queries = settings.get("query_bias", SWITCH, True)
    key_bias = settings.get("key_bias", SWITCH, False)
    if settings.get("value_bias", SWITCH, True) != queries or (key_bias and not queries):
        raise UserError(
            f"{settings.path} has key_bias or only one of query_bias and value_bias: sdfast has biases of queries and"
            " values, with or without one of keys, or none."
        )
    activation, gated = settings.get("hidden_act", _ACTIVATION, "gelu"), settings.get("use_gated_mlp", SWITCH, False)
    return {"style": Style(activation, gated, key_bias=key_bias or not queries, **switches)}


def _dinov3_config(shape: ViTShape) -> Mapping[str, Any]:
    style = shape.encoder.style
    return {
        **config_of(shape, *_DINOV3_SHAPE),
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "hidden_act": style.activation,
        "key_bias": shape.qkv_bias and style.key_bias,
        "layerscale_value": 1.0,
        "mlp_bias": style.mlp_bias,
        **dict.fromkeys(_MOVES),
        "proj_bias": style.proj_bias,
        "use_gated_mlp": style.gated,
        "value_bias": shape.qkv_bias,
    }


def _unused(shape: ViTShape, like: Tensor) -> Mapping[str, Tensor]:
    """What transformers' model has and ours has not."""
    width = shape.encoder.width
    mask = torch.zeros((1, 1, width) if shape.kind == "dinov3_vit" else (1, width)).to(like)
    none = {} if shape.registers or shape.kind == "dinov2" else {_REGISTERS: torch.zeros(1, 0, width).to(like)}
    return {"embeddings.mask_token": mask, **none}


_REGISTERS_FIELD = Field("num_register_tokens", "registers", _NONE_OR_MORE, 4)
_DINOV3_SHAPE = (
    *SHAPE[:4],
    Field("query_bias", "qkv_bias", SWITCH, True),
    _REGISTERS_FIELD._replace(default=0),
    Field("rope_theta", "rotary", POSITIVE, 100.0),
)
_MOVES = ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")
_MOVED = "not followed: {} of config.json, which moves rotary coordinates at random in training; here they stay."
FAMILIES: Mapping[str, ImageFamily] = {
    "dinov2": ImageFamily(
        "Dinov2",
        DINOV2,
        GELU_ONLY,
        stack=STACK[:3],
        defaults={"patch_size": 14, "layer_norm_eps": 1e-6},
        further_sizes=_dinov2_sizes,
        further_shape=lambda settings, _: {"kind": "dinov2"} if settings.values.get("use_swiglu_ffn") else {},
        names=_dinov2_names,
        unused=_unused,
        config=_dinov2_config,
        beside_mean=True,
        processor_decides=True,  # published with positions for 518 and used at 224
    ),
    "dinov2_with_registers": ImageFamily(
        "Dinov2WithRegisters",
        _dinov2_naming("dinov2_with_registers"),
        GELU_ONLY,
        stack=STACK[:3],
        defaults={"layer_norm_eps": 1e-6},
        shape=(*SHAPE, _REGISTERS_FIELD),
        fixed={"kind": "dinov2_with_registers"},
        further_sizes=_dinov2_sizes,
        names=_dinov2_names,
        unused=_unused,
        config=_dinov2_config,
        beside_mean=True,
        processor_decides=True,
    ),
    "dinov3_vit": ImageFamily(
        "DINOv3ViT",
        _dinov3_naming(),
        {},
        defaults={"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "layer_norm_eps": 1e-5},
        shape=_DINOV3_SHAPE,
        fixed={"kind": "dinov3_vit", "learned_positions": False},
        further_sizes=_dinov3_sizes,
        names=lambda shape: _dinov3_naming(shape.encoder.style, shape.registers),
        unused=_unused,
        noted={key: (None, _MOVED.format(f"{key}={{value}}")) for key in _MOVES},
        config=_dinov3_config,
        classifier=None,
        processor_decides=True,  # its positions are those of any size
    ),
}
