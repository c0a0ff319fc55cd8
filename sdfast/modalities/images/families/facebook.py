"""A file of weights alone, as facebookresearch/mae and its kin save them: what it is of is read from its tensors.

Facts on names and values: facebookresearch/mae (models_mae.py, models_vit.py, main_pretrain.py, util/misc.py), which
RETFound and SatMAE derive from; facebookresearch/dino, dinov2 (vision_transformer.py, swiglu_ffn.py) and ijepa name the
encoder's tensors likewise. Fine-tuned ones have `fc_norm` in place of `norm` where they average the patches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sdfast.errors import UserError
from sdfast.modalities.images.families.family import ImageFamily, ImageSource, check, pool_notes, square_patch
from sdfast.modalities.images.families.timm import TIMM
from sdfast.modalities.images.model import ViTShape
from sdfast.modalities.images.processor import IMAGENET_MEAN, IMAGENET_STD, ImageProcessor
from sdfast.models.blocks import PLAIN, Style, TransformerShape
from sdfast.models.folder import SHARE, SIDES, Settings
from sdfast.models.found import Told, unwrapped
from sdfast.models.kinds import tensor_words
from sdfast.models.layout import Naming, blocks
from sdfast.models.weights import Weights, read_weights

_EPSILON = 1e-6  # of every LayerNorm there
_DECODER_BLOCK = {
    "attn.qkv": ("attn.qkv",),
    "attn.proj": ("attn.proj",),
    "fc1": ("mlp.fc1",),
    "fc2": ("mlp.fc2",),
    "norm1": ("norm1",),
    "norm2": ("norm2",),
}
_NOT_PLAIN = "holds '{name}', which a plain ViT or masked auto-encoder does not have"
FACEBOOK = Naming(
    names={
        **TIMM.names,
        "encoder.registers": ["register_tokens"],
        "encoder.norm": ["norm", "fc_norm"],
        "encoder.blocks.*.fc1": ["blocks.*.mlp.fc1", "blocks.*.mlp.w12"],  # second, of a SwiGLU MLP
        "encoder.blocks.*.fc2": ["blocks.*.mlp.fc2", "blocks.*.mlp.w3"],
        **blocks("decoder.blocks", ["decoder_blocks"], _DECODER_BLOCK),
        "decoder.embed": ["decoder_embed"],
        "decoder.norm": ["decoder_norm"],
        "decoder.pred": ["decoder_pred"],
        "decoder.mask_token": ["mask_token"],
        "decoder.position_embeddings": ["decoder_pos_embed"],
    },
    ignored=re.compile(r"(head|head_dist|fc|projector|dino_head|ibot_head)\.|mask_token$"),
    wanted="a plain ViT or masked auto-encoder",
    leaves=TIMM.leaves,
    facebook=_NOT_PLAIN,
)
_FAMILY = ImageFamily("facebookresearch", FACEBOOK, {})
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}  # by width: ViT-Ti, -S, -B, -L, -H, -g
_GATED_HEADS = {1536: 24}  # DINOv2's largest
_DECODER_HEADS = {512: 16}
_OTHERS = (  # names that no plain ViT has, and what such a model is
    (r"(decoder_)?channel_embed$|patch_embed\.\d+\.", "a masked auto-encoder with groups of channels (as SatMAE has)"),
    (r"reg_token$", "timm's, with register tokens: give it with the config.json that timm writes"),
    (r"storage_tokens$|rope_embed\.", "a DINOv3, of whose blocks more is to be said: give it as transformers saves it"),
    (r"dist_token$", "a DeiT with a distillation token: give one without"),
    (r"(temporal|time)_?embed|pos_embed_(spatial|temporal)", "a masked auto-encoder of videos or series of images"),
    (r"blocks\.0\.attn\.(q_norm|rel_pos|relative_position)|.*rel_pos_bias", "a ViT with another attention"),
    (r"norm_pre\.|ln_pre\.", "a ViT with a LayerNorm before its blocks"),
)
_DINO = (37, 37), 14, 224  # DINOv2: published with positions of 518 x 518 pixels, and used at this size


def describe(file: Path, told: Told, image_size: tuple[int, int] | int | None = None) -> ImageSource:
    """Sizes and preprocessing of a file of weights alone.

    Args:
        file: of torch.save or safetensors.
        told: what a person says of it.
        image_size: height and width for which it will be used; where its patches are no square, what they may be of.

    Raises:
        UserError: it is none that sdfast takes, or does not say enough; the sentence has the option that does.
    """
    weights = _read(file)
    settings = Settings(weights.arguments, file)
    width, channels, patch, kernel_width = _tensor(weights, "patch_embed.proj.weight", 4).shape
    square_patch((patch, kernel_width), file)
    around = _around(weights)
    grid = _grid(weights, settings, patch, width, image_size)
    notes: list[str] = []
    encoder = _stack(weights, settings, "blocks", width, told.heads, notes)
    shape = ViTShape(
        image_size=(grid[0] * patch, grid[1] * patch),
        patch_size=patch,
        channels=channels,
        encoder=encoder,
        decoder=_decoder(weights, settings, told, notes),
        norm_eps=_EPSILON,
        qkv_bias="blocks.0.attn.qkv.bias" in weights.tensors,
        **around,
    )
    check(shape, settings, weights)
    notes += pool_notes(shape)
    if "fc_norm.weight" in weights.tensors:
        notes.append(
            "it was fine-tuned with the mean of its patches (fc_norm): that LayerNorm is taken for its last one, which"
            " normalises each token here."
        )
    values = {} if shape.decoder is None else _values(settings, told)
    processor = _processor(shape, grid, told, file, notes)
    if shape.decoder is not None and "norm_pix_loss" not in values:
        notes.append(
            "the file does not say whether its decoder predicts pixels normalised per patch: pretrain.norm_pix decides;"
            " `sdfast convert` has --norm-pix and --no-norm-pix."
        )
    return ImageSource(Settings(values, file), weights, _FAMILY, shape, notes, processor)


def check_file(file: Path) -> None:
    """Raise a UserError unless a file of weights alone is of a ViT of facebookresearch's or timm's names."""
    _read(file)


def _read(file: Path) -> Weights:
    weights = unwrapped(read_weights(file), FACEBOOK)
    chunks = re.compile(r"(?<=blocks\.)\d+\.(?=\d+\.)")  # DINOv2 trains its blocks in groups, numbered all the same
    tensors = {chunks.sub("", name): tensor for name, tensor in weights.tensors.items()}
    weights = replace(weights, tensors=tensors, files={chunks.sub("", n): path for n, path in weights.files.items()})
    for pattern, what in _OTHERS:
        if (name := next((name for name in sorted(tensors) if re.match(pattern, name)), None)) is not None:
            raise UserError(f"{file} holds '{name}', so it is of {what}; of such files sdfast takes plain ViTs.")
    if "patch_embed.proj.weight" not in tensors or "blocks.0.norm1.weight" not in tensors:
        known = tensor_words(tensors)
        holds = f"tensors that are {known[0]} ('{known[1]}')" if known else f"tensors such as '{min(tensors)}'"
        raise UserError(
            f"the model {file} is a file of weights alone, and holds {holds}: put the config.json of the model beside"
            " it, which says what they are of, and give the folder; alone, sdfast takes ViTs with the names of"
            " facebookresearch/mae."
        )
    return weights


def _tensor(weights: Weights, name: str, dimensions: int) -> Tensor:
    if name not in weights.tensors:
        raise weights.missing(name)
    tensor = weights.tensors[name]
    if tensor.dim() != dimensions or 0 in tensor.shape:
        raise UserError(
            f"the tensor '{name}' in {weights.file_of(name)} has shape {list(tensor.shape)}: that of a ViT of images"
            f" has {dimensions} dimensions."
        )
    return tensor


def _stack(
    weights: Weights, settings: Settings, name: str, width: int, told: int | None, notes: list[str]
) -> TransformerShape:
    """The sizes of the encoder's (`blocks`) or the decoder's (`decoder_blocks`) stack."""
    numbers = [int(match[1]) for each in weights.tensors if (match := re.match(rf"{name}\.(\d{{1,6}})\.", each))]
    gated = f"{name}.0.mlp.w12.weight" in weights.tensors
    mlp = _tensor(weights, f"{name}.0.mlp.{'w3' if gated else 'fc2'}.weight", 2).shape[1]
    whose = "" if name == "blocks" else "decoder's "
    heads = told or settings.values.get("decoder_num_heads" if whose else "num_heads")
    if type(heads) is not int or heads < 1:
        heads = _usual_heads(settings, width, gated, whose, notes)
    style = Style("silu", gated=True) if gated else PLAIN
    return TransformerShape(width=width, depth=1 + max(numbers), heads=heads, mlp_width=mlp, style=style)


def _around(weights: Weights) -> dict[str, Any]:
    """What is not as in a plain ViT, and as what the model is written then; an I-JEPA is one without a CLS token."""
    gated = "blocks.0.mlp.w12.weight" in weights.tensors
    decoder = any(name.startswith("decoder_") for name in weights.tensors)
    if "cls_token" not in weights.tensors:
        if decoder or gated or "register_tokens" in weights.tensors:
            raise weights.missing("cls_token")
        return {"kind": "ijepa", "cls": False, "pool": "mean"}
    if "register_tokens" in weights.tensors:
        count = _tensor(weights, "register_tokens", 3).shape[1]
        return {"kind": "dinov2_with_registers", "registers": count}
    return {"kind": "dinov2"} if gated else {}


def _usual_heads(settings: Settings, width: int, gated: bool, whose: str, notes: list[str]) -> int:
    """The number of heads by the width, which is certain where the script named one of facebookresearch's models."""
    option = "--decoder-heads" if whose else "--heads"
    heads = (_DECODER_HEADS if whose else _GATED_HEADS if gated else _HEADS).get(width)
    if heads is None:
        raise UserError(
            f"{settings.path} does not say how many heads its {whose}attention of {width} features has:"
            f" `sdfast convert {settings.path} FOLDER {option} N` makes a folder that does."
        )
    if not re.match(r"(mae_)?vit_(base|large|huge)_patch", str(settings.values.get("model"))):
        notes.append(
            f"the file does not say how many heads the {whose}attention has: {heads} were taken, usual for {width}"
            f" features; `sdfast convert` has {option}."
        )
    return heads


