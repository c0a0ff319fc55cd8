"""The representation that is matched, for teacher and student alike."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Tokens = Literal["cls", "patch", "all"]


def select_tokens(encoded: Tensor, tokens: Tokens) -> Tensor:
    """Pick the matched tokens of an encoder's output (after its final LayerNorm).

    Args:
        encoded: [B, 1 + L, D], CLS first, then the patches in image order.
        tokens: `cls` (the released code), `patch`, or `all` (equation 3 read literally).

    Returns:
        [B, D] for `cls`, [B, L, D] for `patch`, [B, 1 + L, D] for `all`; a view.
    """
    if tokens == "cls":
        return encoded[:, 0]
    return encoded[:, 1:] if tokens == "patch" else encoded
