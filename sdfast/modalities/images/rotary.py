"""Rotary positions of patches on a grid: a head's features turn by the patch's row and column."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from sdfast.models.blocks import Turn


def axial_turn(grid: tuple[int, int], head: int, base: float, prefix: int, like: torch.Tensor) -> Turn:
    """The turn of all tokens of an image, as DINOv3 has it (Simeoni et al., 2025; modeling_dinov3_vit.py).

    Centres of patches lie in [-1, 1] down and across; the first quarter of the features turns by the row, the second by
    the column, and the second half is as the first.

    Args:
        grid: patches down and across.
        head: features of a head, a multiple of 4.
        base: of the frequencies.
        prefix: tokens before the patches, which do not turn.
        like: tokens, on whose device the result is.

    Returns:
        [prefix + L, head] float32 each; float64 of float32 places and frequencies, as theirs are, for such tokens.
    """
    device, dtype = like.device, torch.promote_types(like.dtype, torch.float32)
    down, across = (torch.arange(0.5, side, device=device) / side * 2 - 1 for side in grid)
    places = torch.stack(torch.meshgrid(down, across, indexing="ij"), dim=-1).flatten(0, 1)  # [L, 2]
    frequencies = 1 / base ** torch.arange(0, 1, 4 / head, dtype=torch.float32, device=device)
    angles = ((2 * math.pi * places[:, :, None]).to(dtype) * frequencies.to(dtype)).flatten(1).repeat(1, 2)
    before = (0, 0, prefix, 0)
    return Turn(F.pad(angles.cos(), before, value=1.0), F.pad(angles.sin(), before))
