"""timm's ViTs of plain blocks: sizes from the tensors, what those do not show from `config.json` or the architecture.

Facts: timm 1.0 (vision_transformer.py, deit.py); the tests compare every architecture there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sdfast.errors import UserError
from sdfast.modalities.images.families.dino import dinov2_ratio
from sdfast.modalities.images.families.family import (
    WANTED,
    ImageFamily,
    ImageSource,
    check,
    depth_of,
    patch_embedding,
    pool_notes,
)
from sdfast.modalities.images.families.vit import PLAIN_BLOCK
from sdfast.modalities.images.model import ViTShape
from sdfast.modalities.images.processor import ImageProcessor
from sdfast.models.blocks import Activation, Style, TransformerShape
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
        "encoder.pre_norm": ["norm_pre"],
        "encoder.norm": ["norm", "fc_norm"],
        "encoder.cls_token": ["cls_token"],
        "encoder.registers": ["reg_token"],
        "encoder.position_embeddings": ["pos_embed"],
        **blocks("encoder.blocks", ["blocks"], _TIMM_BLOCK),
    },
    ignored=re.compile(r"head\.|attn_pool\.|mask_token$"),
    wanted=WANTED,
    leaves={"gamma": "vector"},
    facebook=FACEBOOK_AS_TIMM,
)
_UNHEEDED = dict.fromkeys(
    ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"), 0.0
)
_FAMILY = ImageFamily(
    "timm", TIMM, {"norm_layer": ("layernorm", "asks for norm_layer={value}: sdfast has layernorm only")}
)
_VIT = re.compile(r"(vit|deit3?|flexivit)_")
_PARTS = ("cls_token", "reg_token", "norm_pre.weight", "fc_norm.weight")
_KINDS: Mapping[frozenset[str], Mapping[str, Any]] = {  # fields of the shape by the parts that a model has of these
    frozenset({"cls_token"}): {},
    frozenset({"cls_token", "reg_token"}): {"kind": "dinov2_with_registers"},
    frozenset({"cls_token", "norm_pre.weight"}): {"kind": "clip_vision_model", "pre_norm": True, "patch_bias": False},
    frozenset(): {"kind": "ijepa", "cls": False, "pool": "mean"},
    frozenset({"cls_token", "fc_norm.weight"}): {"kind": "beit", "pool": "mean_then_norm"},
    frozenset({"reg_token", "fc_norm.weight"}): {"kind": "beit", "pool": "mean_then_norm"},  # see `_with_cls`
}
_ACTIVATIONS: Mapping[str, Activation] = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
_TANH = re.compile(r"vit_(base_patch32|giantopt_patch16|so400m_patch16)_siglip|vit_large_patch16_siglip_(gap_)?512")
HEADS: Mapping[str, Mapping[int, int]] = {  # by the word in the architecture's name, and the width
    "tiny": {192: 3},
    "wee": {256: 4},
    "xsmall": {256: 4},
    "little": {320: 5},
    "small": {384: 6},
    "medium": {512: 8},
    "mediumd": {512: 8},
    "betwixt": {640: 10},
    "base": {768: 12, 896: 14},
    "so150m": {896: 14},
    "so150m2": {832: 13},
    "large": {1024: 16},
    "so400m": {1152: 16},
    "huge": {1280: 16},
    "giant": {1408: 16, 1536: 24},
    "giantopt": {1536: 16},
    "gigantic": {1664: 16},
}
_OTHER_HEADS = {"vit_base_patch16_gap_224": 16}


def describe(settings: Settings, weights: Weights) -> ImageSource:
    """Sizes and preprocessing of a model of timm; see `sdfast.modalities.images.families.describe`."""
    path, architecture = settings.path, str(settings.values["architecture"])
    if not _VIT.match(architecture):
        raise UserError(
            f"{path} describes timm's {architecture}{timm_words(architecture)}: of timm, sdfast takes ViTs (vit_*,"
            " deit_*, deit3_*)."
        )
    if "_rpn_" in architecture:
        raise UserError(f"{path} describes timm's {architecture}, whose norms come after the layers: use another ViT.")
    arguments, published = settings.table("model_args"), settings.table("pretrained_cfg").values
    Settings({key: value for key, value in arguments.values.items() if value is not None}, path).refuse(_FAMILY.refused)
    tensors = weights.tensors
    width, channels, patch = patch_embedding(weights, path)
    if "blocks.0.mlp.fc1.weight" not in tensors:
        raise weights.missing("blocks.0.mlp.fc1.weight")
    size, notes = image_size(arguments, published, channels, patch)
    stack = TransformerShape(
        width=width,
        depth=depth_of(weights),
        heads=_heads(arguments, architecture, width),
        mlp_width=tensors["blocks.0.mlp.fc1.weight"].shape[0] // (1 + _is_gated(weights)),
    )
    around, style = _around(weights, path, architecture), _style(weights, arguments, architecture)
    shape = ViTShape(
        image_size=size,
        patch_size=patch,
        channels=channels,
        encoder=replace(stack, style=replace(style, key_bias=around.get("kind") != "beit")),
        norm_eps=_eps(arguments, architecture),
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        **around,
    )
    if shape.kind == "vit" and shape.encoder.style.gated:
        shape = replace(shape, kind="dinov2")
    check(shape, settings, weights)
    _check_kind(shape, path)
    notes += pool_notes(shape)
    processor, said = preprocessing_of(shape, arguments, published)
    notes += said
    return ImageSource(settings, _with_cls(weights, shape), _FAMILY, shape, notes, processor)


def preprocessing_of(
    shape: ViTShape, arguments: Settings, published: Mapping[str, Any]
) -> tuple[ImageProcessor, list[str]]:
    """How images are made for a model of timm, and sentences on what is not followed."""
    notes = [] if "mean" in published else ["timm's config.json gives no mean and deviation: 0.5 was taken."]
    if published:
        notes.append("timm's own preprocessing may resize and crop otherwise; sdfast resizes directly and bilinearly.")
    notes += arguments.unheeded(_UNHEEDED)
    values = {"image_mean": published.get("mean"), "image_std": published.get("std")}
    processor = ImageProcessor.from_json(values, "vit").with_channels(shape.channels)
    return processor.with_size(*shape.image_size), notes


def image_size(
    arguments: Settings, published: Mapping[str, Any], channels: int, patch: int
) -> tuple[tuple[int, int], list[str]]:
    """Height and width in whole patches, and a sentence where that is less than what is declared."""
    input_size = published.get("input_size", (channels, 224, 224))
    if not isinstance(input_size, list | tuple):
        raise UserError(f"input_size in {arguments.path} must be channels, height and width, not {input_size!r}.")
    sides = {"img_size": arguments.values.get("img_size") or tuple(input_size)[1:]}
    height, width = Settings(sides, arguments.path).get("img_size", SIDES)
    size = (max(1, height // patch) * patch, max(1, width // patch) * patch)
    if size == (height, width):
        return size, []
    return size, [
        f"img_size {height} x {width} is no multiple of the patches' {patch}: {size[0]} x {size[1]} was taken."
    ]


def _around(weights: Weights, path: Path, architecture: str) -> Mapping[str, Any]:
    """Fields of the shape that say what is around the blocks, and as what the model is written."""
    found = frozenset(part for part in _PARTS if part in weights.tensors)
    registers = weights.tensors.get("reg_token")
    if found not in _KINDS or (registers is not None and "cls_token" not in found and registers.shape[1:-1] != (1,)):
        parts = " and ".join(sorted(part.removesuffix(".weight") for part in found))
        parts += "" if registers is None else f" of {registers.shape[1]} tokens"
        raise UserError(
            f"{path} describes a ViT with {parts}{'' if 'cls_token' in found else ' and no cls_token'}, which no class"
            " of transformers has, so that it could not be written: use another ViT."
        )
    if not found and "_siglip_" in architecture and "blocks.0.attn.qkv.bias" in weights.tensors:
        return {**_KINDS[found], "kind": "siglip_vision_model"}
    if registers is None or "cls_token" not in found:
        return _KINDS[found]
    return {**_KINDS[found], "registers": registers.shape[1]}


def _is_gated(weights: Weights) -> bool:
    """Whether the first layer of an MLP gives twice what its second takes, as a SwiGLU's does."""
    inside, outside = (weights.tensors.get(f"blocks.0.mlp.fc{number}.weight") for number in (1, 2))
    return inside is not None and outside is not None and inside.shape[0] == 2 * outside.shape[-1]


