"""Fresh weights: fixed 2-D sin-cos positions, a decoder for an encoder without one, a whole MAE from scratch.

Linear layers are normal(0, 0.02) with zero bias, LayerNorms 1 and 0, the patch embedding Xavier-uniform as one matrix,
CLS and mask tokens normal(0, 0.02), positions sine-cosine. That is transformers' ViTMAE but for its slips: in 4.57 and
5.23 a new decoder's positions and mask token end up as zeros, in 5.23 the encoder's positions too; here they are what
they are in facebookresearch/mae.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from sdfast.models.vit import MAEDecoder, MaskedAutoencoder, TransformerShape, ViTShape

_Module = TypeVar("_Module", bound=nn.Module)
_STD = 0.02
_DECODER_WIDTH, _DECODER_DEPTH, _DECODER_HEAD_WIDTH = 512, 8, 32  # ViTMAE base: 512 wide, 8 blocks, 16 heads


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed 2-D sine-cosine position embeddings in ViTMAE's layout.

    A row holds sin and cos of the column, then sin and cos of the row, `width / 4` frequencies each, from 1 down to
    nearly 1/10000 (facebookresearch/mae, util/pos_embed.py); patches are row-major; the CLS row is zero.

    Args:
        grid: patches down and across.
        width: embedding width, a multiple of 4.

    Returns:
        [1, 1 + L, width] float32, computed in float64.
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, not {width}")
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    down, across = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [place.reshape(-1, 1) * frequencies for place in (across, down)]  # each [L, width / 4]
    rows = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return torch.cat((torch.zeros(1, width, dtype=torch.float64), rows))[None].float()


def decoder_shape_for(encoder: TransformerShape) -> TransformerShape:
    """Sizes of a new decoder: ViTMAE base's (8 blocks, 512 wide, 32 features a head), never wider than the encoder."""
    width = max(4, min(_DECODER_WIDTH, encoder.width) // 4 * 4)
    heads = next(n for n in range(max(1, width // _DECODER_HEAD_WIDTH), 0, -1) if width % n == 0)
    return TransformerShape(width=width, depth=_DECODER_DEPTH, heads=heads, mlp_width=4 * width)


def fresh_decoder(shape: ViTShape, seed: int) -> MAEDecoder:
    """A new decoder for `shape` (which names its sizes); float32 on the CPU, decided by `seed` alone."""
    with torch.device("meta"):
        decoder = MAEDecoder(shape)
    return _initialise(decoder, shape, seed)


def fresh_mae(shape: ViTShape, seed: int) -> MaskedAutoencoder:
    """A whole masked auto-encoder with new weights; float32 on the CPU, decided by `seed` alone."""
    with torch.device("meta"):
        module = MaskedAutoencoder(shape)
    return _initialise(module, shape, seed)


@torch.no_grad()
def _initialise(module: _Module, shape: ViTShape, seed: int) -> _Module:
    generator = torch.Generator().manual_seed(seed)
    module.to_empty(device="cpu")
    for name, parameter in module.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf == "position_embeddings":
            parameter.copy_(sincos_positions(shape.grid, parameter.shape[-1]))
        elif name.endswith("patch_embed.weight"):
            bound = math.sqrt(6 / (parameter.shape[0] + parameter[0].numel()))
            parameter.uniform_(-bound, bound, generator=generator)
        elif leaf == "bias":
            parameter.zero_()
        elif parameter.dim() == 1:  # LayerNorm
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, _STD, generator=generator)
    return module
