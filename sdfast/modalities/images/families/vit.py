"""Hugging Face's ViT and ViTMAE.

Facts on names: transformers 4.57 and 5.23 (modeling_vit.py, modeling_vit_mae.py and
conversion_mapping.py). (transformers 5.23 itself writes the decoder blocks of a ViTMAE as
`decoder.decoder_encoder.layer.N`, which 4 does not know; it is read here.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sdfast.modalities.images.families.family import (
    DECODER_NAMES,
    HF_AROUND,
    HF_BLOCK,
    HF_LISTS,
    WANTED,
    ImageFamily,
)
from sdfast.models.folder import GELU_ONLY
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
IN_MEMORY = (
    (r"(^|\.)encoder\.layer\.", r"\1layers."),
    (r"attention\.attention\.([qkv])\w+$", r"attention.\1_proj"),
    (r"attention\.output\.dense$", "attention.o_proj"),
    (r"intermediate\.dense$", "mlp.fc1"),
    (r"output\.dense$", "mlp.fc2"),
)
VIT = Naming(
    prefix="vit.",
    names={**HF_AROUND, **blocks("encoder.blocks", HF_LISTS, HF_BLOCK), "classifier": ["classifier"]},
    in_memory=IN_MEMORY,
    ignored=re.compile(r"(vit\.)?(pooler|classifier|decoder)\.|(vit\.)?embeddings\.mask_token$"),
    wanted=WANTED,
)
PLAIN_BLOCK: Names = {"norm1": ("norm1",), "norm2": ("norm2",), "fc1": ("mlp.fc1",), "fc2": ("mlp.fc2",)}

FAMILIES: Mapping[str, ImageFamily] = {
    "vit_mae": ImageFamily("ViTMAE", VIT_MAE, GELU_ONLY),
    "vit": ImageFamily("ViT", VIT, GELU_ONLY),
}
