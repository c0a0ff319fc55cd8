"""From the configuration of a checkpoint (Hugging Face's or timm's `config.json`) to its sizes and naming."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdfast.errors import UserError
from sdfast.models import layout
from sdfast.models.layout import Naming
from sdfast.models.processor import ImageProcessor, replaced_steps
from sdfast.models.vit import TransformerShape, ViTShape
from sdfast.models.weights import Weights, read_config

# Defaults of ViTConfig, ViTMAEConfig and Dinov2Config, for configurations that leave them out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "vit_mae": {"patch_size": 16, "layer_norm_eps": 1e-12},
    "vit": {"patch_size": 16, "layer_norm_eps": 1e-12},
    "dinov2": {"patch_size": 14, "layer_norm_eps": 1e-6},
}
_NAMINGS = {"vit_mae": layout.VIT_MAE, "vit": layout.VIT, "dinov2": layout.DINOV2}
_REFUSED = {
    "dinov2_with_registers": "its register tokens have no place here: use the DINOv2 model without registers",
    "deit": "its distillation token has no place here: use a ViT, such as a DeiT published as model_type vit",
}
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
class Source:
    """What a checkpoint is."""

    shape: ViTShape  # with a decoder if the checkpoint brings one
    naming: Naming
    processor: ImageProcessor  # its size is the one that the checkpoint is meant to be used at
    notes: tuple[str, ...] = ()


def describe(config: Mapping[str, Any], weights: Weights) -> Source:
    """Sizes, naming and preprocessing of the checkpoint in `weights.folder`.

    Raises:
        UserError: the architecture is none that sdfast takes, or a field is missing or makes no sense.
    """
    path = weights.folder / "config.json"
    if "model_type" in config:
        return _describe_hugging_face(config, weights, path)
    if "architecture" in config:
        return _describe_timm(config, weights, path)
    raise UserError(f"{path} has neither a model_type (Hugging Face) nor an architecture (timm).")


def _describe_hugging_face(config: Mapping[str, Any], weights: Weights, path: Path) -> Source:
    kind = config["model_type"]
    if kind in _REFUSED:
        raise UserError(f"{path} describes a {kind} model: {_REFUSED[kind]}.")
    if kind not in _NAMINGS:
        raise UserError(f"{path} describes a {kind} model: sdfast takes vit_mae, vit, dinov2 and timm's plain ViTs.")
    if config.get("use_swiglu_ffn"):
        raise UserError(
            f"{path} describes a DINOv2 with a SwiGLU MLP, which sdfast does not have: use a smaller DINOv2."
        )
    values = {**_DEFAULTS[kind], **config}
    if values.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{path} asks for the activation {values['hidden_act']}: sdfast has gelu only.")
    width = whole_number(values, "hidden_size", path, 768)
    default_mlp = int(width * values.get("mlp_ratio", 4)) if kind == "dinov2" else 3072
    encoder = TransformerShape(
        width=width,
        depth=whole_number(values, "num_hidden_layers", path, 12),
        heads=whole_number(values, "num_attention_heads", path, 12),
        mlp_width=default_mlp if kind == "dinov2" else whole_number(values, "intermediate_size", path, default_mlp),
    )
    decoder = None
    if kind == "vit_mae" and layout.has_decoder(weights):
        decoder = TransformerShape(
            width=whole_number(values, "decoder_hidden_size", path, 512),
            depth=whole_number(values, "decoder_num_hidden_layers", path, 8),
            heads=whole_number(values, "decoder_num_attention_heads", path, 16),
            mlp_width=whole_number(values, "decoder_intermediate_size", path, 2048),
        )
    shape = ViTShape(
        image_size=_pair(values.get("image_size", 224), "image_size", path),
        patch_size=_square_patch(values["patch_size"], path),
        channels=whole_number(values, "num_channels", path, 3),
        encoder=encoder,
        decoder=decoder,
        norm_eps=norm_epsilon(values["layer_norm_eps"], path),
        qkv_bias=bool(values.get("qkv_bias", True)),
    )
    _check(shape, path)
    has_file = (weights.folder / "preprocessor_config.json").is_file()
    preprocessing = read_config(weights.folder, "preprocessor_config.json") if has_file else {}
    return _with_processor(kind, shape, ImageProcessor.from_json(preprocessing, kind), preprocessing, has_file)


def _with_processor(
    kind: str, shape: ViTShape, processor: ImageProcessor, preprocessing: Mapping[str, Any], has_file: bool
) -> Source:
    notes = []
    if not has_file:
        numbers = ", ".join(f"{value:g}" for value in processor.mean)
        notes.append(f"there is no preprocessor_config.json: the usual mean ({numbers}) of a {kind} model was taken.")
    elif steps := replaced_steps(preprocessing):
        notes.append(f"the checkpoint's own preprocessing has {steps}; sdfast resizes directly and bilinearly.")
    if len(processor.mean) != shape.channels:
        processor = processor.with_channels(shape.channels)
        if has_file:
            notes.append(f"mean and deviation were given for another number of channels: {shape.channels} used.")
    size = shape.image_size
    if (
        kind == "dinov2"
        and has_file
        and not (processor.height % shape.patch_size or processor.width % shape.patch_size)
    ):
        size = (processor.height, processor.width)  # DINOv2 is published with positions for 518 and used at 224
    return Source(shape, _NAMINGS[kind], processor.with_size(*size), tuple(notes))


def _describe_timm(config: Mapping[str, Any], weights: Weights, path: Path) -> Source:
    architecture = str(config["architecture"])
    if not re.match(r"(vit|deit)_", architecture):
        raise UserError(f"{path} describes timm's {architecture}: of timm, sdfast takes plain ViTs (vit_*, deit_*).")
    arguments, published = _table(config, "model_args", path), _table(config, "pretrained_cfg", path)
    for key, usual in (("act_layer", "gelu"), ("norm_layer", "layernorm")):
        if arguments.get(key) not in (None, usual):
            raise UserError(f"{path} asks for {key}={arguments[key]}: sdfast has {usual} only.")
    tensors = weights.tensors
    for name in ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"):
        if name not in tensors:
            raise UserError(f"{weights.file_of(name)} has no tensor '{name}'.")
    kernel = tensors["patch_embed.proj.weight"]
    if kernel.dim() != 4:
        raise UserError(f"the tensor 'patch_embed.proj.weight' in {weights.file_of('')} is no convolution's.")
    width, channels, patch_height, patch_width = kernel.shape
    depth = 1 + max(int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name)))
    input_size = published.get("input_size", (channels, 224, 224))
    shape = ViTShape(
        image_size=_pair(arguments.get("img_size") or tuple(input_size)[1:], "img_size", path),
        patch_size=_square_patch((patch_height, patch_width), path),
        channels=channels,
        encoder=TransformerShape(
            width=width,
            depth=depth,
            heads=_timm_heads(arguments, architecture, width, path),
            mlp_width=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        ),
        norm_eps=_TIMM_EPS,
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
    )
    _check(shape, path)
    preprocessing = {"image_mean": published.get("mean"), "image_std": published.get("std")}
    notes = [] if "mean" in published else ["timm's config.json gives no mean and deviation: 0.5 was taken."]
    if published:
        notes.append("timm's own preprocessing may resize and crop otherwise; sdfast resizes directly and bilinearly.")
    processor = ImageProcessor.from_json(preprocessing, "vit").with_channels(channels).with_size(*shape.image_size)
    return Source(shape, layout.TIMM, processor, tuple(notes))


def _timm_heads(arguments: Mapping[str, Any], architecture: str, width: int, path: Path) -> int:
    """The weights do not show the number of heads: from `model_args`, or by the architecture's name."""
    if "num_heads" in arguments:
        return whole_number(arguments, "num_heads", path, 0)
    match = re.match(r"(?:vit|deit)_(\w+?)_patch", architecture)
    usual_width, heads = _TIMM_HEADS.get(match[1] if match else "", (0, 0))
    if usual_width != width:
        raise UserError(f"{path} does not say how many heads {architecture} has: add num_heads under model_args.")
    return heads


