"""The families of image models: Hugging Face's ViT, ViTMAE and DINOv2, and timm's plain ViTs.

Facts on names: transformers 4.57 and 5.23 (modeling_vit.py, modeling_vit_mae.py, modeling_dinov2.py and
conversion_mapping.py), timm 1.0 (vision_transformer.py). (transformers 5.23 itself writes the decoder blocks of a
ViTMAE as `decoder.decoder_encoder.layer.N`, which 4 does not know; it is read here.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdfast.errors import UserError
from sdfast.modalities.images.model import ViTShape
from sdfast.modalities.images.processor import ImageProcessor, replaced_steps
from sdfast.models.blocks import TransformerShape
from sdfast.models.folder import (
    COUNT,
    EPSILON,
    GELU_ONLY,
    SHARE,
    SIDES,
    STACK,
    SWITCH,
    TEXTS_TAKEN,
    Family,
    Field,
    Kind,
    Settings,
    Source,
    is_number,
)
from sdfast.models.layout import FACEBOOK_AS_TIMM, Names, Naming, blocks
from sdfast.models.weights import Weights, read_config, read_weights
from sdfast.regular import is_there

_WANTED = "a plain ViT, ViTMAE or DINOv2 (no registers, extra tokens or other blocks)"
_HF_BLOCK: Names = {  # second, what transformers 5 has in memory
    "attn.qkv": ("attention.attention.(query|key|value)", "attention.(q|k|v)_proj"),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "fc1": ("intermediate.dense", "mlp.fc1"),
    "fc2": ("output.dense", "mlp.fc2"),
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
}
_HF_LISTS = ("encoder.layer", "layers")
_HF_AROUND = {
    "encoder.patch_embed": ["embeddings.patch_embeddings.projection"],
    "encoder.norm": ["layernorm"],
    "encoder.cls_token": ["embeddings.cls_token"],
    "encoder.position_embeddings": ["embeddings.position_embeddings"],
}
VIT_MAE = Naming(
    prefix="vit.",
    names={
        **_HF_AROUND,
        **blocks("encoder.blocks", _HF_LISTS, _HF_BLOCK),
        **blocks("decoder.blocks", ("decoder.decoder_layers", "decoder.decoder_encoder.layer"), _HF_BLOCK),
        "decoder.embed": ["decoder.decoder_embed"],
        "decoder.norm": ["decoder.decoder_norm"],
        "decoder.pred": ["decoder.decoder_pred"],
        "decoder.mask_token": ["decoder.mask_token"],
        "decoder.position_embeddings": ["decoder.decoder_pos_embed"],
    },
    ignored=re.compile(r"(vit\.)?(pooler|classifier)\."),
    wanted=_WANTED,
)
VIT = Naming(
    prefix="vit.",
    names={**_HF_AROUND, **blocks("encoder.blocks", _HF_LISTS, _HF_BLOCK), "classifier": ["classifier"]},
    ignored=re.compile(r"(vit\.)?(pooler|classifier|decoder)\.|(vit\.)?embeddings\.mask_token$"),
    wanted=_WANTED,
)
_PLAIN_BLOCK: Names = {"norm1": ("norm1",), "norm2": ("norm2",), "fc1": ("mlp.fc1",), "fc2": ("mlp.fc2",)}
_DINOV2_BLOCK = {**_HF_BLOCK, **_PLAIN_BLOCK, "scale1": ("layer_scale1",), "scale2": ("layer_scale2",)}
DINOV2 = Naming(
    prefix="dinov2.",
    names={**_HF_AROUND, **blocks("encoder.blocks", _HF_LISTS, _DINOV2_BLOCK)},
    ignored=re.compile(r"classifier\.|(dinov2\.)?embeddings\.mask_token$"),
    wanted=_WANTED,
    leaves={"lambda1": "vector"},
    always_scaled=True,
)
_TIMM_BLOCK = {
    **_PLAIN_BLOCK,
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
    wanted=_WANTED,
    leaves={"gamma": "vector"},
    facebook=FACEBOOK_AS_TIMM,
)
_REFUSED: Mapping[str, tuple[Any, str]] = {
    "use_swiglu_ffn": (False, "describes a DINOv2 with a SwiGLU MLP, which sdfast does not have: use a smaller DINOv2"),
    **GELU_ONLY,
}
FAMILIES: Mapping[str, Family] = {
    "vit_mae": Family("ViTMAE", VIT_MAE, _REFUSED),
    "vit": Family("ViT", VIT, _REFUSED),
    "dinov2": Family(
        "Dinov2",
        DINOV2,
        _REFUSED,
        stack=STACK[:3],  # the MLP's width is a multiple: see `_multiple`
        defaults={"patch_size": 14, "layer_norm_eps": 1e-6},
        processor_decides=True,  # published with positions for 518 and used at 224
    ),
}
SHAPE = (
    Field("image_size", "image_size", SIDES, 224),
    Field("patch_size", "patch_size", SIDES._replace(theirs=int), 16),  # square ones: one number
    Field("num_channels", "channels", COUNT, 3),
    Field("layer_norm_eps", "norm_eps", EPSILON, 1e-12),
    Field("qkv_bias", "qkv_bias", SWITCH, True),
)
DECODER = tuple(
    Field(f"decoder_{each.key}", each.place, COUNT, size) for each, size in zip(STACK, (512, 8, 16, 2048), strict=True)
)
_TAKEN = f"sdfast takes {', '.join(FAMILIES)} and timm's plain ViTs"
_REASONS = {
    "dinov2_with_registers": "its register tokens have no place here: use the DINOv2 model without registers",
    "deit": "its distillation token has no place here: use a ViT, such as a DeiT published as model_type vit",
}
# What has no place here, and the values at which that is no loss.
_UNHEEDED = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "initializer_range": 0.02,
}
_TIMM_UNHEEDED = dict.fromkeys(
    ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"), 0.0
)
_TIMM = Family(
    "timm",
    TIMM,
    {
        key: (usual, f"asks for {key}={{value}}: sdfast has {usual} only")
        for key, usual in (("act_layer", "gelu"), ("norm_layer", "layernorm"))
    },
)
_TIMM_EPS = 1e-6  # the LayerNorm of timm's vision_transformer.py
_TIMM_HEADS = {  # width, heads by the word in the architecture's name
    "tiny": (192, 3),
    "small": (384, 6),
    "medium": (512, 8),
    "base": (768, 12),
    "large": (1024, 16),
    "huge": (1280, 16),
    "giant": (1408, 16),
    "gigantic": (1664, 16),
}


@dataclass(frozen=True)
class ImageSource(Source):
    """An image model's folder: the shape has a decoder if the checkpoint brings one."""

    processor: ImageProcessor  # its size is the one that the checkpoint is meant to be used at


