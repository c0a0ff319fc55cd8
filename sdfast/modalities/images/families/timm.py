"""timm's plain ViTs: sizes from the tensors, what those do not show from `config.json`.

Facts on names: timm 1.0 (vision_transformer.py).
"""

from __future__ import annotations

import re

from sdfast.errors import UserError
from sdfast.modalities.images.families.family import WANTED, ImageFamily, ImageSource, check, square_patch
from sdfast.modalities.images.families.vit import PLAIN_BLOCK
from sdfast.modalities.images.model import ViTShape
from sdfast.modalities.images.processor import ImageProcessor
from sdfast.models.blocks import TransformerShape
from sdfast.models.folder import SIDES, Settings
from sdfast.models.kinds import timm_words
from sdfast.models.layout import FACEBOOK_AS_TIMM, Naming, blocks
from sdfast.models.weights import Weights

_TIMM_BLOCK = {
    **PLAIN_BLOCK,
    "attn.qkv": ("attn.qkv",),
    "attn.proj": ("attn.proj",),
    "scale1": ("ls1",),
    "scale2": ("ls2",),
}
TIMM = Naming(
    names={
        "encoder.patch_embed": ["patch_embed.proj"],
        "encoder.norm": ["norm"],
        "encoder.cls_token": ["cls_token"],
        "encoder.position_embeddings": ["pos_embed"],
        **blocks("encoder.blocks", ["blocks"], _TIMM_BLOCK),
    },
    ignored=re.compile(r"head\.|mask_token$"),
    wanted=WANTED,
    leaves={"gamma": "vector"},
    facebook=FACEBOOK_AS_TIMM,
)
_UNHEEDED = dict.fromkeys(
    ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"), 0.0
)
_FAMILY = ImageFamily(
    "timm",
    TIMM,
    {
        key: (usual, f"asks for {key}={{value}}: sdfast has {usual} only")
        for key, usual in (("act_layer", "gelu"), ("norm_layer", "layernorm"))
    },
)
_EPS = 1e-6  # the LayerNorm of timm's vision_transformer.py
HEADS = {  # width, heads by the word in the architecture's name
    "tiny": (192, 3),
    "small": (384, 6),
    "medium": (512, 8),
    "base": (768, 12),
    "large": (1024, 16),
    "huge": (1280, 16),
    "giant": (1408, 16),
    "gigantic": (1664, 16),
}


def describe(settings: Settings, weights: Weights) -> ImageSource:
    """Sizes and preprocessing of a model of timm; see `sdfast.modalities.images.families.describe`."""
    path, architecture = settings.path, str(settings.values["architecture"])
    if not re.match(r"(vit|deit)_", architecture):
        raise UserError(
            f"{path} describes timm's {architecture}{timm_words(architecture)}: of timm, sdfast takes plain ViTs"
            " (vit_*, deit_*)."
        )
    arguments, published = settings.table("model_args"), settings.table("pretrained_cfg").values
    Settings({key: value for key, value in arguments.values.items() if value is not None}, path).refuse(_FAMILY.refused)
    tensors = weights.tensors
    for name in ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"):
        if name not in tensors:
            raise weights.missing(name)
    kernel = tensors["patch_embed.proj.weight"]
    if kernel.dim() != 4:
        raise UserError(f"the tensor 'patch_embed.proj.weight' in {weights.file_of('')} is no convolution's.")
    width, channels, *patch = kernel.shape
    depth = 1 + max(int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name)))
    input_size = published.get("input_size", (channels, 224, 224))
    if not isinstance(input_size, list | tuple):
        raise UserError(f"input_size in {path} must be channels, height and width, not {input_size!r}.")
    sides = {"img_size": arguments.values.get("img_size") or tuple(input_size)[1:]}
    shape = ViTShape(
        image_size=Settings(sides, path).get("img_size", SIDES),
        patch_size=square_patch(patch, path),
        channels=channels,
        encoder=TransformerShape(
            width=width,
            depth=depth,
            heads=_heads(arguments, architecture, width),
            mlp_width=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        ),
        norm_eps=_EPS,
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
    )
    check(shape, settings, weights)
    preprocessing = {"image_mean": published.get("mean"), "image_std": published.get("std")}
    notes = [] if "mean" in published else ["timm's config.json gives no mean and deviation: 0.5 was taken."]
    if published:
        notes.append("timm's own preprocessing may resize and crop otherwise; sdfast resizes directly and bilinearly.")
    notes += arguments.unheeded(_UNHEEDED)
    processor = ImageProcessor.from_json(preprocessing, "vit").with_channels(channels).with_size(*shape.image_size)
    return ImageSource(settings, weights, _FAMILY, shape, notes, processor)


def _heads(arguments: Settings, architecture: str, width: int) -> int:
    """The weights do not show the number of heads: from `model_args`, or by the architecture's name."""
    if "num_heads" in arguments.values:
        return arguments.get("num_heads")
    match = re.match(r"(?:vit|deit)_(\w+?)_patch", architecture)
    usual_width, heads = HEADS.get(match[1] if match else "", (0, 0))
    if usual_width != width:
        raise UserError(
            f"{arguments.path} does not say how many heads {architecture} has: add num_heads under model_args."
        )
    return heads
