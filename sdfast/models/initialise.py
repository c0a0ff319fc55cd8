"""Fresh weights, decided by a seed alone.

Linear layers and tables are normal(0, 0.02) with zero bias, LayerNorms 1 and 0, the patch embedding Xavier-uniform as
one matrix, CLS and mask tokens normal(0, 0.02), positions of images sine-cosine. That is transformers' ViTMAE but for
its slips: in 4.57 and 5.23 a new decoder's positions and mask token end up as zeros, in 5.23 the encoder's positions
too; here they are what they are in facebookresearch/mae.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sdfast.models.weights import Module, filled, sizes_of

STD = 0.02


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


def fresh(kind: Callable[..., Module], seed: int, *arguments: Any) -> Module:
    """A module made with these arguments, the shape first, with new weights; float32 on the CPU."""
    grid = getattr(arguments[0], "grid", None)
    return filled(kind, fresh_state(sizes_of(kind, *arguments), seed, grid), *arguments)


def fresh_state(sizes: Mapping[str, torch.Size], seed: int, grid: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """New float32 tensors on the CPU.

    Args:
        sizes: by name, in the order in which they are drawn.
        seed: decides them.
        grid: patches down and across, where there are positions of images among them.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, size in sizes.items():
        leaf = name.rpartition(".")[2]
        if leaf == "position_embeddings":
            assert grid is not None
            state[name] = sincos_positions(grid, size[-1])[:, -size[1] :]  # without the CLS token's where it has none
        elif name.endswith("patch_embed.weight"):
            bound = math.sqrt(6 / (size[0] + math.prod(size[1:])))
            state[name] = torch.empty(size).uniform_(-bound, bound, generator=generator)
        elif leaf == "bias":
            state[name] = torch.zeros(size)
        elif len(size) == 1:  # LayerNorm
            state[name] = torch.ones(size)
        else:
            state[name] = torch.empty(size).normal_(0.0, STD, generator=generator)
    return state
