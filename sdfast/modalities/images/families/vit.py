"""Hugging Face's ViT, ViTMAE and DINOv2.

Facts on names: transformers 4.57 and 5.23 (modeling_vit.py, modeling_vit_mae.py, modeling_dinov2.py and
conversion_mapping.py). (transformers 5.23 itself writes the decoder blocks of a ViTMAE as
`decoder.decoder_encoder.layer.N`, which 4 does not know; it is read here.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdfast.modalities.images.families.family import (
    DECODER_NAMES,
    HF_AROUND,
    HF_BLOCK,
    HF_LISTS,
    REFUSED,
    WANTED,
    ImageFamily,
)
from sdfast.models.folder import STACK, Kind, Settings, is_number
from sdfast.models.layout import Names, Naming, blocks

VIT_MAE = Naming(
    prefix="vit.",
    names={
        **HF_AROUND,
        **blocks("encoder.blocks", HF_LISTS, HF_BLOCK),
        **DECODER_NAMES,
    },
    ignored=re.compile(r"(vit\.)?(pooler|classifier)\."),
    wanted=WANTED,
)
_IN_MEMORY = (
    (r"(^|\.)encoder\.layer\.", r"\1layers."),
    (r"attention\.attention\.([qkv])\w+$", r"attention.\1_proj"),
    (r"attention\.output\.dense$", "attention.o_proj"),
    (r"intermediate\.dense$", "mlp.fc1"),
    (r"output\.dense$", "mlp.fc2"),
)
VIT = Naming(
    prefix="vit.",
    names={**HF_AROUND, **blocks("encoder.blocks", HF_LISTS, HF_BLOCK), "classifier": ["classifier"]},
    in_memory=_IN_MEMORY,
    ignored=re.compile(r"(vit\.)?(pooler|classifier|decoder)\.|(vit\.)?embeddings\.mask_token$"),
    wanted=WANTED,
)
PLAIN_BLOCK: Names = {"norm1": ("norm1",), "norm2": ("norm2",), "fc1": ("mlp.fc1",), "fc2": ("mlp.fc2",)}
DINOV2_BLOCK = {**HF_BLOCK, **PLAIN_BLOCK, "scale1": ("layer_scale1",), "scale2": ("layer_scale2",)}
DINOV2 = Naming(
    prefix="dinov2.",
    names={**HF_AROUND, **blocks("encoder.blocks", HF_LISTS, DINOV2_BLOCK)},
    ignored=re.compile(r"classifier\.|(dinov2\.)?embeddings\.mask_token$"),
    wanted=WANTED,
    leaves={"lambda1": "vector"},
    always_scaled=True,
)


def mlp_multiple(settings: Settings, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The MLP's width, of a family that says it as a multiple of its own."""
    width = sizes["width"]
    ratio = Kind("a positive number", lambda value: is_number(value) and 0 < width * value < float("inf"))
    return {"mlp_width": int(width * settings.get("mlp_ratio", ratio, 4))}


FAMILIES: Mapping[str, ImageFamily] = {
    "vit_mae": ImageFamily("ViTMAE", VIT_MAE, REFUSED),
    "vit": ImageFamily("ViT", VIT, REFUSED),
    "dinov2": ImageFamily(
        "Dinov2",
        DINOV2,
        REFUSED,
        stack=STACK[:3],
        further_sizes=mlp_multiple,
        defaults={"patch_size": 14, "layer_norm_eps": 1e-6},
        processor_decides=True,  # published with positions for 518 and used at 224
    ),
}
