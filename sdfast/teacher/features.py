"""The representation that is matched, for teacher and student alike."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from sdfast.errors import UserError
from sdfast.models.vit import View, ViTEncoder

Tokens = Literal["cls", "patch", "all"]
Layer = int | Literal["last"]  # the output of so many blocks, as it is; or of all of them after the final LayerNorm


def matched_features(encoder: ViTEncoder, pixels: Tensor, tokens: Tokens, layer: Layer = "last") -> Tensor:
    """The features of unmasked images that teacher and student are compared by.

    Args:
        encoder: of the one or the other.
        pixels: [B, C, H, W] normalised.
        tokens: see `select_tokens`.
        layer: see `Layer`.

    Returns:
        [B, D] or [B, N, D].
    """
    if tokens == "cls":
        return encoder.encode(View(encoder.embed(pixels), cls_only=True, layer=blocks_before(layer)))[0]
    return select_tokens(encoder.encode(View(encoder.embed(pixels), layer=blocks_before(layer)))[0], tokens)


def blocks_before(layer: Layer) -> int | None:
    """How many blocks a layer lies behind, as `View.layer` says it: None for all, and the last LayerNorm."""
    return None if layer == "last" else layer


def select_tokens(encoded: Tensor, tokens: Tokens) -> Tensor:
    """Pick the matched tokens of an encoder's output.

    Args:
        encoded: [B, 1 + L, D], CLS first, then the patches in image order.
        tokens: `cls` (the released code), `patch`, or `all` (equation 3 read literally).

    Returns:
        [B, D] for `cls`, [B, L, D] for `patch`, [B, 1 + L, D] for `all`; a view.
    """
    if tokens == "cls":
        return encoded[:, 0]
    return encoded[:, 1:] if tokens == "patch" else encoded


def check_layer(layer: Layer, depth: int) -> None:
    """Compare `distill.layer` with the number of blocks.

    Raises:
        UserError: there is no such inner layer.
    """
    if layer != "last" and not 1 <= layer < depth:
        inner = f"use 1 to {depth - 1}, or last" if depth > 1 else "use last"
        blocks = f"{depth} block{'s' if depth > 1 else ''}"
        raise UserError(
            f"distill.layer={layer} is no inner layer of this model, which has {blocks}; {inner} (after all blocks"
            " and the final LayerNorm)."
        )
