"""How far training has moved an encoder."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def encoder_distance(start: nn.Module, end: nn.Module) -> float:
    """||theta_start - theta_end||_2 over the parameters that two encoders have in common.

    Those are patch embedding, CLS token, positions, blocks and the last LayerNorm; decoders and heads are not part of
    an encoder.

    Args:
        start: the one encoder, on any device.
        end: the other; computed on its device.

    Returns:
        The distance, of differences in float32 whose squares are summed in float64.
    """
    first, second = dict(start.named_parameters()), dict(end.named_parameters())
    common = [name for name in second if name in first]
    ends = [second[name].detach() for name in common]
    starts = [first[name].to(each.device) for name, each in zip(common, ends, strict=True)]
    norms = torch._foreach_norm(torch._foreach_sub(ends, starts), 2, dtype=torch.float64)
    return float(torch.stack(norms).norm())
