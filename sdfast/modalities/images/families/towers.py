"""Vision towers of CLIP, MetaCLIP 2 and SigLIP, I-JEPA and ViTMSN.

Facts on names: transformers 5.23 (modeling_clip.py, modeling_metaclip_2.py, modeling_siglip.py, modeling_ijepa.py and
modeling_vit_msn.py). Files have the names of 4, a tower alone too: transformers 5 reads them and writes it without the
prefix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdfast.errors import UserError
from sdfast.modalities.images.families.family import (
    DECODER_NAMES,
    HF_AROUND,
    HF_BLOCK,
    HF_LISTS,
    SHAPE,
    ImageFamily,
)
from sdfast.modalities.images.families.vit import IN_MEMORY, VIT
from sdfast.modalities.images.model import ViTShape
from sdfast.models.blocks import Activation, Style
from sdfast.models.folder import GELU_ONLY, Settings, config_of
from sdfast.models.layout import Names, Naming, blocks

_SHAPE = SHAPE[:-1]  # every query, key and value has a bias
ACTIVATIONS: Mapping[str, Activation] = {  # of transformers
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
}
_TOWER_BLOCK: Names = {
    "attn.qkv": ("self_attn.(q|k|v)_proj",),
    "attn.proj": ("self_attn.out_proj",),
    "fc1": ("mlp.fc1",),
    "fc2": ("mlp.fc2",),
    "norm1": ("layer_norm1",),
    "norm2": ("layer_norm2",),
}
_TOWER: Names = {
    "encoder.patch_embed": ["embeddings.patch_embedding"],
    "encoder.position_embeddings": ["embeddings.position_embedding.weight"],
    "encoder.norm": ["post_layernorm"],
    **blocks("encoder.blocks", ["encoder.layers"], _TOWER_BLOCK),
    **DECODER_NAMES,
    "classifier": ["classifier"],
}
_UNUSED = (
    r"classifier\.|text_model\.|(text|visual)_projection\.|logit_(scale|bias)$"
    r"|(vision_model\.)?(head\.|embeddings\.position_ids$)"
)
CLIP = Naming(
    prefix="vision_model.",
    names={
        **_TOWER,
        "encoder.cls_token": ["embeddings.class_embedding"],
        "encoder.pre_norm": ["pre_layrnorm"],
    },
    ignored=re.compile(_UNUSED),
    wanted="CLIP or its vision tower",
    dims={"encoder.cls_token": 1, "encoder.position_embeddings": 2},
)
SIGLIP = Naming(
    prefix="vision_model.",
    names=_TOWER,
    ignored=re.compile(_UNUSED),
    wanted="SigLIP or its vision tower",
    dims={"encoder.position_embeddings": 2},
)
IJEPA = Naming(
    prefix="ijepa.",
    names={
        **{ours: theirs for ours, theirs in HF_AROUND.items() if ours != "encoder.cls_token"},
        **blocks("encoder.blocks", HF_LISTS, HF_BLOCK),
        **DECODER_NAMES,
        "classifier": ["classifier"],
    },
    ignored=re.compile(r"classifier\.|(ijepa\.)?(pooler\.|embeddings\.mask_token$)"),
    wanted="an I-JEPA encoder",
    in_memory=IN_MEMORY,
)


def _style(settings: Settings, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
    name = str(settings.values.get("hidden_act"))
    if name not in ACTIVATIONS:
        raise UserError(f"{settings.path} asks for the activation {name}: sdfast has {', '.join(ACTIVATIONS)}.")
    return {"style": Style(activation=ACTIVATIONS[name])}


def _whole_patches(settings: Settings, around: Mapping[str, Any]) -> Mapping[str, Any]:
    """Pixels beyond the last whole patch are not seen: SigLIP's of 384 pixels in patches of 14 are of 378."""
    sides, patch = around["image_size"], around["patch_size"]
    return {"image_size": tuple(max(1, side // size) * size for side, size in zip(sides, patch, strict=True))}


def _config(shape: ViTShape) -> Mapping[str, Any]:
    named = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    return {"hidden_act": named[shape.encoder.style.activation], **config_of(shape, *_SHAPE)}


_CLIP = ImageFamily(
    "CLIP",
    CLIP,
    {},
    defaults={"patch_size": 32, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"},
    shape=_SHAPE,
    fixed={"kind": "clip_vision_model", "pre_norm": True, "patch_bias": False},
    further_sizes=_style,
    further_shape=_whole_patches,
    config=_config,
    model="VisionModel",
    whole="clip",
    bare=False,
    classified={"pool": "raw_mean"},
)
_SIGLIP = ImageFamily(
    "Siglip",
    SIGLIP,
    {},
    defaults={"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"},
    shape=_SHAPE,
    fixed={"kind": "siglip_vision_model", "cls": False, "pool": "mean"},
    further_sizes=_style,
    further_shape=_whole_patches,
    config=lambda shape: {**_config(shape), "vision_use_head": False},
    model="VisionModel",
    whole="siglip",
    bare=False,
)
FAMILIES: Mapping[str, ImageFamily] = {
    "clip_vision_model": _CLIP,
    "clip": replace(_CLIP, nested=True),
    "metaclip_2_vision_model": _CLIP,
    "metaclip_2": replace(_CLIP, nested=True),
    "siglip_vision_model": _SIGLIP,
    "siglip": replace(_SIGLIP, nested=True),
    "ijepa": ImageFamily(
        "IJepa",
        IJEPA,
        {},
        defaults={"hidden_act": "gelu"},
        fixed={"kind": "ijepa", "cls": False, "pool": "mean"},
        further_sizes=_style,
        config=lambda shape: {**_config(shape), "qkv_bias": shape.qkv_bias},
    ),
    "vit_msn": ImageFamily("ViTMSN", VIT, GELU_ONLY, defaults={"layer_norm_eps": 1e-6}),
}
