"""What families of image models have in common: a description, and the checks of what a folder says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sdfast.errors import UserError
from sdfast.modalities.images.model import ViTShape
from sdfast.modalities.images.processor import ImageProcessor
from sdfast.models.folder import COUNT, EPSILON, SIDES, STACK, SWITCH, Family, Field, Settings, Source
from sdfast.models.layout import Names, Naming, blocks
from sdfast.models.weights import Weights

WANTED = "a plain ViT, ViTMAE, DINOv2 or DINOv3 (no extra tokens or other blocks)"
HF_LISTS = ("encoder.layer", "layers")
HF_BLOCK: Names = {  # second, what transformers 5 has in memory
    "attn.qkv": ("attention.attention.(query|key|value)", "attention.(q|k|v)_proj"),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "fc1": ("intermediate.dense", "mlp.fc1"),
    "fc2": ("output.dense", "mlp.fc2"),
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
}
HF_AROUND: Names = {
    "encoder.patch_embed": ["embeddings.patch_embeddings.projection"],
    "encoder.norm": ["layernorm"],
    "encoder.cls_token": ["embeddings.cls_token"],
    "encoder.position_embeddings": ["embeddings.position_embeddings"],
}
DECODER_NAMES: Names = {
    **blocks("decoder.blocks", ("decoder.decoder_layers", "decoder.decoder_encoder.layer"), HF_BLOCK),
    "decoder.embed": ["decoder.decoder_embed"],
    "decoder.norm": ["decoder.decoder_norm"],
    "decoder.pred": ["decoder.decoder_pred"],
    "decoder.mask_token": ["decoder.mask_token"],
    "decoder.position_embeddings": ["decoder.decoder_pos_embed"],
}
TABLE = "vision_config"
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


def _nothing(settings: Settings, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


def _none(shape: ViTShape, like: Tensor) -> Mapping[str, Tensor]:
    return {}


@dataclass(frozen=True)
class ImageFamily(Family):
    """One `model_type` of images.

    Attributes:
        shape: fields of `ViTShape` in `config.json`.
        fixed: those that it does not have; of a family that is written as what it is, `kind`.
        further_sizes: sizes of the encoder that are not among `stack`, of the configuration and what that gave.
        further_shape: fields of `ViTShape` that are not among `shape`, likewise.
        config: what `config.json` has of a shape of this family beside the stack; None where its models are written as
            ViTMAE and ViT. Its naming then has the names of the decoder as well.
        names: the naming by shape, where one is not enough.
        unused: tensors by name, without prefix, that transformers' model has and ours has not: of a shape and the
            device and type of another.
        noted: settings that are not followed: the value at which that is no loss, and a sentence, `{value}`.
        model, classifier: ends of the names of transformers' classes of the encoder and the classifier; None for none.
        beside_mean: the classifier there is given the CLS token beside the mean of the patches' tokens.
        whole: the `model_type` of the classifier, where it is another: this one is a table, `TABLE`, in it.
        nested: whether the encoder is described by that table.
        bare: whether the encoder's own class leaves the prefix of the naming out.
        classified: fields of `ViTShape` that differ in a classifier.
    """

    shape: tuple[Field, ...] = SHAPE
    fixed: Mapping[str, Any] = field(default_factory=dict)
    further_sizes: Callable[[Settings, Mapping[str, Any]], Mapping[str, Any]] = _nothing
    further_shape: Callable[[Settings, Mapping[str, Any]], Mapping[str, Any]] = _nothing
    config: Callable[[ViTShape], Mapping[str, Any]] | None = None
    names: Callable[[ViTShape], Naming] | None = None
    unused: Callable[[ViTShape, Tensor], Mapping[str, Tensor]] = _none
    noted: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    model: str = "Model"
    classifier: str | None = "ForImageClassification"
    beside_mean: bool = False
    whole: str = ""
    nested: bool = False
    bare: bool = True
    classified: Mapping[str, Any] = field(default_factory=dict)

    def of(self, shape: ViTShape) -> ImageFamily:
        """The family with the names that a model of this shape has."""
        return self if self.names is None else replace(self, naming=self.names(shape))


@dataclass(frozen=True)
class ImageSource(Source):
    """An image model's folder: the shape has a decoder if the checkpoint brings one."""

    family: ImageFamily
    shape: ViTShape
    processor: ImageProcessor  # its size is the one that the checkpoint is meant to be used at


def pool_notes(shape: ViTShape) -> list[str]:
    """A sentence on what stands for an image, where that is not the CLS token after the last norm."""
    if shape.kind == "clip_vision_model":
        return ["finetune classifies the mean of the patches before the last norm, as transformers does with CLIP."]
    how = {"mean": "after the last norm", "mean_then_norm": "which the last norm follows"}.get(shape.pool)
    if how is None:
        return []
    start = "" if shape.cls else "there is no CLS token: "
    return [f"{start}distill.tokens=cls matches, and finetune classifies, the mean of the patches, {how}."]


def square_patch(patch: Sequence[int], path: Path) -> int:
    """The side of a patch; a UserError that names the file at `path` if it is not square."""
    height, width = patch
    if height != width:
        raise UserError(f"the patches in {path} are {height} x {width}: sdfast has square patches only.")
    return height


def patch_embedding(weights: Weights, path: Path) -> tuple[int, int, int]:
    """Width, channels and side of the patches of a model of timm's; a UserError where the tensor is none of these."""
    name = "patch_embed.proj.weight"
    if name not in weights.tensors:
        raise weights.missing(name)
    kernel = weights.tensors[name]
    if kernel.dim() != 4:
        raise UserError(f"the tensor '{name}' in {weights.file_of('')} is no convolution's.")
    width, channels, *sides = kernel.shape
    return width, channels, square_patch(sides, path)


def depth_of(weights: Weights) -> int:
    """How many blocks a model of timm's has."""
    return 1 + max(int(match[1]) for name in weights.tensors if (match := re.match(r"blocks\.(\d+)\.", name)))


def check(shape: ViTShape, settings: Settings, weights: Weights) -> None:
    """Raise a UserError unless the sizes of a configuration fit each other and the weights."""
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
