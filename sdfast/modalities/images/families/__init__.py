"""The families of image models: Hugging Face's, one file or more rows of `FAMILIES`, and timm's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdfast.errors import UserError
from sdfast.modalities.images.families import beit, dino, facebook, timm, timm_dino, towers, vit
from sdfast.modalities.images.families.family import (
    DECODER,
    SHAPE,
    TABLE,
    ImageFamily,
    ImageSource,
    check,
    pool_notes,
    square_patch,
)
from sdfast.modalities.images.families.timm import TIMM
from sdfast.modalities.images.families.vit import VIT, VIT_MAE
from sdfast.modalities.images.model import ViTShape
from sdfast.modalities.images.processor import ImageProcessor, replaced_steps
from sdfast.models.blocks import TransformerShape
from sdfast.models.folder import SHARE, SWITCH, Settings
from sdfast.models.found import Told, bare_file, refuse_told, unwrapped
from sdfast.models.weights import Weights, read_config, read_weights
from sdfast.regular import is_there

__all__ = [
    "DECODER",
    "FAMILIES",
    "SHAPE",
    "TABLE",
    "TIMM",
    "VIT",
    "VIT_MAE",
    "ImageFamily",
    "ImageSource",
    "describe",
    "trained_with",
]

FAMILIES: Mapping[str, ImageFamily] = {**vit.FAMILIES, **dino.FAMILIES, **towers.FAMILIES, **beit.FAMILIES}
# What has no place here, and the values at which that is no loss.
_UNHEEDED = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "attention_dropout": 0.0,
    "drop_path_rate": 0.0,
    "initializer_range": 0.02,
}


def describe(place: Path, told: Told | None = None, image_size: tuple[int, int] | int | None = None) -> ImageSource:
    """Sizes, naming and preprocessing of a checkpoint.

    Args:
        place: a folder, or a file of weights alone.
        told, image_size: what is said of such a file; see `facebook.describe`.

    Raises:
        UserError: the architecture is none that sdfast takes, or a field is missing or makes no sense, or a file cannot
            be read.
    """
    told = told or Told()
    if (file := bare_file(place)) is not None:
        return facebook.describe(file, told, image_size)
    refuse_told(told, place)
    settings, weights = Settings(read_config(place), place / "config.json"), read_weights(place)
    if "model_type" in settings.values:
        return _describe_hugging_face(settings, weights)
    if "architecture" in settings.values:
        dinov3 = timm_dino.ARCHITECTURE.match(str(settings.values["architecture"]))
        own = timm_dino if dinov3 else timm
        return own.describe(settings, unwrapped(weights, own.TIMM))
    raise UserError(f"{settings.path} has neither a model_type (Hugging Face) nor an architecture (timm).")


def _describe_hugging_face(settings: Settings, weights: Weights) -> ImageSource:
    config = settings.values
    family = settings.family(FAMILIES, "images")
    weights = unwrapped(weights, family.naming)
    own = settings if not family.nested else settings.table(f"{TABLE}_dict" if config.get(f"{TABLE}_dict") else TABLE)
    full = Settings({**family.defaults, **own.values}, settings.path)
    sizes, around = full.read(family.stack), full.read(family.shape)
    sizes |= family.further_sizes(full, sizes)
    declared = around["image_size"]
    around |= {**family.fixed, **family.further_shape(full, around)}
    around["patch_size"] = square_patch(around["patch_size"], settings.path)
    shape = ViTShape(encoder=TransformerShape(**sizes), **around)
    family = family.of(shape)
    if "decoder.pred" in family.naming.names and any(name.startswith("decoder.") for name in weights.tensors):
        shape = replace(shape, decoder=TransformerShape(**full.read(DECODER)))
    check(shape, settings, weights)
    processor, notes = _preprocessing(config["model_type"], family, shape, weights.folder)
    if shape.image_size != declared:
        sides = " x ".join(map(str, shape.image_size))
        notes.append(
            f"image_size {list(declared)} is no multiple of the patches' {shape.patch_size}: {sides} was taken."
        )
    notes += own.unheeded(_UNHEEDED) + own.differing(family.noted) + pool_notes(shape)
    return ImageSource(settings, weights, family, shape, notes, processor)


def trained_with(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """How a masked auto-encoder was pre-trained, as keys of `pretrain`; nothing for another model.

    Args:
        config: of Hugging Face; what it leaves out is as transformers fills it.
        path: where it lies, for messages.

    Raises:
        UserError: a value that makes no sense.
    """
    if config.get("model_type") != "vit_mae" and "norm_pix_loss" not in config:
        return {}
    settings = Settings(config, path)
    ratio = settings.get("mask_ratio", SHARE, 0.75)
    own: dict[str, Any] = {"norm_pix": settings.get("norm_pix_loss", SWITCH, False)}
    if ratio:  # 0 is how features are taken, and nothing that a model was pre-trained with
        own["mask_ratio"] = ratio
    return own


def _preprocessing(kind: str, family: ImageFamily, shape: ViTShape, folder: Path) -> tuple[ImageProcessor, list[str]]:
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