def describe(folder: Path) -> ImageSource:
    """Sizes, naming and preprocessing of the checkpoint in a folder.

    Raises:
        UserError: the architecture is none that sdfast takes, or a field is missing or makes no sense, or a file cannot
            be read.
    """
    settings, weights = Settings(read_config(folder), folder / "config.json"), read_weights(folder)
    if "model_type" in settings.values:
        return _describe_hugging_face(settings, weights)
    if "architecture" in settings.values:
        return _describe_timm(settings, weights)
    raise UserError(f"{settings.path} has neither a model_type (Hugging Face) nor an architecture (timm).")


def _describe_hugging_face(settings: Settings, weights: Weights) -> ImageSource:
    config = settings.values
    of_texts = "vocab_size" in config and "image_size" not in config
    family = settings.family(FAMILIES, TEXTS_TAKEN if of_texts else _TAKEN, _REASONS)
    full = Settings({**family.defaults, **config}, settings.path)
    sizes = full.read(family.stack)
    if "mlp_width" not in sizes:
        sizes["mlp_width"] = _multiple(full, sizes["width"])
    decoder = None
    if "decoder.pred" in family.naming.names and any(name.startswith("decoder.") for name in weights.tensors):
        decoder = TransformerShape(**full.read(DECODER))
    around = full.read(SHAPE)
    around["patch_size"] = _square_patch(around["patch_size"], settings.path)
    shape = ViTShape(encoder=TransformerShape(**sizes), decoder=decoder, **around)
    _check(shape, settings, weights)
    processor, notes = _preprocessing(config["model_type"], family, shape, weights.folder)
    notes += settings.unheeded(_UNHEEDED)
    return ImageSource(settings, weights, family, shape, notes, processor)


