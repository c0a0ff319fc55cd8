"""From the configuration of a checkpoint (Hugging Face's or timm's `config.json`) to its sizes and naming."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdfast.errors import UserError
from sdfast.models import layout
from sdfast.models.layout import Naming
from sdfast.models.processor import ImageProcessor, replaced_steps
from sdfast.models.vit import TransformerShape, ViTShape
from sdfast.models.weights import Weights, read_config
from sdfast.regular import is_there

# Defaults of ViTConfig, ViTMAEConfig and Dinov2Config, for configurations that leave them out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "vit_mae": {"patch_size": 16, "layer_norm_eps": 1e-12},
    "vit": {"patch_size": 16, "layer_norm_eps": 1e-12},
    "dinov2": {"patch_size": 14, "layer_norm_eps": 1e-6},
}
NAMINGS = {"vit_mae": layout.VIT_MAE, "vit": layout.VIT, "dinov2": layout.DINOV2}
_TAKEN = "sdfast takes vit_mae, vit, dinov2 and timm's plain ViTs"
_REFUSED = {
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
_SPARE = 1 << 24  # parameters
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
    trained_with: Mapping[str, Any] = field(default_factory=dict)  # see `trained_with`


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
    if not isinstance(kind, str) or kind not in NAMINGS:
        of_texts = "vocab_size" in config and "image_size" not in config
        taken = "of text models sdfast takes bert and roberta" if of_texts else _TAKEN
        reason = _REFUSED.get(str(kind), taken)
        raise UserError(f"{path} describes a {kind} model: {reason}.")
    if config.get("use_swiglu_ffn"):
        raise UserError(
            f"{path} describes a DINOv2 with a SwiGLU MLP, which sdfast does not have: use a smaller DINOv2."
        )
    values = {**_DEFAULTS[kind], **config}
    if values.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{path} asks for the activation {values['hidden_act']}: sdfast has gelu only.")
    width = whole_number(values, "hidden_size", path, 768)
    encoder = TransformerShape(
        width=width,
        depth=whole_number(values, "num_hidden_layers", path, 12),
        heads=whole_number(values, "num_attention_heads", path, 12),
        mlp_width=_mlp_of(values, width, path)
        if kind == "dinov2"
        else whole_number(values, "intermediate_size", path, 3072),
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
        qkv_bias=_switch(values, "qkv_bias", path, True),
    )
    _check(shape, weights, path)
    has_file = is_there(weights.folder / "preprocessor_config.json")
    preprocessing = read_config(weights.folder, "preprocessor_config.json") if has_file else {}
    processor = ImageProcessor.from_json(preprocessing, kind)
    source = _with_processor(kind, shape, processor, preprocessing, has_file)
    return replace(source, notes=(*source.notes, *unheeded(config, _UNHEEDED)), trained_with=trained_with(config, path))


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
    ratio = config.get("mask_ratio", 0.75)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise UserError(f"mask_ratio in {path} must be from 0 to 1, not {ratio!r}.")
    own: dict[str, Any] = {"norm_pix": _switch(config, "norm_pix_loss", path, False)}
    if ratio:  # 0 is how features are taken, and nothing that a model was pre-trained with
        own["mask_ratio"] = float(ratio)
    return own


def unheeded(config: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """A sentence on settings of a configuration that have no place here, where one differs from the usual value."""
    found = [f"{key}={config[key]}" for key, value in usual.items() if config.get(key) not in (None, value)]
    if not found:
        return []
    return [
        f"not followed: {', '.join(found)} of config.json; dropout acts in finetune, as finetune.dropout says, and new"
        " weights have a deviation of 0.02."
    ]


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
    size, wanted = shape.image_size, (processor.height, processor.width)
    if (
        kind == "dinov2"
        and has_file
        and not (processor.height % shape.patch_size or processor.width % shape.patch_size)
    ):
        size = wanted  # DINOv2 is published with positions for 518 and used at 224
    elif has_file and wanted != size:
        notes.append(
            f"preprocessor_config.json makes images of {wanted[0]} x {wanted[1]}; the model's own {size[0]} x {size[1]}"
            " were taken."
        )
    return Source(shape, NAMINGS[kind], processor.with_size(*size), tuple(notes))


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
    if not isinstance(input_size, list | tuple):
        raise UserError(f"input_size in {path} must be channels, height and width, not {input_size!r}.")
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
    _check(shape, weights, path)
    preprocessing = {"image_mean": published.get("mean"), "image_std": published.get("std")}
    notes = [] if "mean" in published else ["timm's config.json gives no mean and deviation: 0.5 was taken."]
    if published:
        notes.append("timm's own preprocessing may resize and crop otherwise; sdfast resizes directly and bilinearly.")
    notes += unheeded(arguments, _TIMM_UNHEEDED)
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


def _mlp_of(values: Mapping[str, Any], width: int, path: Path) -> int:
    """DINOv2 gives the MLP's width as a multiple."""
    ratio = values.get("mlp_ratio", 4)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < width * ratio < float("inf"):
        raise UserError(f"mlp_ratio in {path} must be a positive number, not {ratio!r}.")
    return int(width * ratio)


def _switch(values: Mapping[str, Any], key: str, path: Path, default: bool) -> bool:
    value = values.get(key, default)
    if not isinstance(value, bool):
        raise UserError(f"{key} in {path} must be true or false, not {value!r}.")
    return value


def check_budget(parameters: int, depth: int, weights: Weights, path: Path) -> None:
    """Compare a configuration with the weights before anything of its sizes is allocated.

    Small differences are left to the comparison of each tensor, which names it.

    Args:
        parameters: how many the model has whose sizes the configuration gives.
        depth: and how many blocks.
        weights: of the checkpoint.
        path: of the configuration.

    Raises:
        UserError: the model is far larger than its weights.
    """
    if depth <= len(weights.tensors) and parameters <= 2 * weights.size + _SPARE:
        return
    raise UserError(
        f"{path} describes a model of {depth:,} blocks and {parameters:,} parameters, but {weights.file_of('')} holds"
        f" {weights.size:,}: one of the sizes there is wrong, or the two are not of the same model."
    )


def _check(shape: ViTShape, weights: Weights, path: Path) -> None:
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
    stacks = [shape.encoder] + ([] if shape.decoder is None else [shape.decoder])
    parameters = shape.encoder.width * (shape.patch_values + 1 + 1 + 1 + shape.patches + 2)  # CLS, positions, norm
    if shape.decoder is not None:
        width = shape.decoder.width
        parameters += width * (shape.encoder.width + 1 + 1 + 1 + shape.patches + 2) + (width + 1) * shape.patch_values
    parameters += sum(stack.depth * block_parameters(stack, shape.qkv_bias) for stack in stacks)
    check_budget(parameters, sum(stack.depth for stack in stacks), weights, path)


def block_parameters(shape: TransformerShape, qkv_bias: bool = True) -> int:
    """Numbers in a block, of sizes that no module could be made of if they are wrong: see `check_budget`."""
    width, hidden = shape.width, shape.mlp_width
    return 4 * width * width + 2 * width * hidden + hidden + width * (3 * qkv_bias + 6)  # and two norms


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