def _decoder(weights: Weights, settings: Settings, told: Told, notes: list[str]) -> TransformerShape | None:
    if not any(name.startswith("decoder_") for name in weights.tensors):
        return None
    width = _tensor(weights, "decoder_embed.weight", 2).shape[0]
    return _stack(weights, settings, "decoder_blocks", width, told.decoder_heads, notes)


def _grid(
    weights: Weights, settings: Settings, patch: int, width: int, image_size: tuple[int, int] | int | None
) -> tuple[int, int]:
    """Patches down and across: as the script's `input_size` says, or a square, or as the size that is asked for."""
    positions = _tensor(weights, "pos_embed", 3)
    if positions.shape[2] != width:
        raise UserError(
            f"{settings.path} has positions of {positions.shape[2]} features for patches of {width}: the rest is of"
            " times or channels (as in SatMAE's temporal model), which sdfast does not have; give a plain one."
        )
    first = int("cls_token" in weights.tensors)
    count = positions.shape[1] - first
    for size in (settings.values.get("input_size"), image_size):
        if SIDES.holds(size):
            grid = tuple(side // patch for side in SIDES.ours(size))
            if math.prod(grid) == count:
                return grid[0], grid[1]
    side = math.isqrt(max(count, 0))
    if side == 0 or side * side != count:
        raise UserError(
            f"{settings.path} has positions of {count} patches, which are no square: give the"
            " height and width that they are of as data.image_size (convert: --image-size)."
        )
    return side, side


def _processor(shape: ViTShape, grid: tuple[int, int], told: Told, file: Path, notes: list[str]) -> ImageProcessor:
    height, width = shape.image_size
    if (grid, shape.patch_size) == _DINO[:2]:
        height = width = _DINO[2]
    if told.mean is None or told.std is None:
        notes.append(
            "the file does not say how pixels were normalised: ImageNet's mean and deviation were taken; `sdfast"
            " convert` has --mean and --std, and data.normalise=dataset takes those of the data."
        )
    for name, values in (("--mean", told.mean), ("--std", told.std)):
        if values is not None and len(values) not in (1, shape.channels):
            raise UserError(f"{name} has {len(values)} numbers, and {file} is of {shape.channels} channels.")
    mean, std = (
        _each(values, usual, shape.channels) for values, usual in ((told.mean, IMAGENET_MEAN), (told.std, IMAGENET_STD))
    )
    return ImageProcessor(height, width, mean, std)


def _each(values: Sequence[float] | None, usual: Sequence[float], channels: int) -> tuple[float, ...]:
    if values is None:
        return ImageProcessor(1, 1, tuple(usual), tuple(usual)).with_channels(channels).mean
    return tuple(values) * (channels if len(values) == 1 else 1)


def _values(settings: Settings, told: Told) -> dict[str, Any]:
    """How a masked auto-encoder was trained, where the script's arguments or a person say it."""
    norm_pix = settings.values.get("norm_pix_loss") if told.norm_pix is None else told.norm_pix
    ratio = settings.values.get("mask_ratio")
    values: dict[str, Any] = {"norm_pix_loss": norm_pix} if isinstance(norm_pix, bool) else {}
    return {**values, "mask_ratio": ratio} if SHARE.holds(ratio) else values