def _check(shape: ViTShape, path: Path) -> None:
    for what, stack in (("", shape.encoder), ("decoder's ", shape.decoder)):
        if stack is not None and stack.width % stack.heads:
            raise UserError(
                f"{path} is inconsistent: the {what}{stack.heads} heads do not divide its width {stack.width}."
            )
    if any(side % shape.patch_size for side in shape.image_size):
        raise UserError(
            f"{path} is inconsistent: image_size {list(shape.image_size)} is not a multiple of patch_size "
            f"{shape.patch_size}."
        )


def whole_number(values: Mapping[str, Any], key: str, path: Path, default: int) -> int:
    """A positive whole number of a configuration, which lies at `path`; else a UserError."""
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{key} in {path} must be a positive whole number, not {value!r}.")
    return value


def _pair(value: Any, key: str, path: Path) -> tuple[int, int]:
    pair = value if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair):
        raise UserError(f"{key} in {path} must be one or two positive whole numbers, not {value!r}.")
    return int(pair[0]), int(pair[1])


def _square_patch(value: Any, path: Path) -> int:
    height, width = _pair(value, "patch_size", path)
    if height != width:
        raise UserError(f"the patches in {path} are {height} x {width}: sdfast has square patches only.")
    return height


def norm_epsilon(value: Any, path: Path) -> float:
    """`layer_norm_eps` of the configuration at `path`; a UserError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise UserError(f"layer_norm_eps in {path} must be a small positive number, not {value!r}.")
    return float(value)


def _table(config: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise UserError(f"{key} in {path} must be a table.")
    return value