def trained_with(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """How a masked auto-encoder was pre-trained, as keys of `pretrain`; nothing for another model.

    Args:
        config: of Hugging Face; what it leaves out is as transformers fills it.
        path: where it lies, for messages.

    Raises:
        UserError: a value that makes no sense.
    """
    if config.get("model_type") != "vit_mae":
        return {}
    settings = Settings(config, path)
    ratio = settings.get("mask_ratio", SHARE, 0.75)
    own: dict[str, Any] = {"norm_pix": settings.get("norm_pix_loss", SWITCH, False)}
    if ratio:  # 0 is how features are taken, and nothing that a model was pre-trained with
        own["mask_ratio"] = ratio
    return own


def _preprocessing(kind: str, family: Family, shape: ViTShape, folder: Path) -> tuple[ImageProcessor, list[str]]:
    """How images are made for a model of Hugging Face, and sentences on what of that is not followed."""
    has_file, notes = is_there(folder / "preprocessor_config.json"), []
    preprocessing = read_config(folder, "preprocessor_config.json") if has_file else {}
    processor = ImageProcessor.from_json(preprocessing, kind)
    if not has_file:
        numbers = ", ".join(f"{value:g}" for value in processor.mean)
        notes.append(f"there is no preprocessor_config.json: the usual mean ({numbers}) of a {kind} model was taken.")
    elif steps := replaced_steps(preprocessing):
        notes.append(f"the checkpoint's own preprocessing has {steps}; sdfast resizes bilinearly, by data.resize.")
    if has_file and len(processor.mean) != shape.channels:
        notes.append(f"mean and deviation were given for another number of channels: {shape.channels} used.")
    processor = processor.with_channels(shape.channels)
    size, wanted = shape.image_size, (processor.height, processor.width)
    if family.processor_decides and has_file and not any(side % shape.patch_size for side in wanted):
        size = wanted
    elif has_file and wanted != size:
        notes.append(
            f"preprocessor_config.json makes images of {wanted[0]} x {wanted[1]}; the model's own {size[0]} x {size[1]}"
            " were taken."
        )
    return processor.with_size(*size), notes


def _describe_timm(settings: Settings, weights: Weights) -> ImageSource:
    path, architecture = settings.path, str(settings.values["architecture"])
    if not re.match(r"(vit|deit)_", architecture):
        raise UserError(f"{path} describes timm's {architecture}: of timm, sdfast takes plain ViTs (vit_*, deit_*).")
    arguments, published = settings.table("model_args"), settings.table("pretrained_cfg").values
    Settings({key: value for key, value in arguments.values.items() if value is not None}, path).refuse(_TIMM.refused)
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
        patch_size=_square_patch(patch, path),
        channels=channels,
        encoder=TransformerShape(
            width=width,
            depth=depth,
            heads=_timm_heads(arguments, architecture, width),
            mlp_width=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        ),
        norm_eps=_TIMM_EPS,
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
    )
    _check(shape, settings, weights)
    preprocessing = {"image_mean": published.get("mean"), "image_std": published.get("std")}
    notes = [] if "mean" in published else ["timm's config.json gives no mean and deviation: 0.5 was taken."]
    if published:
        notes.append("timm's own preprocessing may resize and crop otherwise; sdfast resizes directly and bilinearly.")
    notes += arguments.unheeded(_TIMM_UNHEEDED)
    processor = ImageProcessor.from_json(preprocessing, "vit").with_channels(channels).with_size(*shape.image_size)
    return ImageSource(settings, weights, _TIMM, shape, notes, processor)


def _timm_heads(arguments: Settings, architecture: str, width: int) -> int:
    """The weights do not show the number of heads: from `model_args`, or by the architecture's name."""
    if "num_heads" in arguments.values:
        return arguments.get("num_heads")
    match = re.match(r"(?:vit|deit)_(\w+?)_patch", architecture)
    usual_width, heads = _TIMM_HEADS.get(match[1] if match else "", (0, 0))
    if usual_width != width:
        raise UserError(
            f"{arguments.path} does not say how many heads {architecture} has: add num_heads under model_args."
        )
    return heads


def _multiple(settings: Settings, width: int) -> int:
    """The MLP's width of a DINOv2."""
    ratio = Kind("a positive number", lambda value: is_number(value) and 0 < width * value < float("inf"))
    return int(width * settings.get("mlp_ratio", ratio, 4))


def _square_patch(patch: Sequence[int], path: Path) -> int:
    height, width = patch
    if height != width:
        raise UserError(f"the patches in {path} are {height} x {width}: sdfast has square patches only.")
    return height


def _check(shape: ViTShape, settings: Settings, weights: Weights) -> None:
    settings.check_heads(shape.encoder)
    depth = shape.encoder.depth
    if shape.decoder is not None:
        settings.check_heads(shape.decoder, "decoder's ")
        depth += shape.decoder.depth
    if any(side % shape.patch_size for side in shape.image_size):
        raise UserError(
            f"{settings.path} is inconsistent: image_size {list(shape.image_size)} is not a multiple of patch_size"
            f" {shape.patch_size}."
        )
    settings.check_budget(shape.parameters, depth, weights)
