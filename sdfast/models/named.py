"""Shapes that can be named without a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from sdfast.models.vit import TransformerShape, ViTShape


@dataclass(frozen=True)
class TextShape:
    """A stack of transformer blocks over token ids, with a head over its vocabulary, as RoBERTa has them.

    Attributes:
        encoder: the blocks; counted as those of `sdfast.models.vit`, which differ in where the norms are.
        vocabulary: rows of the embedding, which is the head's matrix too.
        positions: rows of the position embedding.
        tokens: of a sequence.
    """

    encoder: TransformerShape
    vocabulary: int = 50_265
    positions: int = 514
    tokens: int = 512


_BASE, _LARGE = TransformerShape(768, 12, 12, 3072), TransformerShape(1024, 24, 16, 4096)
_DECODER = TransformerShape(512, 8, 16, 2048)  # of MAE


def _vit(encoder: TransformerShape, patch_size: int = 16) -> ViTShape:
    return ViTShape((224, 224), patch_size, 3, encoder, _DECODER)


NAMED: dict[str, ViTShape | TextShape] = {
    "vit-ti": _vit(TransformerShape(192, 12, 3, 768)),
    "vit-s": _vit(TransformerShape(384, 12, 6, 1536)),
    "vit-b": _vit(_BASE),
    "vit-l": _vit(_LARGE),
    "vit-h": _vit(TransformerShape(1280, 32, 16, 5120), 14),
    "roberta-base": TextShape(_BASE),
    "roberta-large": TextShape(_LARGE),
}
