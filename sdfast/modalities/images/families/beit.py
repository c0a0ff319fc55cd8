"""BEiT and data2vec-vision where they have absolute positions and no relative ones, and so are plain ViTs.

Facts on names and settings: transformers 5.23 (modeling_beit.py, modeling_data2vec_vision.py). Keys have no bias, which
their softmax would not see. With `use_mean_pooling` the only norm behind the blocks follows the mean of the patches;
`distill.tokens=patch` and the decoder have it of each token. LayerScale is folded, and written as none.
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
    SHAPE,
    ImageFamily,
)
from sdfast.modalities.images.families.vit import IN_MEMORY
from sdfast.modalities.images.model import Pool, ViTShape
from sdfast.models.blocks import Style
from sdfast.models.folder import GELU_ONLY, SWITCH, Kind, Settings, config_of
from sdfast.models.layout import Names, Naming, blocks

KEYLESS = Style(key_bias=False)
_BLOCK: Names = {
    **HF_BLOCK,
    "attn.qkv.bias": ("attention.attention.(query|value).bias", "attention.(q|v)_proj.bias"),
    "scale1.vector": ("lambda_1",),
    "scale2.vector": ("lambda_2",),
}
_POOLS: Mapping[bool, Pool] = {True: "mean_then_norm", False: "cls"}
_POOL = Kind(SWITCH.words, SWITCH.holds, lambda value: _POOLS[value])
_SHAPE = SHAPE[:-1]  # queries and values have a bias
_RELATIVE = "has relative positions in its attention ({key}), which sdfast does not have: use a ViT, such as an MAE"
_REFUSED: Mapping[str, tuple[Any, str]] = {
    **{
        key: (False, _RELATIVE.replace("{key}", key))
        for key in ("use_relative_position_bias", "use_shared_relative_position_bias")
    },
    "use_absolute_position_embeddings": (True, "has no positions that are added to patches: use a ViT, such as an MAE"),
    **GELU_ONLY,
}


def _naming(prefix: str, pool: Pool) -> Naming:
    norm = "pooler.layernorm" if pool == "mean_then_norm" else "layernorm"
    names = {
        **HF_AROUND,
        "encoder.norm": [norm],
        **blocks("encoder.blocks", HF_LISTS, _BLOCK),
        **DECODER_NAMES,
        "classifier": ["classifier"],
    }
    others = rf"classifier\.|lm_head\.|({prefix})?embeddings\.mask_token$"
    wanted = "a BEiT or data2vec-vision encoder"
    return Naming(names, re.compile(others), wanted, prefix, in_memory=IN_MEMORY)


def _config(shape: ViTShape) -> Mapping[str, Any]:
    return {
        **config_of(shape, *_SHAPE),
        "drop_path_rate": 0.0,
        "hidden_act": "gelu",
        "layer_scale_init_value": 0.0,
        "use_absolute_position_embeddings": True,
        "use_mean_pooling": shape.pool == "mean_then_norm",
    }


def _family(name: str, prefix: str) -> ImageFamily:
    def further(settings: Settings, around: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"pool": settings.get("use_mean_pooling", _POOL, True)}

    return ImageFamily(
        name,
        _naming(prefix, "mean_then_norm"),
        _REFUSED,
        shape=_SHAPE,
        fixed={"kind": "beit"},
        further_sizes=lambda settings, sizes: {"style": KEYLESS},
        further_shape=further,
        names=lambda shape: _naming(prefix, shape.pool),
        config=_config,
    )


FAMILIES: Mapping[str, ImageFamily] = {
    "beit": _family("Beit", "beit."),
    "data2vec-vision": _family("Data2VecVision", "data2vec_vision."),
}
