"""A pre-trained model for other images: another size (positions interpolated), another number of channels.

All functions work on the tensors of `sdfast.modalities.images.model` by name and return new ones.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sdfast.errors import UserError
from sdfast.modalities.images.model import ViTShape

_MOST_PATCHES = 1 << 20  # of an image: 16,384 x 16,384 pixels in patches of 16
_SMOOTH = ("dinov2_with_registers",)  # interpolated with a filter
_SQUARE = {  # what is made for square images, by `ViTShape.kind`
    "vit": (
        "sdfast and transformers' ViT classifier take it, but transformers' ViTMAEForPreTraining is made for square "
        "images and may refuse the pre-trained model."
    ),
    **dict.fromkeys(
        ("dinov2", "dinov2_with_registers"),
        "sdfast takes it, but transformers' DINOv2 is made for square images and cannot use the model.",
    ),
    "dinov3_vit": (
        "sdfast and transformers 5.23 take it; for 5.17 the image_size in config.json has to be one number, which has "
        "no effect there."
    ),
    **dict.fromkeys(
        ("clip_vision_model", "siglip_vision_model", "beit"),
        "sdfast takes it, but transformers' class is made for square images and cannot use the model.",
    ),
}
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL's convert("L")
_PATCH_EMBED = "encoder.patch_embed.weight"


def adapt_state(
    state: dict[str, Tensor], shape: ViTShape, image_size: tuple[int, int], channels: int
) -> tuple[dict[str, Tensor], ViTShape, list[str]]:
    """Fit the tensors of an encoder, or of an encoder and a decoder, to other images.

    Args:
        state: tensors by name, as in `MaskedAutoencoder` or `ViTEncoder` under `encoder.`.
        shape: what they fit now.
        image_size: height and width wanted.
        channels: wanted.

    Returns:
        The tensors, their shape, and one sentence for each thing that was changed.

    Raises:
        UserError: the size is not a multiple of the patch size.
    """
    check_image_size(image_size, shape.patch_size)
    adapted, notes = dict(state), []
    new_shape = replace(shape, image_size=image_size, channels=channels)
    if new_shape.grid != shape.grid:
        tables = [name for name in adapted if name.endswith("coder.position_embeddings")]
        for name in tables:
            smooth = name.startswith("encoder.") and shape.kind in _SMOOTH
            adapted[name] = resize_positions(adapted[name], shape.grid, new_shape.grid, smooth)
        grids = f"from {_by(shape.grid)} to {_by(new_shape.grid)} patches"
        how = (
            f"position embeddings were interpolated (bicubic) {grids}" if tables else f"{grids}, whose positions rotate"
        )
        notes.append(f"image size {_by(shape.image_size)} -> {_by(image_size)}: {how}.")
    elif image_size != shape.image_size:
        notes.append(f"image size {_by(shape.image_size)} -> {_by(image_size)}: the patches stay {_by(shape.grid)}.")
    if image_size[0] != image_size[1] and shape.kind in _SQUARE:
        notes.append(f"the image size {_by(image_size)} is not square: {_SQUARE[shape.kind]}")
    if channels != shape.channels:
        adapted[_PATCH_EMBED] = input_weights_for(adapted[_PATCH_EMBED], channels)
        for name in ("decoder.pred.weight", "decoder.pred.bias"):
            if name in adapted:
                adapted[name] = prediction_for(adapted[name], shape.channels, channels)
        how = "the input weights were shared out evenly over the channels"
        if channels == 1:
            how = "the input weights were summed over the channels"
        elif shape.channels > 1:
            how = f"the input weights were repeated in turn, times {shape.channels} / {channels}"
        notes.append(f"channels {shape.channels} -> {channels}: {how}, mean and deviation follow.")
    return adapted, new_shape, notes


def check_image_size(image_size: tuple[int, int], patch_size: int) -> None:
    """Raise a UserError that names the nearest fits unless both sides are positive multiples of the patch size.

    Nor may an image have more patches than any model sees, whose positions alone would fill the memory.
    """
    if min(image_size) > 0 and not any(side % patch_size for side in image_size):
        patches = (image_size[0] // patch_size) * (image_size[1] // patch_size)
        if patches > _MOST_PATCHES:
            raise UserError(
                f"the image size {_by(image_size)} is {patches:,} patches of {patch_size}, more than the"
                f" {_MOST_PATCHES:,} that an image may have: choose a smaller one."
            )
        return
    below = tuple(max(patch_size, side // patch_size * patch_size) for side in image_size)
    above = tuple(max(patch_size, -(-side // patch_size) * patch_size) for side in image_size)
    fits = _by(below) if below == above else f"{_by(below)} and {_by(above)}"
    raise UserError(
        f"the image size {_by(image_size)} is not a multiple of the model's patch size {patch_size}: "
        f"the nearest that fit are {fits}."
    )


def resize_positions(
    positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], smooth: bool = False
) -> Tensor:
    """Interpolate position embeddings to another grid of patches; the CLS row, where there is one, stays.

    Bicubic with `align_corners=False`, as `ViTMAEEmbeddings.interpolate_pos_encoding` of transformers. The decoder's go
    through the same: transformers interpolates those along the flattened patches, which mixes the end of one row
    with the start of the next.

    Args:
        positions: [1, 1 + L, D], or [1, L, D].
        old_grid: patches down and across, L in all.
        new_grid: the same, wanted.
        smooth: whether frequencies that a smaller grid cannot hold are filtered out, as transformers does for some.

    Returns:
        [1, 1 + L', D], or [1, L', D].
    """
    width, before = positions.shape[-1], positions.shape[1] - old_grid[0] * old_grid[1]
    plane = positions[:, before:].reshape(1, *old_grid, width).permute(0, 3, 1, 2)
    plane = F.interpolate(plane, size=new_grid, mode="bicubic", align_corners=False, antialias=smooth)
    return torch.cat((positions[:, :before], plane.permute(0, 2, 3, 1).reshape(1, -1, width)), dim=1)


def input_weights_for(weight: Tensor, channels: int) -> Tensor:
    """Patch-embedding weights [D, C, p, p] for another number of channels.

    For one channel they are the sum, from one even shares: a grey image gives the same patches either way, as grey is
    RGB with equal channels. Otherwise channel c has those of channel c modulo C, all times C / channels, as timm does
    it (`adapt_input_conv`).
    """
    old = weight.shape[1]
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    if old == 1:
        return (weight / channels).expand(-1, channels, -1, -1).contiguous()
    return weight[:, torch.arange(channels) % old] * (old / channels)


def prediction_for(tensor: Tensor, old: int, channels: int) -> Tensor:
    """Rows of the decoder's pixel head, [p * p * C] or [p * p * C, D], channel fastest: averaged, or in turn."""
    pixels = tensor.reshape(-1, old, *tensor.shape[1:])  # [p * p, C, ...]
    if channels == 1:
        return pixels.mean(dim=1).contiguous()
    return pixels[:, torch.arange(channels) % old].reshape(-1, *tensor.shape[1:])


def grey_weights_for_rgb(weight: Tensor) -> Tensor:
    """Patch-embedding weights [D, 1, p, p] of a grey model as [D, 3, p, p] that see the luma of an RGB image.

    transformers' pipelines turn every image into RGB, so a grey classifier is stored this way. The blue share takes up
    the rounding of the other two; it is exact, as w - r - g has few enough bits, so `rgb_weights_for_grey` gives back
    the same bits.
    """
    red, green = ((weight.double() * share).float() for share in LUMA[:2])
    blue = (weight.double() - red.double() - green.double()).float()
    return torch.cat((red, green, blue), dim=1)


def rgb_weights_for_grey(weight: Tensor) -> Tensor:
    """The inverse of `grey_weights_for_rgb`: [D, 3, p, p] -> [D, 1, p, p]."""
    return weight.double().sum(dim=1, keepdim=True).float()


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in size)
