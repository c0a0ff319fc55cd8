"""`scaled_dot_product_attention` for each group: what every build of torch has."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sdfast.models.attention.groups import Groups
from sdfast.models.attention.reference import by_group, key_mask


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, groups: Groups) -> Tensor:
    """See `attend_across` for the arguments."""
    return by_group(q, k, v, groups, _one_group)


def _one_group(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask(valid))
