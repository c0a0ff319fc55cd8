"""Matrix-product FLOPs of a training step, per image: products counted exactly, backward = twice forward, nothing else.

That counts what a step has to compute: work that an exact shortcut leaves out is not counted when the shortcut is on.
"""

from __future__ import annotations

from sdfast.models.vit import TransformerShape, ViTShape


def blocks_flops(shape: TransformerShape, tokens: int, queries: int | None = None) -> float:
    """Forward through all blocks; with `queries`, the last block computes only that many tokens' outputs."""
    width, mlp = shape.width, shape.mlp_width

    def block(queries: int) -> float:
        keys_values = 2 * width * width * tokens
        rest = (2 * width * width + 2 * width * mlp) * queries
        return 2.0 * (keys_values + rest + 2 * queries * tokens * width)

    last = block(tokens if queries is None else queries)
    return (shape.depth - 1) * block(tokens) + last if shape.depth else 0.0


def step_flops(
    stage: str,
    shape: ViTShape,
    visible: int,
    live_teacher: bool = False,
    packed: bool = False,
    cls_tail: bool = False,
    masked_tail: bool = False,
) -> float:
    """FLOPs of one image in a step of `stage`.

    Args:
        stage: pretrain, distill or finetune.
        shape: of the model.
        visible: patches that the masked view keeps.
        live_teacher: the teacher's forward pass is part of the step (without shortcuts).
        packed: the patch embedding is computed once for both views.
        cls_tail: the clean view's last block computes the CLS token alone.
        masked_tail: the last decoder block and the pixel head compute the masked patches alone.
    """
    patches, width = shape.patches, shape.encoder.width
    embedding = 2.0 * patches * shape.patch_values * width
    clean = blocks_flops(shape.encoder, 1 + patches)
    if stage == "finetune":
        return 3 * (embedding + clean)
    assert shape.decoder is not None
    predicted = patches - visible if masked_tail else patches
    decoder = 2.0 * (1 + visible) * width * shape.decoder.width
    decoder += blocks_flops(shape.decoder, 1 + patches, predicted if masked_tail else None)
    decoder += 2.0 * predicted * shape.decoder.width * shape.patch_values
    forward = embedding + blocks_flops(shape.encoder, 1 + visible) + decoder
    if stage == "pretrain":
        return 3 * forward
    forward += 0.0 if packed else embedding
    forward += blocks_flops(shape.encoder, 1 + patches, 1 if cls_tail else None)
    return 3 * forward + (embedding + clean if live_teacher else 0.0)
