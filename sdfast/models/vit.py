"""A lean ViT encoder, MAE decoder and classifier: the arithmetic of Hugging Face's ViTMAE and ViT, in one file.

Equal to `transformers.ViTMAEForPreTraining` and `transformers.ViTForImageClassification` for the same weights (the
tests compare them). Weights travel to and from the Hugging Face layout without loss (`sdfast.models.layout`): the only
difference is that the query, key and value projections are one matrix.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TransformerShape:
    """Size of a stack of pre-norm transformer blocks."""

    width: int
    depth: int
    heads: int
    mlp_width: int


@dataclass(frozen=True)
class ViTShape:
    """Everything that decides the architecture of a ViT or of a ViT with an MAE decoder."""

    image_size: tuple[int, int]
    patch_size: int
    channels: int
    encoder: TransformerShape
    decoder: TransformerShape | None = None
    norm_eps: float = 1e-12
    qkv_bias: bool = True

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def patches(self) -> int:
        """Patches per image (L)."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_values(self) -> int:
        """Pixel values per patch (P)."""
        return self.patch_size * self.patch_size * self.channels


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for query, key and value."""

    def __init__(self, width: int, heads: int, qkv_bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """x: [B, N, D]; key_mask: [B, 1, 1, N] bool, True where a key takes part, or None for all."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)
        return self.dropout(self.proj(x.transpose(1, 2).reshape(batch, tokens, width)))


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP (exact GELU), each behind a LayerNorm and a residual."""

    def __init__(self, shape: TransformerShape, norm_eps: float, qkv_bias: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=norm_eps)
        self.attn = Attention(shape.width, shape.heads, qkv_bias, dropout)
        self.norm2 = nn.LayerNorm(shape.width, eps=norm_eps)
        self.fc1 = nn.Linear(shape.width, shape.mlp_width)
        self.fc2 = nn.Linear(shape.mlp_width, shape.width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = x + self.attn(self.norm1(x), key_mask)
        return x + self.dropout(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class ViTEncoder(nn.Module):
    """Patch embedding, CLS token, positions, blocks and the final LayerNorm."""

    def __init__(self, shape: ViTShape, dropout: float = 0.0) -> None:
        super().__init__()
        width = shape.encoder.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + shape.patches, width))
        self.patch_embed = nn.Conv2d(shape.channels, width, shape.patch_size, stride=shape.patch_size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(shape.encoder, shape.norm_eps, shape.qkv_bias, dropout) for _ in range(shape.encoder.depth)
        )
        self.norm = nn.LayerNorm(width, eps=shape.norm_eps)

    def forward(
        self,
        pixels: Tensor,
        visible_ids: Tensor | None = None,
        visible_valid: Tensor | None = None,
        layer: int | None = None,
    ) -> Tensor:
        """Encode images, whole or only their visible patches.

        Args:
            pixels: [B, C, H, W] normalised.
            visible_ids: [B, K] int64 patch numbers to keep, in the order the tokens shall have; None keeps all.
            visible_valid: [B, K] bool, False where `visible_ids` is padding (rows with fewer visible patches).
            layer: stop after so many blocks, before the final LayerNorm; None goes through all and the LayerNorm.

        Returns:
            [B, 1 + K, D] (K = L without `visible_ids`): CLS, then the patches.
        """
        tokens = self.patch_embed(pixels).flatten(2).transpose(1, 2) + self.position_embeddings[:, 1:]
        if visible_ids is not None:
            tokens = tokens.gather(1, visible_ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        cls = (self.cls_token + self.position_embeddings[:, :1]).expand(tokens.shape[0], -1, -1)
        x = self.dropout(torch.cat((cls, tokens), dim=1))
        key_mask = None
        if visible_valid is not None:
            key_mask = F.pad(visible_valid, (1, 0), value=True)[:, None, None, :]  # the CLS token always takes part
        for block in itertools.islice(self.blocks, layer):
            x = block(x, key_mask)
        return self.norm(x) if layer is None else x


class MAEDecoder(nn.Module):
    """The light decoder of MAE (He et al., 2022): fills in mask tokens and predicts the pixels of every patch."""

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        if shape.decoder is None:
            raise ValueError("MAEDecoder needs a ViTShape with a decoder")
        width = shape.decoder.width
        self.embed = nn.Linear(shape.encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + shape.patches, width))
        self.blocks = nn.ModuleList(
            Block(shape.decoder, shape.norm_eps, shape.qkv_bias) for _ in range(shape.decoder.depth)
        )
        self.norm = nn.LayerNorm(width, eps=shape.norm_eps)
        self.pred = nn.Linear(width, shape.patch_values)

    def forward(self, encoded: Tensor, visible_ids: Tensor, visible_valid: Tensor | None = None) -> Tensor:
        """Predict all patches from the encoded visible ones.

        Args:
            encoded: [B, 1 + K, D] from the encoder: CLS, then the visible patches.
            visible_ids: [B, K] int64, where those patches lie.
            visible_valid: [B, K] bool, False where `visible_ids` is padding.

        Returns:
            [B, L, P] pixel predictions in patch order, channel fastest within a patch.
        """
        x = self.embed(encoded)
        patches = self.position_embeddings.shape[1] - 1
        # One row more than patches: padding is scattered there and cut off.
        target = visible_ids if visible_valid is None else visible_ids.masked_fill(~visible_valid, patches)
        full = self.mask_token.to(x.dtype).expand(x.shape[0], patches + 1, -1)
        full = full.scatter(1, target.unsqueeze(-1).expand(-1, -1, x.shape[-1]), x[:, 1:])[:, :patches]
        x = torch.cat((x[:, :1], full), dim=1) + self.position_embeddings
        for block in self.blocks:
            x = block(x)
        return self.pred(self.norm(x))[:, 1:]


class MaskedAutoencoder(nn.Module):
    """A ViT encoder with an MAE decoder. Position embeddings are fixed, as in ViTMAE."""

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = ViTEncoder(shape)
        self.decoder = MAEDecoder(shape)
        self.encoder.position_embeddings.requires_grad_(False)
        self.decoder.position_embeddings.requires_grad_(False)


class ViTClassifier(nn.Module):
    """A ViT encoder with one linear layer on the CLS token after the final LayerNorm (fidelity: no pooler).

    Position embeddings are trainable here and dropout acts after the embeddings, the attention projections and the
    MLPs, as in `transformers.ViTForImageClassification`.
    """

    def __init__(self, shape: ViTShape, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = ViTEncoder(shape, dropout)
        self.classifier = nn.Linear(shape.encoder.width, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, C, H, W] normalised -> [B, classes] logits."""
        return self.classifier(self.encoder(pixels)[:, 0])
