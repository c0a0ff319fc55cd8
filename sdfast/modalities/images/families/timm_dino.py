"""timm's DINOv3: the class Eva there.

Facts: timm 1.0 (eva.py). It is written as Hugging Face's DINOv3, whose rotary angles are rounded a little otherwise.
"""

from __future__ import annotations

import re

from sdfast.errors import UserError
from sdfast.modalities.images.families.family import WANTED, ImageFamily, ImageSource, check, depth_of, patch_embedding
from sdfast.modalities.images.families.timm import image_size, preprocessing_of
from sdfast.modalities.images.model import ViTShape
from sdfast.models.blocks import Style, TransformerShape
from sdfast.models.folder import POSITIVE, Settings
from sdfast.models.layout import FACEBOOK_AS_TIMM, Naming, blocks
from sdfast.models.weights import Weights

ARCHITECTURE = re.compile(r"vit_([a-z0-9]+(?:_plus)?)_patch\d+_dinov3")
TIMM = Naming(
    names={
        "encoder.patch_embed": ["patch_embed.proj"],
        "encoder.norm": ["norm"],
        "encoder.cls_token": ["cls_token"],
        "encoder.registers": ["reg_token"],
        **blocks(
            "encoder.blocks",
            ["blocks"],
            {
                "attn.qkv": ("attn.qkv",),
                "attn.qkv.bias": ("attn.(q|v)_bias",),
                "attn.proj": ("attn.proj",),
                "fc1": ("mlp.(fc1_g|fc1_x)", "mlp.fc1"),
                "fc2": ("mlp.fc2",),
                "norm1": ("norm1",),
                "norm2": ("norm2",),
                "scale1.vector": ("gamma_1",),
                "scale2.vector": ("gamma_2",),
            },
        ),
    },
    ignored=re.compile(r"head\.|mask_token$"),
    wanted=WANTED,
    facebook=FACEBOOK_AS_TIMM,
)
_REFUSED = {
    key: (usual, f"asks for {key}={{value}}: sdfast has DINOv3 with {usual} only")
    for key, usual in (("rope_type", "dinov3"), ("rope_rotate_half", True), ("norm_layer", "layernorm"))
}
_FAMILY = ImageFamily("timm", TIMM, _REFUSED)
HEADS = {"tiny": 3, "small": 6, "small_plus": 6, "base": 12, "large": 16, "huge_plus": 20, "7b": 32}


def describe(settings: Settings, weights: Weights) -> ImageSource:
    """Sizes and preprocessing of a DINOv3 of timm; see `sdfast.modalities.images.families.describe`."""
    path, architecture, tensors = settings.path, str(settings.values["architecture"]), weights.tensors
    arguments, published = settings.table("model_args"), settings.table("pretrained_cfg").values
    Settings({key: value for key, value in arguments.values.items() if value is not None}, path).refuse(_REFUSED)
    width, channels, patch = patch_embedding(weights, path)
    for name in ("reg_token", "blocks.0.mlp.fc2.weight"):
        if name not in tensors:
            raise weights.missing(name)
    size, notes = image_size(arguments, published, channels, patch)
    gated = "blocks.0.mlp.fc1_g.weight" in tensors
    stack = TransformerShape(
        width=width,
        depth=depth_of(weights),
        heads=_heads(arguments, architecture),
        mlp_width=tensors["blocks.0.mlp.fc2.weight"].shape[-1],
        style=Style("silu" if gated else "gelu", gated, key_bias="blocks.0.attn.q_bias" not in tensors),
    )
    shape = ViTShape(
        image_size=size,
        patch_size=patch,
        channels=channels,
        encoder=stack,
        norm_eps=1e-5,
        qkv_bias="blocks.0.attn.q_bias" in tensors,
        kind="dinov3_vit",
        registers=tensors["reg_token"].shape[1],
        learned_positions=False,
        rotary=arguments.get("rope_temperature", POSITIVE, 100.0),
    )
    check(shape, settings, weights)
    processor, said = preprocessing_of(shape, arguments, published)
    return ImageSource(settings, weights, _FAMILY, shape, [*notes, *said], processor)


def _heads(arguments: Settings, architecture: str) -> int:
    """The weights do not show the number of heads: from `model_args`, or by the architecture's name."""
    if "num_heads" in arguments.values:
        return arguments.get("num_heads")
    match = ARCHITECTURE.match(architecture)
    if match is None or match[1] not in HEADS:
        raise UserError(
            f"{arguments.path} does not say how many heads {architecture} has: add num_heads under model_args."
        )
    return HEADS[match[1]]