def _style(weights: Weights, arguments: Settings, architecture: str) -> Style:
    if not _is_gated(weights):
        return Style(activation=_activation(arguments, architecture))
    if (name := arguments.values.get("act_layer")) not in (None, "silu"):
        raise UserError(f"{arguments.path} asks for a gated MLP with act_layer={name}: sdfast has silu there.")
    return Style("silu", gated=True)


def _check_kind(shape: ViTShape, path: Path) -> None:
    """Raise a UserError for what the class of transformers that a model is written as does not have."""
    activation = shape.encoder.style.activation
    if shape.kind in ("vit", "beit") and activation != "gelu":
        raise UserError(f"{path} asks for the activation {activation}: in a ViT of this kind sdfast has gelu only.")
    if shape.kind in ("clip_vision_model", "beit") and not shape.qkv_bias:
        part = "fc_norm" if shape.kind == "beit" else "norm_pre"
        raise UserError(f"{path} describes a ViT with {part} whose attention has no bias: use another ViT.")
    dinov2 = shape.kind.startswith("dinov2")
    fits = dinov2 and (shape.encoder.style.gated or activation == "gelu") and dinov2_ratio(shape) is not None
    if (dinov2 or shape.encoder.style.gated) and not fits:
        raise UserError(
            f"{path} describes a ViT with registers or SwiGLU whose MLP no DINOv2 of transformers has, so that it could"
            " not be written: use another ViT."
        )


def _with_cls(weights: Weights, shape: ViTShape) -> Weights:
    """The weights with what stands first as `cls_token`, which has a position, and without what has no effect.

    Positions of patches alone (`no_embed_class`) get a row of zeros for it. A single register of a model that has no
    CLS and averages the patches is what CLS is in a BEiT; there keys have no bias, which their softmax does not see.
    """
    tensors = dict(weights.tensors)
    if shape.kind == "beit":
        tensors |= {"cls_token": tensors.pop("reg_token")} if "reg_token" in tensors else {}
        for name in [name for name in tensors if name.endswith(".attn.qkv.bias")]:
            of_queries, _, of_values = tensors[name].chunk(3)
            tensors[name] = torch.cat((of_queries, of_values))
    table = tensors.get("pos_embed")
    if shape.cls and table is not None and table.shape == (1, shape.patches, shape.encoder.width):
        tensors["pos_embed"] = torch.cat((torch.zeros_like(table[:, :1]), table), dim=1)
    return replace(weights, tensors=tensors)


def _activation(arguments: Settings, architecture: str) -> Activation:
    """From `model_args`, or by the architecture's name."""
    usual = "quick_gelu" if "_quickgelu_" in architecture else "gelu_tanh" if _TANH.match(architecture) else "gelu"
    name = str(arguments.values.get("act_layer") or usual)
    if name not in _ACTIVATIONS:
        raise UserError(f"{arguments.path} asks for act_layer={name}: sdfast has {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


def _eps(arguments: Settings, architecture: str) -> float:
    """The epsilon of all norms: by the architecture's name, where `model_args` has no norm."""
    return 1e-5 if "_clip_" in architecture and arguments.values.get("norm_layer") is None else 1e-6


def _heads(arguments: Settings, architecture: str, width: int) -> int:
    """The weights do not show the number of heads: from `model_args`, or by the architecture's name."""
    if "num_heads" in arguments.values:
        return arguments.get("num_heads")
    word = _VIT.sub("", architecture).partition("_")[0]
    known = _OTHER_HEADS.get(architecture) or HEADS.get(word, {}).get(width)
    if known is None:
        raise UserError(
            f"{arguments.path} does not say how many heads {architecture} has: add num_heads under model_args."
        )
    return known
